"""The service itself: version, health, limits, and who is calling."""

from __future__ import annotations

import logging
from importlib import metadata
from typing import Any

from flask import Response, g
from sqlalchemy.exc import SQLAlchemyError

from farcall_webservice import auth, queues
from farcall_webservice.database import cause_of, is_full
from farcall_webservice.documents import answer
from farcall_webservice.errors import ApiError
from farcall_webservice.extensions import services
from farcall_webservice.openapi import Blueprint
from farcall_webservice.schemas import HealthAnswer, LimitsAnswer, VersionQuery, WhoamiAnswer

log = logging.getLogger(__name__)

blueprint = Blueprint("service", __name__, description="The service itself.")

VERSION = metadata.version("farcall-webservice")
#: A broker that does not answer within so many seconds, twice, is not well.
QUICKLY_S = 1.0

#: Clients and agents older than these are not spoken with. Both are read by Globus Compute's programs too.
OLDEST_SDK = OLDEST_ENDPOINT = "0.1.0"

_VERSIONS = {
    "api": VERSION,
    "min_sdk_version": OLDEST_SDK,
    "min_ep_version": OLDEST_ENDPOINT,
    # Globus Compute's clients count their versions otherwise than ours, who look here.
    "min_farcall_version": OLDEST_SDK,
}
_VERSION_ANSWER = {
    "oneOf": [
        {"type": "string"},
        {
            "type": "object",
            "required": list(_VERSIONS),
            "properties": {name: {"type": "string"} for name in _VERSIONS},
        },
    ]
}


@blueprint.operation(
    "GET",
    "/v2/version",
    id="getVersion",
    query=VersionQuery,
    answer=_VERSION_ANSWER,
    example=_VERSIONS,
    needs_token=False,
)
def get_version(query: dict[str, Any]) -> Response:
    """The service's version, and the oldest clients that it speaks with"""
    return answer(_VERSIONS if query["service"] == "all" else VERSION)


@blueprint.operation("GET", "/healthz", id="getHealth", answer=HealthAnswer, needs_token=False)
def get_health() -> dict[str, Any]:
    """Whether database and broker can be used (200) or not (503)"""
    state = {"database": _database_state(), "broker": _broker_state()}
    if set(state.values()) != {"ok"}:
        raise ApiError(503, "UNHEALTHY", f"The database {state['database']}; the broker {state['broker']}")
    return {"status": "ok", **state}


@blueprint.operation("GET", "/v2/limits", id="getLimits", answer=LimitsAnswer)
def get_limits() -> dict[str, Any]:
    """How much one request may hold"""
    config = services().config
    return {name: getattr(config, name) for name in LimitsAnswer().fields}


@blueprint.operation("GET", "/v2/whoami", id="whoami", answer=WhoamiAnswer)
def whoami() -> dict[str, Any]:
    """The user that the token stands for"""
    groups = auth.groups_of(services().database, g.caller)
    return {"id": g.caller.id, "name": g.caller.name, "groups": [{"id": row.id, "name": row.name} for row in groups]}


def _database_state() -> str:
    try:
        services().database.ping()
        services().database.try_writing()
    except SQLAlchemyError as error:
        log.warning("the database cannot be used: %s", cause_of(error))
        return "cannot be written, since its disk is full" if is_full(error) else "fails"
    return "ok"


def _broker_state() -> str:
    url = services().config.broker_url
    assert url is not None
    try:
        with queues.connect(url) as connection:
            if url.startswith("redis"):
                # A broker that has frozen still takes connections; whoever asks for health wants an answer.
                connection.transport_options.update(socket_timeout=QUICKLY_S, socket_connect_timeout=QUICKLY_S)
            connection.ensure_connection(max_retries=1, interval_start=0)
    except queues.errors_of(url) as error:
        log.warning("the broker cannot be reached: %s", error)
        return "fails"
    return "ok"
