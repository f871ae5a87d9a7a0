"""Tasks as answers show them, from the ledger's rows."""

from __future__ import annotations

from typing import Any

import orjson
from flask import Response, request
from sqlalchemy import Row

from farcall.wire import TaskState
from farcall_webservice import foreign
from farcall_webservice.fields import iso
from farcall_webservice.ledger import history


def answer(body: Any) -> Response:
    """Write an answer as it is. Answers of thousands of tasks do not go through a schema field by field."""
    return Response(orjson.dumps(body), mimetype="application/json")


def task_summary(row: Row[Any]) -> dict[str, Any]:
    """A task without its result. ``completion_t`` is there only when it has ended: older clients look for the key."""
    summary = {
        "task_id": row.id,
        "status": row.state,
        "task_group_id": row.task_group_id,
        "endpoint_id": row.endpoint_id,
        "function_id": row.function_id,
        "created_at": iso(row.created_at),
    }
    if row.completed_at is not None:
        summary["completion_t"] = f"{row.completed_at:.6f}"
    if row.error_code is not None:
        summary["error_code"] = row.error_code
    return summary


def task_document(row: Row[Any]) -> dict[str, Any]:
    """A whole task. Whether it has a result or an exception is told by the presence of the key."""
    task = task_summary(row)
    task["history"] = history.read(row.history)
    if row.completed_at is None:
        return task
    if row.state == TaskState.SUCCESS:
        task["result"] = row.outcome
    else:
        task["exception"] = row.outcome or f"The task ended as {row.state}"
    if row.state == TaskState.CANCELLED:
        task["reason"] = task["exception"]
        if foreign.knows_no_cancelled(request.headers.get("User-Agent", "")):
            task["status"] = TaskState.FAILED.value
    if row.exception_object is not None:
        task["exception_object"] = row.exception_object
    if row.details is not None:
        task["details"] = row.details
    return task


def unknown_task(task_id: str) -> dict[str, Any]:
    """A task that is not there, among others that are: it has failed, so that nobody waits for it."""
    return {
        "task_id": task_id,
        "status": TaskState.FAILED.value,
        "completion_t": "0",
        "error_code": "TASK_NOT_FOUND",
        "reason": "Unknown task id",
        "exception": f"Task {task_id} not found",
    }
