"""Submitting tasks: what a request may hold, and the way from its body to the ledger and the queue."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row

from farcall_webservice import access, foreign, registration
from farcall_webservice.auth import Caller
from farcall_webservice.children import TooMany, adopt
from farcall_webservice.config import ServiceConfig
from farcall_webservice.errors import ApiError
from farcall_webservice.extensions import services
from farcall_webservice.ids import new_id
from farcall_webservice.ledger import GroupExists, KeyReused, Receipt, Request, UnknownGroup

Payloads = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Submitted:
    """What became of a request, and what its sender should be warned of."""

    receipt: Receipt
    warning: str | None


def submit(
    caller: Caller,
    endpoint_id: str,
    payloads: Payloads,
    *,
    task_group_id: str | None,
    options: dict[str, Any] | None = None,
    user_endpoint_config: dict[str, Any] | None = None,
    idempotency_key: str | None = None,
    raw_body: bytes = b"",
    create_queue: bool = False,
) -> Submitted:
    """Write tasks to the ledger and hand them to the dispatcher.

    With ``create_queue`` their group's results go to a queue of the broker too, if it is one that clients can use.
    """
    endpoint = check(caller, {endpoint_id: payloads}, task_group_id)[endpoint_id]
    new_group_id = new_id()
    result_queues = services().result_queues
    if create_queue and result_queues.are_available:
        # Before anything is written: who is told that it failed will send it again.
        result_queues.open(caller.id, task_group_id or new_group_id)
    receipt = _write(
        caller,
        endpoint,
        payloads,
        user_endpoint_config=user_endpoint_config,
        task_group_id=task_group_id,
        new_group_id=new_group_id,
        options=options,
        idempotency_key=idempotency_key,
        digest=_digest(endpoint_id, raw_body) if idempotency_key is not None else None,
    )
    return Submitted(receipt, _warning(endpoint, user_endpoint_config, options or {}))


def submit_to_many(
    caller: Caller,
    by_endpoint: Mapping[str, Payloads],
    task_group_id: str | None,
    *,
    options: dict[str, Any] | None = None,
    create_queue: bool = False,
) -> list[Receipt]:
    """Like :func:`submit` for several endpoints, in one group. Nothing is written unless all may be.

    Who submits this way makes the id of a new group too, so one that is not known yet is made.
    """
    own = services()
    group_id = task_group_id or new_id()
    is_new = task_group_id is None or own.ledger.task_group_owner(group_id) is None
    endpoints = check(caller, by_endpoint, None if is_new else group_id)
    if create_queue and own.result_queues.are_available:
        own.result_queues.open(caller.id, group_id)
    requests = [
        Request(caller.id, endpoint_id, _runner(caller, endpoints[endpoint_id]) or endpoint_id, payloads, options or {})
        for endpoint_id, payloads in by_endpoint.items()
    ]
    try:
        receipts = own.ledger.submit_together(requests, group_id, is_new=is_new)
    except GroupExists:
        # Another request with the same new id was quicker.
        access.check_task_group(own.ledger, caller, group_id)
        receipts = own.ledger.submit_together(requests, group_id, is_new=False)
    except UnknownGroup as error:
        raise access.unknown_group(group_id) from error
    for request, receipt in zip(requests, receipts, strict=True):
        _send(receipt, request.runner_id)
    return receipts


def check(caller: Caller, by_endpoint: Mapping[str, Payloads], task_group_id: str | None) -> dict[str, Row[Any]]:
    """The endpoints' rows. Raises :class:`ApiError` unless all of this may be submitted.

    Each function and endpoint is looked up once.
    """
    own = services()
    endpoints: dict[str, Row[Any]] = {}
    _check_limits(by_endpoint, own.config)
    with own.database.reading() as connection:
        for endpoint_id, payloads in by_endpoint.items():
            endpoints[endpoint_id] = access.usable_endpoint(connection, caller, endpoint_id)
            access.check_functions(connection, caller, payloads, endpoints[endpoint_id])
    if task_group_id is not None:
        access.check_task_group(own.ledger, caller, task_group_id)
    return endpoints


def _warning(endpoint: Row[Any], user_endpoint_config: dict[str, Any] | None, options: dict[str, Any]) -> str | None:
    warnings = []
    if user_endpoint_config and not foreign.is_core(endpoint.details):
        warnings.append(
            f"user_endpoint_config was not used: endpoint {endpoint.id} has one configuration, its own, "
            "and makes no others from a template"
        )
    unknown = [name for name in ("max_retries", "timeout_s") if name in options]
    if unknown and not foreign.takes_batches(endpoint.details):
        warnings.append(
            f"endpoint {endpoint.id} is none of Farcall's and does not know {' and '.join(unknown)}: "
            "its own configuration decides"
        )
    return "; ".join(warnings) or None


def _check_limits(by_endpoint: Mapping[str, Payloads], config: ServiceConfig) -> None:
    count = sum(len(texts) for payloads in by_endpoint.values() for texts in payloads.values())
    if count > config.max_batch_tasks:
        raise ApiError(
            413,
            "BATCH_RUN_TOO_LARGE",
            f"The request holds {count} tasks, the limit is {config.max_batch_tasks}: send them in several requests",
        )
    # In characters, of which nearly all take one byte: what the arguments are is written in ASCII.
    size = sum(len(text) for payloads in by_endpoint.values() for texts in payloads.values() for text in texts)
    for payloads in by_endpoint.values():
        for function_id, texts in payloads.items():
            for text in texts:
                # A character takes at most four bytes, so that most need not be encoded to be measured.
                if 4 * len(text) > config.max_payload_bytes:
                    _check_size(text, function_id, config)
    if size > config.max_batch_bytes:
        raise ApiError(
            413,
            "BATCH_RUN_TOO_LARGE",
            f"The arguments of the request's {count} tasks take {size} bytes, the limit is {config.max_batch_bytes}: "
            "send them in several requests",
        )


def _check_size(text: str, function_id: str, config: ServiceConfig) -> None:
    size = len(text.encode())
    if size > config.max_payload_bytes:
        raise ApiError(
            413,
            "TASK_PAYLOAD_TOO_LARGE",
            f"The arguments of a task of function {function_id} take {size} bytes, the limit is "
            f"{config.max_payload_bytes}: put large data where the endpoint can read it and send its path",
        )


def _write(
    caller: Caller,
    endpoint: Row[Any],
    payloads: Payloads,
    *,
    user_endpoint_config: dict[str, Any] | None = None,
    task_group_id: str | None,
    new_group_id: str,
    options: dict[str, Any] | None = None,
    idempotency_key: str | None = None,
    digest: str | None = None,
) -> Receipt:
    own = services()
    endpoint_id, runner_id = endpoint.id, _runner(caller, endpoint, user_endpoint_config)
    try:
        receipt = own.ledger.submit(
            owner_id=caller.id,
            endpoint_id=endpoint_id,
            runner_id=runner_id,
            payloads=payloads,
            task_group_id=task_group_id,
            new_group_id=new_group_id,
            options=options,
            idempotency_key=idempotency_key,
            digest=digest,
        )
    except KeyReused as error:
        raise ApiError(
            409,
            "RESOURCE_CONFLICT",
            f"Idempotency-Key {idempotency_key!r} was used for a different request: use a new key",
        ) from error
    except UnknownGroup as error:
        raise access.unknown_group(str(error)) from error
    _send(receipt, runner_id or endpoint_id)
    return receipt


def _send(receipt: Receipt, runner_id: str) -> None:
    own = services()
    if receipt.is_held:
        own.dispatcher.heed(runner_id, held=True)
    own.dispatcher.send(receipt.outgoing)
    # A deletion may have come between the check and the commit; its sweep has missed these tasks then.
    if registration.is_deleted(own, receipt.endpoint_id):
        registration.fail_tasks_of_deleted(own, receipt.endpoint_id, runner_id)


def _runner(caller: Caller, endpoint: Row[Any], user_endpoint_config: dict[str, Any] | None = None) -> str | None:
    """The user endpoint that is to run tasks; None where the endpoint itself does."""
    if not foreign.is_core(endpoint.details):
        return None
    try:
        return adopt(services().database, endpoint, caller.id, user_endpoint_config)
    except TooMany as error:
        raise ApiError(429, "TOO_MANY_USER_ENDPOINTS", str(error), {"Retry-After": "60"}) from error


def _digest(endpoint_id: str, raw_body: bytes) -> str:
    return hashlib.sha256(endpoint_id.encode() + b"\n" + raw_body).hexdigest()
