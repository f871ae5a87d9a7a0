"""Cancelling tasks, and what the agents of endpoints have to know of it."""

from __future__ import annotations

import time
from typing import Any

from flask import Response, g
from sqlalchemy import Row

from farcall.wire import Command, TaskState
from farcall_webservice import access
from farcall_webservice.documents import answer
from farcall_webservice.errors import ApiError
from farcall_webservice.extensions import services
from farcall_webservice.fields import iso
from farcall_webservice.ledger import Cancelled
from farcall_webservice.openapi import Blueprint
from farcall_webservice.schemas import (
    EXAMPLE_ID,
    UNKNOWN,
    CancelAnswer,
    CancelGroupAnswer,
    CancellationsAnswer,
    CancellationsConfirmed,
    CancellationsQuery,
    CancelManyAnswer,
    CancelManyRequest,
    ResultAnswer,
)

#: Whoever cancels a million tasks hears from us before somebody in between takes us for dead.
ANSWERED_WITHIN_S = 5.0

blueprint = Blueprint("cancelling", __name__, description="Ending tasks before they have ended by themselves.")

_AGENT_IS_TOLD = (
    "The task is cancelled. Its endpoint is told, and stops it if it has it; until then, it may go on for a while"
)
_NOBODY_IS_TOLD = (
    "The task is cancelled. Its endpoint cannot be told, as it is none of Farcall's: if it has the task it may run it, "
    "and what it answers is passed over"
)


@blueprint.operation(
    "POST",
    "/v2/tasks/<id:task_id>/cancel",
    id="cancelTask",
    answer=CancelAnswer,
    example={"task_id": EXAMPLE_ID, "status": "cancelled", "cancelled": True, "reason": _AGENT_IS_TOLD},
    failures=(403, 404),
)
def cancel_task(task_id: str) -> Response:
    """Cancel a task; one that has ended stays as it is, and cancelling twice is no error"""
    own = services()
    access.owned_task(own.ledger, g.caller, task_id)
    return answer(_cancel([task_id])[task_id])


@blueprint.operation(
    "POST",
    "/v2/tasks/cancel",
    id="cancelTasks",
    body=CancelManyRequest,
    body_example={"task_ids": [EXAMPLE_ID]},
    answer=CancelManyAnswer,
    example={
        "results": {
            EXAMPLE_ID: {"task_id": EXAMPLE_ID, "status": "cancelled", "cancelled": True, "reason": _AGENT_IS_TOLD}
        }
    },
)
def cancel_tasks(body: dict[str, Any]) -> Response:
    """Cancel many tasks; those that are unknown or somebody else's are shown as such"""
    own = services()
    wanted = list(dict.fromkeys(body["task_ids"]))
    limit = own.config.max_batch_tasks
    if len(wanted) > limit:
        raise ApiError(413, "BATCH_RUN_TOO_LARGE", f"{len(wanted)} tasks are to be cancelled, the limit is {limit}")
    mine = [row.id for row in own.ledger.task_summaries(wanted) if row.owner_id == g.caller.id]
    known = {*mine}
    unknown = {
        task_id: _said(task_id, UNKNOWN, f"Task {task_id} not found") for task_id in wanted if task_id not in known
    }
    return answer({"results": {**_cancel(mine), **unknown}})


@blueprint.operation(
    "POST",
    "/v2/taskgroup/<id:task_group_id>/cancel",
    id="cancelTaskGroup",
    answer=CancelGroupAnswer,
    example={"taskgroup_id": EXAMPLE_ID, "cancelled": 40, "ended": 2, "more": False},
    failures=(403, 404),
)
def cancel_task_group(task_group_id: str) -> Response:
    """Cancel tasks of a group that have not ended: all, or as many as some seconds are enough for"""
    own = services()
    access.check_task_group(own.ledger, g.caller, task_group_id)
    count, more = 0, False
    deadline = time.monotonic() + ANSWERED_WITHIN_S
    for cancelled in own.ledger.cancel_group(task_group_id):
        _tell(cancelled)
        count += len(cancelled.task_ids)
        if more := time.monotonic() >= deadline:
            break
    ended = own.ledger.results_of_group(task_group_id) - count
    return answer({"taskgroup_id": task_group_id, "cancelled": count, "ended": ended, "more": more})


@blueprint.operation(
    "GET",
    "/v3/endpoints/<id:endpoint_id>/cancellations",
    id="getCancellations",
    query=CancellationsQuery,
    answer=CancellationsAnswer,
    failures=(403, 404),
)
def get_cancellations(query: dict[str, Any], endpoint_id: str) -> Response:
    """Tasks that an endpoint's agent must not run, as far as it has not confirmed that it knows"""
    _check_owner(endpoint_id)
    return answer({"task_ids": services().ledger.cancellations(endpoint_id, limit=query["limit"])})


@blueprint.operation(
    "POST",
    "/v3/endpoints/<id:endpoint_id>/cancellations",
    id="confirmCancellations",
    body=CancellationsConfirmed,
    body_example={"task_ids": [EXAMPLE_ID]},
    answer=ResultAnswer,
    failures=(403, 404),
)
def confirm_cancellations(body: dict[str, Any], endpoint_id: str) -> Response:
    """Say that the agent has noted these; it is not told of them again. Answers how many were new"""
    _check_owner(endpoint_id)
    return answer({"result": services().ledger.confirm_cancellations(endpoint_id, body["task_ids"])})


def _check_owner(endpoint_id: str) -> None:
    with services().database.reading() as connection:
        access.owned_endpoint(connection, g.caller, endpoint_id)


def _tell(cancelled: Cancelled) -> None:
    own = services()
    own.tell(cancelled.groups)
    for agent_id in cancelled.agents:
        own.dispatcher.command(agent_id, Command("cancel"))
        # What was cancelled makes room for what is held back.
        own.dispatcher.heed(agent_id, held=False)


def _cancel(task_ids: list[str]) -> dict[str, dict[str, Any]]:
    """What is to be said of each of the caller's tasks, after it was cancelled if it could be."""
    own = services()
    cancelled = own.ledger.cancel(task_ids)
    _tell(cancelled)
    new = {*cancelled.task_ids}
    return {
        row.id: _said(row.id, row.state, _reason(row, row.id in new, row.runner_id in cancelled.agents))
        for row in own.ledger.task_summaries(task_ids)
    }


def _said(task_id: str, status: str, reason: str) -> dict[str, Any]:
    return {"task_id": task_id, "status": status, "cancelled": status == TaskState.CANCELLED, "reason": reason}


def _reason(row: Row[Any], is_new: bool, agent_is_told: bool) -> str:
    if is_new:
        return _AGENT_IS_TOLD if agent_is_told else _NOBODY_IS_TOLD
    if row.state == TaskState.CANCELLED:
        return f"The task was cancelled before, at {iso(row.completed_at)}"
    return f"The task had ended before, as {row.state} at {iso(row.completed_at)}"
