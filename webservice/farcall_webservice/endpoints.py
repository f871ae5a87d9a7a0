"""Endpoints: register, show, lock, delete."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from flask import Response, g
from sqlalchemy import Row, and_, select

from farcall_webservice import access, foreign, registration
from farcall_webservice.children import children_of
from farcall_webservice.documents import answer
from farcall_webservice.extensions import services
from farcall_webservice.fields import iso
from farcall_webservice.models import Endpoint
from farcall_webservice.openapi import Blueprint
from farcall_webservice.schemas import (
    EXAMPLE_ID,
    AllowedFunctions,
    EndpointDocument,
    EndpointRegistered,
    EndpointRegistration,
    EndpointsQuery,
    EndpointStatus,
    EndpointSummary,
    LockAnswer,
    OldEndpointRegistration,
    ResultAnswer,
)

blueprint = Blueprint("endpoints", __name__, description="Registered places that run tasks.")

_EXAMPLE = {
    "endpoint_name": "cluster",
    "display_name": "The cluster in the basement",
    "metadata": {
        "endpoint_version": "0.1.0",
        "python_version": "3.11.7",
        "hostname": "login1",
        "accepts": ["task_batch"],
        "instance": "login1:/home/me/.farcall/cluster",
    },
    "public": False,
}
_REGISTERING = (403, 404, 409, 423)


@blueprint.operation(
    "POST",
    "/v3/endpoints",
    id="registerEndpoint",
    body=EndpointRegistration,
    body_example=_EXAMPLE,
    answer=EndpointRegistered,
    failures=(409,),
)
def register_endpoint(body: dict[str, Any]) -> dict[str, Any]:
    """Register a new endpoint; the service makes the id"""
    return registration.register(g.caller, None, body)


@blueprint.operation(
    "PUT",
    "/v3/endpoints/<id:endpoint_id>",
    id="renewEndpoint",
    body=EndpointRegistration,
    body_example=_EXAMPLE,
    answer=EndpointRegistered,
    failures=_REGISTERING,
)
def renew_endpoint(body: dict[str, Any], endpoint_id: str) -> dict[str, Any]:
    """Register an endpoint under this id, known or not"""
    return registration.register(g.caller, endpoint_id, body)


@blueprint.operation(
    "POST",
    "/v2/endpoints",
    id="registerEndpointOld",
    body=OldEndpointRegistration,
    body_example={**_EXAMPLE, "endpoint_uuid": EXAMPLE_ID},
    answer=EndpointRegistered,
    failures=_REGISTERING,
)
def register_endpoint_old(body: dict[str, Any]) -> dict[str, Any]:
    """Register an endpoint, as older clients do"""
    return registration.register(g.caller, body["endpoint_uuid"], body)


@blueprint.operation("GET", "/v2/endpoints", id="getEndpoints", query=EndpointsQuery, answer=EndpointSummary(many=True))
def get_endpoints(query: dict[str, Any]) -> Response:
    """Endpoints, by name"""
    owned = and_(Endpoint.owner_id == g.caller.id, Endpoint.parent_id.is_(None))
    wanted = owned if query["role"] == "owner" else access.usable_endpoints_of(g.caller)
    with services().database.reading() as connection:
        rows = connection.execute(
            # Without what their agents say of themselves, which may be long.
            select(Endpoint.id, Endpoint.name, Endpoint.display_name, Endpoint.owner_id)
            .where(wanted, Endpoint.deleted_at.is_(None))
            .order_by(Endpoint.name, Endpoint.id)
        )
        return answer([_summary(row) for row in rows])


@blueprint.operation(
    "GET", "/v2/endpoints/<id:endpoint_id>", id="getEndpoint", answer=EndpointDocument, failures=(403, 404)
)
def get_endpoint(endpoint_id: str) -> dict[str, Any]:
    """What an endpoint's agent said of itself when it registered"""
    row = _usable(endpoint_id)
    said = {name: row.details.get(name) for name in _SAID}
    texts = {name: value if value is None else str(value) for name, value in said.items()}
    return {
        **_summary(row),
        **texts,
        "multi_user": bool(row.details.get("multi_user")),
        "public": row.public,
        # A configuration may hold what is nobody else's business, such as what it exports to its workers.
        "endpoint_config": row.details.get("endpoint_config") if row.owner_id == g.caller.id else None,
        "user_config_template": row.details.get("user_config_template"),
        "user_config_schema": row.details.get("user_config_schema"),
        "metadata": row.details if row.owner_id == g.caller.id else {},
    }


@blueprint.operation(
    "GET", "/v2/endpoints/<id:endpoint_id>/status", id="getEndpointStatus", answer=EndpointStatus, failures=(403, 404)
)
def get_endpoint_status(endpoint_id: str) -> dict[str, Any]:
    """Whether an endpoint is online, and its workers and tasks"""
    row = _usable(endpoint_id)
    own = services()
    now = time.time()
    online = registration.is_online(row, now)
    report: dict[str, Any] = row.last_report or {}
    runners = [endpoint_id]
    if foreign.is_core(row.details):
        children = children_of(own.database, endpoint_id)
        runners += [child.id for child in children]
        report = {
            **report,
            **_together([child for child in children if registration.is_online(child, now)]),
        }
    latest = {
        **report,
        "timestamp": iso(row.last_heartbeat_at or row.registered_at),
        "total_workers": report.get("total_workers", 0) if online else 0,
        # The ledger knows it now; the agent knew it at its last report.
        "outstanding_tasks": own.ledger.count_unfinished(*runners),
    }
    return {"status": "online" if online else "offline", "details": report, "logs": [latest]}


@blueprint.operation(
    "GET",
    "/v3/endpoints/<id:endpoint_id>/allowed_functions",
    id="getAllowedFunctions",
    answer=AllowedFunctions,
    failures=(403, 404),
)
def get_allowed_functions(endpoint_id: str) -> dict[str, Any]:
    """The functions that an endpoint is restricted to"""
    allowed = _usable(endpoint_id).allowed_functions
    return {"endpoint_id": endpoint_id, "restricted": allowed is not None, "functions": allowed or []}


@blueprint.operation(
    "POST", "/v3/endpoints/<id:endpoint_id>/lock", id="lockEndpoint", answer=LockAnswer, failures=(403, 404)
)
def lock_endpoint(endpoint_id: str) -> dict[str, Any]:
    """Stop an endpoint's agent and keep it from registering for a minute"""
    return _locked(endpoint_id)


@blueprint.operation(
    "POST", "/v2/endpoints/<id:endpoint_id>/lock", id="lockEndpointOld", answer=LockAnswer, failures=(403, 404)
)
def lock_endpoint_old(endpoint_id: str) -> dict[str, Any]:
    """Lock an endpoint, as older clients do"""
    return _locked(endpoint_id)


@blueprint.operation(
    "DELETE", "/v2/endpoints/<id:endpoint_id>", id="deleteEndpoint", answer=ResultAnswer, failures=(403, 404)
)
def delete_endpoint(endpoint_id: str) -> dict[str, Any]:
    """Delete an endpoint; its unfinished tasks fail"""
    registration.delete(g.caller, endpoint_id)
    return {"result": 302}


def _usable(endpoint_id: str) -> Row[Any]:
    with services().database.reading() as connection:
        return access.usable_endpoint(connection, g.caller, endpoint_id)


def _together(children: Sequence[Row[Any]]) -> dict[str, int]:
    """What the user endpoints of a core endpoint, which has no workers itself, say of theirs."""
    reports = [child.last_report or {} for child in children]
    return {name: sum(_number(report.get(name)) for report in reports) for name in _COUNTED}


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _locked(endpoint_id: str) -> dict[str, Any]:
    until = registration.lock(g.caller, endpoint_id)
    return {"endpoint_id": endpoint_id, "lock_expiration_timestamp": iso(until)}


_COUNTED = ("managers", "total_workers", "idle_workers", "pending_tasks", "outstanding_tasks")
_SAID = (
    "description",
    "hostname",
    "local_user",
    "ip_address",
    "endpoint_version",
    "sdk_version",
    "subscription_uuid",
)


def _summary(row: Any) -> dict[str, Any]:
    return {"uuid": row.id, "name": row.name, "display_name": row.display_name, "owner": row.owner_id}
