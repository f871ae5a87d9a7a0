"""Tasks: submit, ask for one, for many, for a group's; wait for results."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from flask import Response, g, request
from sqlalchemy import Row

from farcall.wire import TaskState
from farcall_webservice import access, accounts, queues, registration, submission
from farcall_webservice.auth import Caller
from farcall_webservice.documents import answer, task_document, task_summary, unknown_task
from farcall_webservice.errors import ApiError
from farcall_webservice.extensions import services
from farcall_webservice.fields import iso
from farcall_webservice.ledger import TaskFilter
from farcall_webservice.openapi import Blueprint
from farcall_webservice.polling import wait_for
from farcall_webservice.reasons import reason
from farcall_webservice.schemas import (
    EXAMPLE_ID,
    BatchStatusAnswer,
    BatchStatusRequest,
    GroupResultsAnswer,
    GroupResultsQuery,
    OldSubmission,
    OldSubmitAnswer,
    ResultQueue,
    Submission,
    SubmitAnswer,
    SubmitHeaders,
    TaskDocument,
    TaskGroupAnswer,
    TaskGroupQuery,
    TasksAnswer,
    TasksQuery,
    WaitQuery,
)

blueprint = Blueprint("tasks", __name__, description="Calls of functions on endpoints, and what became of them.")

#: An answer holds no more characters of results than this (one larger result goes alone).
MAX_ANSWER_CHARACTERS = 32 * 1024 * 1024
OPTIONS = ("resource_specification", "result_serializers", "max_retries", "timeout_s")

_PAYLOAD = "9\n11\n[1, 2]5\n11\n{}"
_OTHER_ID = "5f0c9f7e-3d3b-4b52-8f55-3a5a3d2f6c11"
_TASK = {
    "task_id": EXAMPLE_ID,
    "status": "success",
    "completion_t": "1700000001.250000",
    "result": "11\n3",
    "history": [["received", 1700000000.5], ["success", 1700000001.25]],
}


@blueprint.operation(
    "POST",
    "/v3/endpoints/<id:endpoint_id>/submit",
    id="submitTasks",
    body=Submission,
    body_example={"tasks": {EXAMPLE_ID: [_PAYLOAD]}},
    headers=SubmitHeaders,
    answer=SubmitAnswer,
    example={
        "request_id": _OTHER_ID,
        "task_group_id": _OTHER_ID,
        "endpoint_id": _OTHER_ID,
        "tasks": {EXAMPLE_ID: [_OTHER_ID]},
    },
    failures=(403, 404, 409),
)
def submit_tasks(body: dict[str, Any], headers: dict[str, Any], endpoint_id: str) -> Response:
    """Submit tasks to an endpoint; they wait for it if it is offline"""
    submitted = submission.submit(
        g.caller,
        endpoint_id,
        body["tasks"],
        task_group_id=body["task_group_id"],
        options=_options(body),
        user_endpoint_config=body["user_endpoint_config"],
        idempotency_key=headers["idempotency_key"],
        raw_body=request.get_data(),
        create_queue=bool(body["create_queue"]),
    )
    receipt = submitted.receipt
    document = {
        "request_id": receipt.request_id,
        "task_group_id": receipt.task_group_id,
        "endpoint_id": receipt.endpoint_id,
        "tasks": receipt.tasks,
    }
    if submitted.warning is not None:
        document["ha_warning"] = submitted.warning
    return answer(document)


@blueprint.operation(
    "POST",
    "/v2/submit",
    id="submitTasksOld",
    body=OldSubmission,
    body_example={"tasks": [[EXAMPLE_ID, _OTHER_ID, _PAYLOAD]]},
    answer=OldSubmitAnswer,
    failures=(403, 404),
)
def submit_tasks_old(body: dict[str, Any]) -> Response:
    """Submit tasks to one or more endpoints, as older clients do"""
    by_endpoint: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for function_id, endpoint_id, payload in body["tasks"]:
        by_endpoint[endpoint_id][function_id].append(payload)
    receipts = submission.submit_to_many(
        g.caller,
        by_endpoint,
        body["task_group_id"],
        options=_options(body),
        create_queue=bool(body["create_websocket_queue"]),
    )
    made: dict[tuple[str, str], Iterator[str]] = {
        (receipt.endpoint_id, function_id): iter(ids)
        for receipt in receipts
        for function_id, ids in receipt.tasks.items()
    }
    return answer(
        {
            "response": "success",
            "task_group_id": receipts[0].task_group_id,
            "results": [
                {
                    "status": "success",
                    "task_uuid": next(made[endpoint_id, function_id]),
                    "http_status_code": 200,
                    "reason": None,
                }
                for function_id, endpoint_id, _ in body["tasks"]
            ],
        }
    )


@blueprint.operation(
    "GET",
    "/v2/tasks/<id:task_id>",
    id="getTask",
    query=WaitQuery,
    answer=TaskDocument,
    example=_TASK,
    failures=(403, 404, 429),
)
def get_task(query: dict[str, Any], task_id: str) -> Response:
    """A task; with `wait`, once it has ended or the time is over"""
    own = services()
    row = access.owned_task(own.ledger, g.caller, task_id)
    if row.completed_at is None and query["wait"]:

        def ended() -> Row[Any] | None:
            now = access.owned_task(own.ledger, g.caller, task_id)
            return now if now.completed_at is not None else None

        row = wait_for(row.task_group_id, query["wait"], ended) or row
    document = task_document(row)
    if row.completed_at is None:
        document["reason"] = reason(own, row)
    return answer(document)


@blueprint.operation("GET", "/v2/tasks", id="findTasks", query=TasksQuery, answer=TasksAnswer)
def find_tasks(query: dict[str, Any]) -> Response:
    """Your tasks, newest first, without their results"""
    wanted = TaskFilter(
        state=TaskState(query["state"]) if query["state"] is not None else None,
        endpoint_id=query["endpoint_id"],
        function_id=query["function_id"],
        task_group_id=query["task_group_id"],
        created_after=query["created_after"],
        created_before=query["created_before"],
    )
    caller: Caller = g.caller
    before = int(query["after"]) if query["after"] is not None else None
    page = services().ledger.list_tasks(caller.id, wanted, before=before, limit=query["limit"])
    more = None if page.next is None else str(page.next)
    return answer({"tasks": [task_summary(row) for row in page.rows], "next": more})


@blueprint.operation(
    "POST",
    "/v2/batch_status",
    id="getTasks",
    body=BatchStatusRequest,
    body_example={"task_ids": [EXAMPLE_ID]},
    answer=BatchStatusAnswer,
    example={"response": "batch", "results": {EXAMPLE_ID: _TASK}},
)
def get_tasks(body: dict[str, Any]) -> Response:
    """Many tasks at once; those that are unknown or somebody else's are shown as failed"""
    own = services()
    wanted: list[str] = body["task_ids"]
    limit = own.config.max_batch_tasks
    if len(wanted) > limit:
        raise ApiError(413, "BATCH_RUN_TOO_LARGE", f"{len(wanted)} tasks are asked for, the limit is {limit}")
    results = {task_id: unknown_task(task_id) for task_id in wanted}
    for row in own.ledger.tasks(list(results)):
        if row.owner_id == g.caller.id:
            results[row.id] = task_document(row)
    return answer({"response": "batch", "results": results})


@blueprint.operation(
    "GET",
    "/v2/taskgroup/<id:task_group_id>",
    id="getTaskGroup",
    query=TaskGroupQuery,
    answer=TaskGroupAnswer,
    failures=(403, 404),
)
def get_task_group(query: dict[str, Any], task_group_id: str) -> Response:
    """The tasks of a group, oldest first"""
    own = services()
    access.check_task_group(own.ledger, g.caller, task_group_id)
    if query["create_queue"] and own.result_queues.are_available:
        # Globus Compute's Executor asks this first when it takes up an older group, and consumes the queue then.
        own.result_queues.open(g.caller.id, task_group_id)
    tasks = [{"id": row.id, "created_at": iso(row.created_at)} for row in own.ledger.task_group(task_group_id)]
    return answer({"taskgroup_id": task_group_id, "create_websockets_queue": True, "tasks": tasks})


@blueprint.operation(
    "GET",
    "/v2/taskgroup/<id:task_group_id>/results",
    id="getTaskGroupResults",
    query=GroupResultsQuery,
    answer=GroupResultsAnswer,
    example={"taskgroup_id": _OTHER_ID, "cursor": 1, "results": [_TASK]},
    failures=(403, 404, 429),
)
def get_task_group_results(query: dict[str, Any], task_group_id: str) -> Response:
    """Results of a group in the order in which they came; with `wait`, once there is one after the cursor"""
    own = services()
    access.check_task_group(own.ledger, g.caller, task_group_id)
    rows = wait_for(
        task_group_id,
        query["wait"],
        lambda: own.ledger.group_results(
            task_group_id, after=query["after"], limit=query["limit"], max_characters=MAX_ANSWER_CHARACTERS
        ),
    )
    cursor = rows[-1].result_seq if rows else query["after"]
    return answer({"taskgroup_id": task_group_id, "cursor": cursor, "results": [task_document(row) for row in rows]})


@blueprint.operation(
    "GET",
    "/v2/get_amqp_result_connection_url",
    id="getResultQueue",
    answer=ResultQueue,
    example={"queue_prefix": f"tg.{_OTHER_ID}.", "connection_url": "amqp://me:secret@broker.example.org:5672/%2F"},
    failures=(409,),
)
def get_result_queue() -> dict[str, Any]:
    """Where Globus Compute's Executor consumes results: at the broker, from the queue <prefix><task group id>"""
    own = services()
    if not own.result_queues.are_available:
        raise ApiError(
            409,
            "AMQP_NOT_AVAILABLE",
            "This service does not hand out results over AMQP, since its broker is not RabbitMQ: ask for them with "
            "GET /v2/taskgroup/{id}/results, as farcall's Executor does, or with GET /v2/tasks/{id}",
        )
    return {
        "queue_prefix": queues.group_queue_prefix(g.caller.id),
        "connection_url": accounts.url_for_user(g.caller.id, registration.reached_as(own.config)),
    }


def _options(body: dict[str, Any]) -> dict[str, Any]:
    # No retries is an option too; no specification and no serializers is none.
    return {name: body[name] for name in OPTIONS if body.get(name) not in (None, {}, [])}
