"""What tasks print, while they run and after."""

from __future__ import annotations

from typing import Any

from flask import Response, g

from farcall_webservice import access
from farcall_webservice.documents import answer
from farcall_webservice.extensions import services
from farcall_webservice.ledger import LogPart
from farcall_webservice.openapi import Blueprint
from farcall_webservice.polling import wait_for
from farcall_webservice.schemas import EXAMPLE_ID, LogAnswer, LogQuery

blueprint = Blueprint("logs", __name__, description="What tasks print.")


@blueprint.operation(
    "GET",
    "/v2/tasks/<id:task_id>/log",
    id="getTaskLog",
    query=LogQuery,
    answer=LogAnswer,
    example={"task_id": EXAMPLE_ID, "stream": "stdout", "start": 0, "next": 6, "text": "hello\n", "ended": True},
    failures=(403, 404, 429),
)
def get_task_log(query: dict[str, Any], task_id: str) -> Response:
    """What a task has printed after a place; with `wait`, once there is more or the task has ended"""
    own = services()
    row = access.owned_task(own.ledger, g.caller, task_id)

    def look() -> LogPart | None:
        part = own.ledger.log_part(task_id, query["stream"], query["after"])
        return part if part.text or part.is_all else None

    # Its group has news when it ends.
    found = wait_for((task_id, row.task_group_id), query["wait"], look)
    part = found or LogPart(query["after"], query["after"], "", is_all=False)
    return answer(
        {
            "task_id": task_id,
            "stream": query["stream"],
            "start": part.start,
            "next": part.until,
            "text": part.text,
            "ended": part.is_all,
        }
    )
