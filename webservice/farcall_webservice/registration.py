"""How an endpoint comes to be, is kept from running twice, and goes: its row, its queues, its lock."""

from __future__ import annotations

import logging
import time
import uuid
from typing import Any
from urllib.parse import urlsplit

from flask import request
from kombu import Queue
from sqlalchemy import Row, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError

from farcall.wire import Command
from farcall_webservice import access, accounts, foreign, queues
from farcall_webservice.auth import Caller
from farcall_webservice.children import adopt, children_of
from farcall_webservice.config import ServiceConfig
from farcall_webservice.errors import ApiError, broker_unavailable, forbidden, not_found
from farcall_webservice.extensions import Services, services
from farcall_webservice.fields import iso
from farcall_webservice.liveness import is_recent
from farcall_webservice.models import Endpoint

log = logging.getLogger(__name__)

_UNREGISTERED = "The service cannot reach its broker now, so the endpoint cannot be registered: try again"

_BY_ID = select(Endpoint).where(Endpoint.id == bindparam("id"))
_DELETED_AT = select(Endpoint.deleted_at).where(Endpoint.id == bindparam("id"))


def is_online(endpoint: Row[Any], now: float) -> bool:
    """Whether the agent's last report is young enough."""
    return is_recent(endpoint.last_heartbeat_at, endpoint.heartbeat_period, now)


def register(caller: Caller, endpoint_id: str | None, body: dict[str, Any]) -> dict[str, Any]:
    """Make or renew an endpoint, and return what its agent needs to know."""
    own = services()
    registered_id = endpoint_id or str(uuid.uuid4())
    details = _details(own.config, body)
    with own.database.reading() as connection:
        known = connection.execute(_BY_ID, {"id": registered_id}).one_or_none()
    if known is not None:
        # Before its queues are made, of which an agent that was stopped from elsewhere must find none.
        _check_may_register(known, caller, details, own.config, time.time())
        _check_is_not_consumed(known, details, own.config)
    # After the checks, for an endpoint that is locked or somebody else's gets no account; and before all that stays,
    # for each try of an agent that is refused here would leave another endpoint.
    url = accounts.url_for_endpoint(registered_id, reached_as(own.config))
    _declare_queues(own.config, registered_id)
    try:
        _write(own, caller, registered_id, body)
    except IntegrityError:
        # Two registered the same new id at once, and the other one was first: now it is known.
        _write(own, caller, registered_id, body)
    _hand_over(own, registered_id)
    return {"endpoint_id": registered_id, "warnings": [], **queues.queue_infos(registered_id, url)}


def _write(own: Services, caller: Caller, registered_id: str, body: dict[str, Any]) -> None:
    now = time.time()
    values = {
        "name": body["endpoint_name"],
        "display_name": body["display_name"],
        "public": bool(body["public"]),
        "allowed_functions": body["allowed_functions"],
        "details": _details(own.config, body),
        "reached_as": reached_as(own.config),
        "registered_at": now,
        "deleted_at": None,
    }
    with own.database.writing() as connection:
        known = connection.execute(_BY_ID.with_for_update(), {"id": registered_id}).one_or_none()
        if known is None:
            connection.execute(
                insert(Endpoint), {"id": registered_id, "owner_id": caller.id, "created_at": now, **values}
            )
        else:
            _check_may_register(known, caller, values["details"], own.config, now)
            connection.execute(update(Endpoint).where(Endpoint.id == registered_id).values(**values))


def _hand_over(own: Services, endpoint_id: str) -> None:
    """Let what waited for an agent of another kind, a newer or an older one, wait for whoever runs tasks now.

    They are sent again once that one has said what it holds.
    """
    with own.database.reading() as connection:
        endpoint = connection.execute(_BY_ID, {"id": endpoint_id}).one()
    if not foreign.is_core(endpoint.details):
        for child in children_of(own.database, endpoint_id):
            if own.ledger.hand_over(child.id, endpoint_id, child.owner_id):
                _delete_queue(own.config, queues.tasks_queue(child.id))
        return
    owners = own.ledger.owners(endpoint_id)
    for owner_id in owners:
        own.ledger.hand_over(endpoint_id, adopt(own.database, endpoint, owner_id, None), owner_id)
    if owners:
        _delete_queue(own.config, queues.tasks_queue(endpoint_id))
        _declare_queues(own.config, endpoint_id)


def lock(caller: Caller, endpoint_id: str) -> float:
    """Tell the agent to stop and keep it from registering for a while; returns until when."""
    own = services()
    until = time.time() + own.config.lock_s
    with own.database.writing() as connection:
        endpoint = access.owned_endpoint(connection, caller, endpoint_id)
        connection.execute(update(Endpoint).where(Endpoint.id == endpoint_id).values(locked_until=until))
    _stop_agent(own, endpoint, "The endpoint was stopped from elsewhere.")
    _remove_accounts(own, endpoint_id)
    return until


def delete(caller: Caller, endpoint_id: str) -> None:
    """Forget an endpoint: its agent is told to stop, its unfinished tasks fail."""
    own = services()
    with own.database.writing() as connection:
        endpoint = access.owned_endpoint(connection, caller, endpoint_id)
        connection.execute(update(Endpoint).where(Endpoint.id == endpoint_id).values(deleted_at=time.time()))
    _stop_agent(own, endpoint, "The endpoint was deleted.")
    _remove_accounts(own, endpoint_id)
    for runner_id in _runners(own, endpoint_id):
        fail_tasks_of_deleted(own, endpoint_id, runner_id)
        # What is on it will not be run. Our agent's commands stay: it has yet to read that it is to stop.
        _delete_queue(own.config, queues.tasks_queue(runner_id))


def _runners(own: Services, endpoint_id: str) -> list[str]:
    return [endpoint_id, *(child.id for child in children_of(own.database, endpoint_id))]


def _remove_accounts(own: Services, endpoint_id: str) -> None:
    for runner_id in _runners(own, endpoint_id):
        accounts.remove_endpoint(runner_id)


def _stop_agent(own: Services, endpoint: Row[Any], reason: str) -> None:
    if foreign.is_core(endpoint.details):
        # It knows no command for this. But it ends when the queue of its commands has gone, and with it its children.
        _delete_queue(own.config, queues.commands_queue(endpoint.id))
    else:
        own.dispatcher.command(endpoint.id, Command("stop", reason))


def fail_tasks_of_deleted(own: Services, endpoint_id: str, runner_id: str) -> None:
    """End what a runner of a deleted endpoint will not run, and wake whoever waits for it."""
    reason = f"Endpoint {endpoint_id} was deleted before it had run this task: submit it to another endpoint"
    own.tell(own.ledger.fail_tasks_of_runner(runner_id, reason, code="EndpointDeleted"))


def is_deleted(own: Services, endpoint_id: str) -> bool:
    with own.database.reading() as connection:
        deleted_at = connection.execute(_DELETED_AT, {"id": endpoint_id}).scalar()
    return deleted_at is not None


def _check_may_register(
    known: Row[Any], caller: Caller, details: dict[str, Any], config: ServiceConfig, now: float
) -> None:
    if known.owner_id != caller.id or known.parent_id is not None:
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


def _check_is_not_consumed(known: Row[Any], details: dict[str, Any], config: ServiceConfig) -> None:
    """Not in a transaction: the broker may take its time."""
    if not foreign.takes_batches(details) and _is_consumed(known.id, config):
        raise ApiError(
            409,
            "RESOURCE_CONFLICT",
            f"Endpoint {known.id} is already running on {known.details.get('hostname') or 'another machine'}: stop it "
            "there first, or configure another endpoint here",
        )


def _is_taken(known: Row[Any], config: ServiceConfig, now: float) -> bool:
    """Whether an agent runs, or has just registered and is about to send its first heartbeat."""
    silent_since_registered = known.last_heartbeat_at is None or known.last_heartbeat_at < known.registered_at
    has_just_registered = silent_since_registered and now - known.registered_at < config.registration_grace_s
    return is_online(known, now) or has_just_registered


def _is_consumed(endpoint_id: str, config: ServiceConfig) -> bool:
    """Whether somebody is connected to the broker as this endpoint: for a foreign one, the best sign that it runs."""
    assert config.broker_url is not None
    try:
        each = (queues.commands_queue(endpoint_id), queues.tasks_queue(endpoint_id))
        return any(queues.consumers(config.broker_url, queue) for queue in each)
    except queues.errors_of(config.broker_url) as error:
        raise broker_unavailable(_UNREGISTERED) from error


def _details(config: ServiceConfig, body: dict[str, Any]) -> dict[str, Any]:
    details = dict(body["metadata"] or {})
    if body.get("multi_user"):
        details["multi_user"] = True
    assert config.broker_url is not None
    if foreign.is_core(details) and not queues.speaks_amqp(config.broker_url):
        raise ApiError(
            409,
            "AMQP_NOT_AVAILABLE",
            "A Globus Compute endpoint talks with RabbitMQ, and this service's broker is another one: start the "
            "service with --broker-url amqp://..., or use farcall-endpoint",
        )
    return details


def reached_as(config: ServiceConfig) -> str | None:
    """The host by which whoever asks reaches us; by the same, if need be, they reach the broker."""
    return urlsplit(config.public_url or f"//{request.host}").hostname


def _declare_queues(config: ServiceConfig, endpoint_id: str) -> None:
    assert config.broker_url is not None
    wanted = (queues.tasks_queue(endpoint_id), queues.commands_queue(endpoint_id), queues.RESULTS, queues.HEARTBEATS)
    try:
        queues.declare(config.broker_url, *wanted)
    except queues.errors_of(config.broker_url) as error:
        raise broker_unavailable(_UNREGISTERED) from error


def _delete_queue(config: ServiceConfig, queue: Queue) -> None:
    assert config.broker_url is not None
    try:
        queues.delete(config.broker_url, queue)
    except queues.errors_of(config.broker_url) as error:
        log.warning("the queue %s, which is not used any more, is still there: %s", queue.name, error)
