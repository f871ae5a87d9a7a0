"""Who may use what. Every rule is here; the views ask.

A function may be used by its owner, by everybody if it is public, and by the group that it is shared with. An endpoint
may be used by its owner, and by everybody if it is public. Tasks and their groups are their owner's alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from sqlalchemy import Connection, Row, and_, bindparam, or_, select
from sqlalchemy.sql import ColumnElement

from farcall_webservice.auth import Caller
from farcall_webservice.errors import ApiError, forbidden, not_found
from farcall_webservice.extensions import services
from farcall_webservice.ledger import IDS_PER_QUERY, Ledger
from farcall_webservice.ledger.removing import days
from farcall_webservice.models import Endpoint, Function

# Made once: every submit runs them, and putting them together costs more than running them.
_ENDPOINT = select(Endpoint).where(Endpoint.id == bindparam("id"))
_RULES_OF_FUNCTIONS = select(
    Function.id, Function.owner_id, Function.public, Function.group_id, Function.deleted_at
).where(Function.id.in_(bindparam("ids", expanding=True)))


def usable_functions_of(caller: Caller) -> ColumnElement[bool]:
    """The rule for functions as a condition of a query."""
    return or_(Function.owner_id == caller.id, shared_functions_with(caller))


def shared_functions_with(caller: Caller) -> ColumnElement[bool]:
    """Functions of others that the caller may use."""
    return and_(
        Function.owner_id != caller.id, or_(Function.public.is_(True), Function.group_id.in_(sorted(caller.groups)))
    )


def usable_endpoints_of(caller: Caller) -> ColumnElement[bool]:
    """The rule for endpoints as a condition of a query."""
    return and_(Endpoint.parent_id.is_(None), or_(Endpoint.owner_id == caller.id, Endpoint.public.is_(True)))


def usable_function(connection: Connection, caller: Caller, function_id: str) -> Row[Any]:
    """The function's whole row."""
    row = connection.execute(select(Function).where(Function.id == function_id)).one_or_none()
    _check_function(row, caller, function_id)
    assert row is not None
    return row


def owned_function(connection: Connection, caller: Caller, function_id: str) -> Row[Any]:
    """The function's whole row, for its owner."""
    row = usable_function(connection, caller, function_id)
    if row.owner_id != caller.id:
        raise forbidden("FUNCTION_ACCESS_FORBIDDEN", f"Function {function_id} belongs to somebody else")
    return row


def check_functions(connection: Connection, caller: Caller, function_ids: Iterable[str], endpoint: Row[Any]) -> None:
    """Raise :class:`ApiError` unless the caller may run all of these functions on the endpoint."""
    ids = list(function_ids)
    allowed: Collection[str] | None = None
    if endpoint.allowed_functions is not None:
        allowed = frozenset(endpoint.allowed_functions)
    found: dict[str, Row[Any]] = {}
    for start in range(0, len(ids), IDS_PER_QUERY):
        rows = connection.execute(_RULES_OF_FUNCTIONS, {"ids": ids[start : start + IDS_PER_QUERY]})
        found.update({row.id: row for row in rows})
    for function_id in ids:
        _check_function(found.get(function_id), caller, function_id)
        if allowed is not None and function_id not in allowed:
            raise forbidden("FUNCTION_NOT_PERMITTED", f"Function {function_id} not permitted on endpoint {endpoint.id}")


def usable_endpoint(connection: Connection, caller: Caller, endpoint_id: str) -> Row[Any]:
    """The endpoint's whole row."""
    row = connection.execute(_ENDPOINT, {"id": endpoint_id}).one_or_none()
    if row is None or row.parent_id is not None:
        raise not_found("ENDPOINT_NOT_FOUND", f"Endpoint {endpoint_id} not found")
    if row.owner_id != caller.id and not row.public:
        raise forbidden(
            "ENDPOINT_ACCESS_FORBIDDEN", f"Endpoint {endpoint_id} belongs to somebody else and is not public"
        )
    if row.deleted_at is not None:
        raise not_found("ENDPOINT_NOT_FOUND", f"Endpoint {endpoint_id} was deleted")
    return row


def owned_endpoint(connection: Connection, caller: Caller, endpoint_id: str) -> Row[Any]:
    """The endpoint's whole row, for its owner."""
    row = usable_endpoint(connection, caller, endpoint_id)
    if row.owner_id != caller.id:
        raise forbidden("ENDPOINT_ACCESS_FORBIDDEN", f"Endpoint {endpoint_id} belongs to somebody else")
    return row


def check_task_group(ledger: Ledger, caller: Caller, task_group_id: str) -> None:
    """Raise :class:`ApiError` unless the task group is the caller's."""
    owner_id = ledger.task_group_owner(task_group_id)
    if owner_id is None:
        raise unknown_group(task_group_id)
    if owner_id != caller.id:
        raise forbidden("TASK_GROUP_ACCESS_FORBIDDEN", f"Task group {task_group_id} belongs to somebody else")


def unknown_group(task_group_id: str) -> ApiError:
    return not_found("TASK_GROUP_NOT_FOUND", f"Task group {task_group_id} not found{_removed()}")


def _removed() -> str:
    return f": tasks and their results are removed {days(services().config.result_lifetime_s)} after their end"


def owned_task(ledger: Ledger, caller: Caller, task_id: str) -> Row[Any]:
    """The task's row, for its owner."""
    rows = ledger.tasks([task_id])
    if not rows:
        raise not_found("TASK_NOT_FOUND", f"Task {task_id} not found{_removed()}")
    if rows[0].owner_id != caller.id:
        raise forbidden("TASK_ACCESS_FORBIDDEN", f"Task {task_id} belongs to somebody else")
    return rows[0]


def check_group(caller: Caller, group_id: str) -> None:
    """Raise :class:`ApiError` unless the caller is in the group."""
    if group_id not in caller.groups:
        raise ApiError(
            403,
            "GROUP_ACCESS_FORBIDDEN",
            f"You are not in group {group_id}: only its members can share functions with it",
        )


def _check_function(row: Row[Any] | None, caller: Caller, function_id: str) -> None:
    if row is None:
        raise not_found("FUNCTION_NOT_FOUND", f"Function {function_id} could not be resolved")
    if row.owner_id != caller.id and not row.public and row.group_id not in caller.groups:
        raise forbidden(
            "FUNCTION_ACCESS_FORBIDDEN", f"Function {function_id} belongs to somebody else and is not shared with you"
        )
    if row.deleted_at is not None:
        raise not_found("FUNCTION_NOT_FOUND", f"Function {function_id} was deleted")
