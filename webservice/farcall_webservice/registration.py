"""How an endpoint comes to be, is kept from running twice, and goes: its row, its queues, its lock."""

from __future__ import annotations

import logging
import time
import uuid
from typing import Any
from urllib.parse import urlsplit

from flask import request
from kombu.exceptions import OperationalError
from sqlalchemy import Row, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError

from farcall.wire import Command
from farcall_webservice import access, queues
from farcall_webservice.auth import Caller
from farcall_webservice.config import ServiceConfig
from farcall_webservice.errors import ApiError, forbidden, not_found
from farcall_webservice.extensions import Services, services
from farcall_webservice.fields import iso
from farcall_webservice.models import Endpoint

log = logging.getLogger(__name__)

_DELETED_AT = select(Endpoint.deleted_at).where(Endpoint.id == bindparam("id"))


def is_online(endpoint: Row[Any], config: ServiceConfig, now: float) -> bool:
    """Whether the agent's last report is young enough; a period of 0 was a goodbye."""
    if endpoint.last_heartbeat_at is None or not endpoint.heartbeat_period or endpoint.heartbeat_period < 0:
        return False
    return bool(now - endpoint.last_heartbeat_at < config.missed_heartbeats * endpoint.heartbeat_period)


def register(caller: Caller, endpoint_id: str | None, body: dict[str, Any]) -> dict[str, Any]:
    """Make or renew an endpoint, and return what its agent needs to know."""
    own = services()
    url = broker_url_for_caller(own.config)
    registered_id = endpoint_id or str(uuid.uuid4())
    _declare_queues(own.config, registered_id)
    try:
        _write(own, caller, registered_id, body)
    except IntegrityError:
        # Two registered the same new id at once, and the other one was first: now it is known.
        _write(own, caller, registered_id, body)
    return {"endpoint_id": registered_id, "warnings": [], **queues.queue_infos(registered_id, url)}


def _write(own: Services, caller: Caller, registered_id: str, body: dict[str, Any]) -> None:
    now = time.time()
    values = {
        "name": body["endpoint_name"],
        "display_name": body["display_name"],
        "public": bool(body["public"]),
        "allowed_functions": body["allowed_functions"],
        "details": body["metadata"] or {},
        "registered_at": now,
        "deleted_at": None,
    }
    with own.database.writing() as connection:
        query = select(Endpoint).where(Endpoint.id == registered_id)
        known = connection.execute(query.with_for_update()).one_or_none()
        if known is None:
            connection.execute(
                insert(Endpoint), {"id": registered_id, "owner_id": caller.id, "created_at": now, **values}
            )
        else:
            _check_may_register(known, caller, values["details"], own.config, now)
            connection.execute(update(Endpoint).where(Endpoint.id == registered_id).values(**values))


def lock(caller: Caller, endpoint_id: str) -> float:
    """Tell the agent to stop and keep it from registering for a while; returns until when."""
    own = services()
    until = time.time() + own.config.lock_s
    with own.database.writing() as connection:
        access.owned_endpoint(connection, caller, endpoint_id)
        connection.execute(update(Endpoint).where(Endpoint.id == endpoint_id).values(locked_until=until))
    own.dispatcher.command(endpoint_id, Command("stop", "The endpoint was stopped from elsewhere."))
    return until


def delete(caller: Caller, endpoint_id: str) -> None:
    """Forget an endpoint: its agent is told to stop, its unfinished tasks fail."""
    own = services()
    with own.database.writing() as connection:
        access.owned_endpoint(connection, caller, endpoint_id)
        connection.execute(update(Endpoint).where(Endpoint.id == endpoint_id).values(deleted_at=time.time()))
    own.dispatcher.command(endpoint_id, Command("stop", "The endpoint was deleted."))
    fail_tasks_of_deleted(own, endpoint_id)
    _delete_tasks_queue(own.config, endpoint_id)


def fail_tasks_of_deleted(own: Services, endpoint_id: str) -> None:
    """End what a deleted endpoint will not run, and wake whoever waits for it."""
    reason = f"Endpoint {endpoint_id} was deleted before it had run this task: submit it to another endpoint"
    own.tell(own.ledger.fail_tasks_of_endpoint(endpoint_id, reason, code="EndpointDeleted"))


def is_deleted(own: Services, endpoint_id: str) -> bool:
    with own.database.reading() as connection:
        deleted_at = connection.execute(_DELETED_AT, {"id": endpoint_id}).scalar()
    return deleted_at is not None


def _check_may_register(
    known: Row[Any], caller: Caller, details: dict[str, Any], config: ServiceConfig, now: float
) -> None:
    if known.owner_id != caller.id:
        raise forbidden("ENDPOINT_ALREADY_REGISTERED", f"Endpoint {known.id} belongs to somebody else")
    if known.deleted_at is not None:
        raise not_found("ENDPOINT_NOT_FOUND", f"Endpoint {known.id} was deleted: configure a new one")
    if known.locked_until is not None and known.locked_until > now:
        raise ApiError(
            423,
            "RESOURCE_LOCKED",
            f"Endpoint id {known.id} is temporarily locked from registration until {iso(known.locked_until)}",
            {"Retry-After": str(int(known.locked_until - now) + 1)},
        )
    instance = known.details.get("instance")
    if instance != details.get("instance") and _is_taken(known, config, now):
        raise ApiError(
            409,
            "RESOURCE_CONFLICT",
            f"Endpoint {known.id} is already running as {instance or 'an agent that does not say where it is'}: "
            "stop it there first, or configure another endpoint here",
        )


def _is_taken(known: Row[Any], config: ServiceConfig, now: float) -> bool:
    """Whether an agent runs, or has just registered and is about to send its first heartbeat."""
    silent_since_registered = known.last_heartbeat_at is None or known.last_heartbeat_at < known.registered_at
    has_just_registered = silent_since_registered and now - known.registered_at < config.registration_grace_s
    return is_online(known, config, now) or has_just_registered


def broker_url_for_caller(config: ServiceConfig) -> str:
    """The broker's URL for whoever asks: they reach the broker as they reached us."""
    assert config.broker_url is not None
    asked = urlsplit(config.public_url or f"//{request.host}").hostname
    return queues.reachable_url(config.broker_url, asked)


def _declare_queues(config: ServiceConfig, endpoint_id: str) -> None:
    assert config.broker_url is not None
    wanted = (queues.tasks_queue(endpoint_id), queues.commands_queue(endpoint_id), queues.RESULTS, queues.HEARTBEATS)
    try:
        queues.declare(config.broker_url, *wanted)
    except (OperationalError, OSError) as error:
        raise ApiError(
            503,
            "BROKER_UNAVAILABLE",
            "The service cannot reach its broker now, so the endpoint cannot be registered: try again",
            {"Retry-After": "2"},
        ) from error


def _delete_tasks_queue(config: ServiceConfig, endpoint_id: str) -> None:
    """What is on it will not be run. The commands queue stays: the agent has yet to read that it is to stop."""
    assert config.broker_url is not None
    try:
        with queues.connect(config.broker_url) as connection, connection.channel() as channel:
            queues.tasks_queue(endpoint_id)(channel).delete()
    except (OperationalError, OSError) as error:
        log.warning("the queue of the deleted endpoint %s is still there: %s", endpoint_id, error)
