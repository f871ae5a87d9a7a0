"""The bodies, parameters and answers of the routes.

A request may hold more than is named here: a newer client's extra fields are passed over. The names are those of Globus
Compute where it has the notion.
"""

from __future__ import annotations

from typing import Any

from marshmallow import EXCLUDE, RAISE, Schema, fields
from marshmallow.validate import Length, OneOf, Range, Regexp

from farcall.wire import STREAMS, TaskState
from farcall_webservice.fields import Flag, Id, JsonObject, Moment, Payloads, Text

#: PostgreSQL's and SQLite's largest integer.
LARGEST = 2**63 - 1
#: Thirty years.
MOST_SECONDS = 1e9

TASK_STATES = [state.value for state in TaskState]
#: What is said of a task that is not there, among others that are.
UNKNOWN = "unknown"
_NEXT_PAGE = "`next` of the answer before; left out for the first page."
EXAMPLE_ID = "0b2d9a3e-5c1f-4f6e-9d0a-7d1c1e2f3a4b"


def nothing() -> None:
    """The value of what was left out. As a function, since a plain None would make null a value that may be sent."""


class RequestSchema(Schema):
    class Meta:
        unknown = EXCLUDE


def _said(text: str, **more: Any) -> dict[str, Any]:
    return {"description": text, **more}


class ErrorSchema(Schema):
    code = fields.String(required=True, metadata=_said("For programs.", example="TASK_NOT_FOUND"))
    message = fields.String(required=True, metadata=_said("For people: what was wrong, with what, and what to do."))
    request_id = fields.String(required=True, metadata=_said("Under this id the service's log may say more."))
    status = fields.String(required=True, metadata=_said("Always `Failed`."))
    reason = fields.String(required=True, metadata=_said("The same as `message`, for older clients."))
    http_status_code = fields.Integer(required=True)
    error_args = fields.List(fields.String(), required=True)
    error = fields.String(metadata=_said("Under `/auth/`: the same as `code`, as OAuth has it."))
    error_description = fields.String(metadata=_said("Under `/auth/`: the same as `message`, as OAuth has it."))


class PageQuery(RequestSchema):
    class Meta:
        # Without the filter whose name was mistyped, a listing would show everything.
        unknown = RAISE

    limit = fields.Integer(load_default=100, validate=Range(1, 1000), metadata=_said("At most so many in one answer."))


# -- the service ------------------------------------------------------------------------------------------------------


class VersionQuery(RequestSchema):
    service = Text(load_default=nothing, metadata=_said("`all` for the versions of clients too; else a bare text."))


class HealthAnswer(Schema):
    status = fields.String(required=True, metadata={"enum": ["ok"]})
    database = fields.String(required=True, metadata={"enum": ["ok"]})
    broker = fields.String(required=True, metadata={"enum": ["ok"]})


class LimitsAnswer(Schema):
    max_function_bytes = fields.Integer(required=True)
    max_payload_bytes = fields.Integer(required=True, metadata=_said("Of one task's packed arguments."))
    max_batch_bytes = fields.Integer(
        required=True, metadata=_said("Of the packed arguments of all tasks of a request.")
    )
    max_request_bytes = fields.Integer(required=True, metadata=_said("Of a whole request's body."))
    max_batch_tasks = fields.Integer(required=True, metadata=_said("Tasks in one request."))
    max_wait_s = fields.Float(required=True, metadata=_said("The longest that a request is held for news."))
    result_lifetime_s = fields.Integer(required=True, metadata=_said("How long a task is kept after its end."))
    task_lifetime_s = fields.Integer(
        required=True, metadata=_said("A task that nothing is heard of for so long is given up, and has failed.")
    )
    max_log_characters = fields.Integer(
        required=True, metadata=_said("Of what a task prints, the last so many are kept of each stream.")
    )


class GroupDocument(Schema):
    id = fields.String(required=True, metadata={"format": "uuid"})
    name = fields.String(required=True)


class WhoamiAnswer(Schema):
    id = fields.String(required=True, metadata={"format": "uuid"})
    name = fields.String(required=True)
    groups = fields.List(fields.Nested(GroupDocument), required=True)


# -- functions --------------------------------------------------------------------------------------------------------


class FunctionRegistration(RequestSchema):
    function_name = Text(required=True, validate=Length(1, 1000))
    function_code = Text(
        required=True,
        validate=Length(min=1),
        metadata=_said("One packed buffer (its length, a newline, the serialised function), or source text."),
    )
    serialized = Flag(load_default=True, metadata=_said("false: `function_code` is source text.", default=True))
    meta = JsonObject(load_default=nothing, allow_none=True, metadata=_said("Such as `python_version`."))
    metadata = JsonObject(load_default=nothing, allow_none=True, metadata=_said("Another name for `meta`."))
    description = Text(load_default=nothing, allow_none=True, validate=Length(max=100_000))
    public = Flag(load_default=False, allow_none=True, metadata=_said("Everybody may use it.", default=False))
    group = Id(load_default=nothing, allow_none=True, metadata=_said("The members of this group may use it."))


class FunctionRegistered(Schema):
    function_uuid = fields.String(required=True, metadata={"format": "uuid"})


class FunctionSummary(Schema):
    function_uuid = fields.String(required=True, metadata={"format": "uuid"})
    function_name = fields.String(required=True)
    description = fields.String(required=True, allow_none=True)
    metadata = fields.Dict(required=True)
    owner = fields.String(required=True, metadata={"format": "uuid"})
    public = fields.Boolean(required=True)
    group = fields.String(required=True, allow_none=True, metadata={"format": "uuid"})
    created_at = fields.String(required=True, metadata={"format": "date-time"})


class FunctionDocument(FunctionSummary):
    function_code = fields.String(required=True)


class FunctionsQuery(PageQuery):
    after = Id(load_default=nothing, metadata=_said(_NEXT_PAGE))
    search = Text(
        load_default=nothing,
        validate=Length(max=1000),
        metadata=_said("Each word has to be in the name, the description or the metadata."),
    )
    scope = fields.String(
        load_default="all",
        validate=OneOf(["mine", "shared", "all"]),
        metadata=_said("`mine`: yours; `shared`: others' that you may use."),
    )


class FunctionsAnswer(Schema):
    functions = fields.List(fields.Nested(FunctionSummary), required=True)
    next = fields.String(required=True, allow_none=True)


class ResultAnswer(Schema):
    result = fields.Integer(required=True, metadata=_said("A number without meaning, which older clients expect."))


# -- endpoints --------------------------------------------------------------------------------------------------------


class EndpointRegistration(RequestSchema):
    endpoint_name = Text(required=True, validate=Length(1, 255))
    display_name = Text(load_default=nothing, allow_none=True, validate=Length(max=1000))
    metadata = JsonObject(
        load_default=nothing,
        allow_none=True,
        metadata=_said(
            "What the agent says of itself. `accepts`: [`task_batch`] announces that it takes many tasks in one "
            "message; `instance` tells one installation from another.",
        ),
    )
    public = Flag(load_default=False, allow_none=True, metadata=_said("Everybody may submit to it.", default=False))
    multi_user = Flag(
        load_default=False,
        allow_none=True,
        metadata=_said("It runs each user's tasks under an account of theirs (Globus Compute).", default=False),
    )
    allowed_functions = fields.List(
        Id(), load_default=nothing, allow_none=True, metadata=_said("Only these may run; left out: any.")
    )


class OldEndpointRegistration(EndpointRegistration):
    endpoint_uuid = Id(load_default=nothing, allow_none=True, metadata=_said("Left out: a new one is made."))


class QueueInfo(Schema):
    connection_url = fields.String(required=True)
    queue = fields.String(required=True)
    exchange = fields.String()
    queue_publish_kwargs = fields.Dict(metadata=_said("How to publish: exchange, routing_key, mandatory, properties."))


class EndpointRegistered(Schema):
    endpoint_id = fields.String(required=True, metadata={"format": "uuid"})
    task_queue_info = fields.Nested(QueueInfo, required=True)
    result_queue_info = fields.Nested(QueueInfo, required=True)
    heartbeat_queue_info = fields.Nested(QueueInfo, required=True)
    command_queue_info = fields.Nested(QueueInfo, required=True)
    warnings = fields.List(fields.String(), required=True)


class EndpointSummary(Schema):
    uuid = fields.String(required=True, metadata={"format": "uuid"})
    name = fields.String(required=True)
    display_name = fields.String(required=True, allow_none=True)
    owner = fields.String(required=True, metadata={"format": "uuid"})


class EndpointDocument(EndpointSummary):
    multi_user = fields.Boolean(required=True)
    public = fields.Boolean(required=True)
    endpoint_config = fields.Raw(metadata=_said("As the agent sent it.", type="string", nullable=True))
    user_config_template = fields.Raw(metadata=_said("As the agent sent it.", type="string", nullable=True))
    user_config_schema = fields.Raw(metadata=_said("As the agent sent it.", type="object", nullable=True))
    description = fields.String(allow_none=True)
    hostname = fields.String(allow_none=True)
    local_user = fields.String(allow_none=True)
    ip_address = fields.String(allow_none=True)
    endpoint_version = fields.String(allow_none=True)
    sdk_version = fields.String(allow_none=True)
    subscription_uuid = fields.String(allow_none=True)
    metadata = fields.Dict(required=True, metadata=_said("All that the agent said of itself when it registered."))


class EndpointsQuery(RequestSchema):
    role = fields.String(
        load_default="owner",
        validate=OneOf(["owner", "any"]),
        metadata=_said("`owner`: yours; `any`: all that you may submit to."),
    )


class EndpointStatus(Schema):
    status = fields.String(required=True, metadata={"enum": ["online", "offline"]})
    details = fields.Dict(required=True, metadata=_said("What the agent last reported."))
    logs = fields.List(fields.Dict(), required=True, metadata=_said("Reports, newest first; there is always one."))


class AllowedFunctions(Schema):
    endpoint_id = fields.String(required=True, metadata={"format": "uuid"})
    restricted = fields.Boolean(required=True)
    functions = fields.List(fields.String(metadata={"format": "uuid"}), required=True)


class LockAnswer(Schema):
    endpoint_id = fields.String(required=True, metadata={"format": "uuid"})
    lock_expiration_timestamp = fields.String(required=True, metadata={"format": "date-time"})


# -- tasks ------------------------------------------------------------------------------------------------------------


class SubmitHeaders(RequestSchema):
    idempotency_key = Text(
        data_key="Idempotency-Key",
        load_default=nothing,
        validate=Length(1, 128),
        metadata=_said("The same key from the same user answers as the first time and makes no second task."),
    )


class Retries(fields.Integer):
    """How often a task is run again whose worker or node was lost."""

    def __init__(self) -> None:
        said = "How often each task is run again whose worker or node was lost; 0: it is never started twice."
        super().__init__(
            strict=True, load_default=nothing, allow_none=True, validate=Range(0, 1000), metadata=_said(said)
        )


class Timeout(fields.Float):
    """Seconds after which a task is stopped."""

    def __init__(self) -> None:
        said = "Seconds after which each task is stopped, and has failed."
        positive = Range(0, MOST_SECONDS, min_inclusive=False)
        super().__init__(load_default=nothing, allow_none=True, validate=positive, metadata=_said(said))


class Submission(RequestSchema):
    tasks = Payloads(required=True, metadata=_said("Function id -> packed arguments, a text a task."))
    task_group_id = Id(load_default=nothing, allow_none=True, metadata=_said("One of yours; left out: a new one."))
    create_queue = Flag(
        load_default=False,
        allow_none=True,
        metadata=_said("The results also go to a queue of the broker, if that is RabbitMQ: see getResultQueue."),
    )
    resource_specification = JsonObject(load_default=nothing, allow_none=True)
    result_serializers = fields.List(
        Text(validate=Length(max=1000)), load_default=nothing, allow_none=True, validate=Length(max=100)
    )
    max_retries = Retries()
    timeout_s = Timeout()
    user_endpoint_config = JsonObject(load_default=nothing, allow_none=True)
    user_runtime = JsonObject(load_default=nothing, allow_none=True)


class SubmitAnswer(Schema):
    request_id = fields.String(required=True, metadata={"format": "uuid"})
    task_group_id = fields.String(required=True, metadata={"format": "uuid"})
    endpoint_id = fields.String(required=True, metadata={"format": "uuid"})
    tasks = fields.Dict(
        keys=fields.String(),
        values=fields.List(fields.String(metadata={"format": "uuid"})),
        required=True,
        metadata=_said("Function id -> task ids, in the order of the request."),
    )
    ha_warning = fields.String(metadata=_said("Only where there is something to warn of."))


class OldSubmission(RequestSchema):
    tasks = fields.List(
        fields.Tuple(
            (Id(), Id(), Text()), metadata={"type": "array", "items": {"type": "string"}, "minItems": 3, "maxItems": 3}
        ),
        required=True,
        validate=Length(min=1),
        metadata=_said("Each a list of function id, endpoint id, packed arguments."),
    )
    task_group_id = Id(load_default=nothing, allow_none=True, metadata=_said("One of yours, or a new one's."))
    create_websocket_queue = Flag(
        load_default=False, allow_none=True, metadata=_said("What `create_queue` is to newer clients.")
    )
    max_retries = Retries()
    timeout_s = Timeout()


class OldSubmitted(Schema):
    status = fields.String(required=True)
    task_uuid = fields.String(required=True, metadata={"format": "uuid"})
    http_status_code = fields.Integer(required=True)
    reason = fields.String(required=True, allow_none=True)


class OldSubmitAnswer(Schema):
    response = fields.String(required=True)
    task_group_id = fields.String(required=True, metadata={"format": "uuid"})
    results = fields.List(fields.Nested(OldSubmitted), required=True)


class WaitQuery(RequestSchema):
    wait = fields.Float(
        load_default=0.0,
        validate=Range(0, 25),
        metadata=_said("Hold the request for up to so many seconds if there is nothing to tell yet."),
    )


class TaskSummary(Schema):
    task_id = fields.String(required=True, metadata={"format": "uuid"})
    status = fields.String(required=True, metadata={"enum": TASK_STATES})
    task_group_id = fields.String(metadata={"format": "uuid"})
    endpoint_id = fields.String(metadata={"format": "uuid"})
    function_id = fields.String(metadata={"format": "uuid"})
    created_at = fields.String(metadata={"format": "date-time"})
    completion_t = fields.String(metadata=_said("When it ended, in seconds since 1970; only when it has."))
    error_code = fields.String(metadata=_said("Why it failed, for programs.", example="RemoteExecutionError"))


class TaskDocument(TaskSummary):
    history = fields.List(
        fields.List(fields.Raw()),
        metadata=_said(
            "States, when each began, and perhaps a note.",
            example=[
                ["received", 1700000000.5],
                ["waiting-for-nodes", 1700000000.7, "attempt 1 of 3 ended: ..."],
                ["success", 1700000001.25],
            ],
        ),
    )
    result = fields.String(metadata=_said("The serialised value; only where there is one."))
    exception = fields.String(metadata=_said("The traceback, or why the task was not run; only where it failed."))
    exception_object = fields.String(metadata=_said("The serialised exception, where it could be serialised."))
    details = fields.Dict(metadata=_said("What the worker said of itself."))
    reason = fields.String(
        metadata=_said("Why an unfinished task waits (getTask only), or why one was cancelled or is not known.")
    )


class BatchStatusRequest(RequestSchema):
    task_ids = fields.List(Id(), required=True, validate=Length(max=100_000))


class BatchStatusAnswer(Schema):
    response = fields.String(required=True, metadata=_said("Always `batch`."))
    results = fields.Dict(keys=fields.String(), values=fields.Nested(TaskDocument), required=True)


class TaskGroupQuery(RequestSchema):
    create_queue = fields.Boolean(
        load_default=True,
        metadata=_said("Make the queue at the broker that new results of the group go to, where it has none."),
    )


class TaskGroupTask(Schema):
    id = fields.String(required=True, metadata={"format": "uuid"})
    created_at = fields.String(required=True, metadata={"format": "date-time"})


class TaskGroupAnswer(Schema):
    taskgroup_id = fields.String(required=True, metadata={"format": "uuid"})
    create_websockets_queue = fields.Boolean(required=True)
    tasks = fields.List(fields.Nested(TaskGroupTask), required=True)


class GroupResultsQuery(WaitQuery):
    after = fields.Integer(
        load_default=0, validate=Range(0, LARGEST), metadata=_said("`cursor` of the answer before; 0 at first.")
    )
    limit = fields.Integer(load_default=1000, validate=Range(1, 1000), metadata=_said("At most so many results."))


class GroupResultsAnswer(Schema):
    taskgroup_id = fields.String(required=True, metadata={"format": "uuid"})
    cursor = fields.Integer(required=True)
    results = fields.List(fields.Nested(TaskDocument), required=True)


class TasksQuery(PageQuery):
    after = fields.String(
        load_default=nothing, validate=Regexp("^[0-9]{1,18}$"), metadata=_said(_NEXT_PAGE, pattern="^[0-9]{1,18}$")
    )
    state = fields.String(load_default=nothing, validate=OneOf(TASK_STATES))
    endpoint_id = Id(load_default=nothing)
    function_id = Id(load_default=nothing)
    task_group_id = Id(load_default=nothing)
    created_after = Moment(load_default=nothing)
    created_before = Moment(load_default=nothing)


class TasksAnswer(Schema):
    tasks = fields.List(
        fields.Nested(TaskSummary),
        required=True,
        metadata=_said("There may be fewer than `limit`, or none, although there is a next page."),
    )
    next = fields.String(required=True, allow_none=True, metadata=_said("What to ask for next, as `after`."))


class CancelAnswer(Schema):
    task_id = fields.String(required=True, metadata={"format": "uuid"})
    status = fields.String(required=True, metadata={"enum": TASK_STATES})
    cancelled = fields.Boolean(required=True, metadata=_said("Whether the task has ended by being cancelled."))
    reason = fields.String(required=True, metadata=_said("What has become of it, for people."))


class CancelManyRequest(RequestSchema):
    task_ids = fields.List(Id(), required=True, validate=Length(max=100_000))


class CancelledTask(CancelAnswer):
    status = fields.String(
        required=True, metadata={"enum": [*TASK_STATES, UNKNOWN], **_said("`unknown`: there is no such task of yours.")}
    )


class CancelManyAnswer(Schema):
    results = fields.Dict(keys=fields.String(), values=fields.Nested(CancelledTask), required=True)


class CancelGroupAnswer(Schema):
    taskgroup_id = fields.String(required=True, metadata={"format": "uuid"})
    cancelled = fields.Integer(required=True, metadata=_said("So many tasks this request has cancelled."))
    ended = fields.Integer(required=True, metadata=_said("So many had ended before, in whatever way."))
    more = fields.Boolean(required=True, metadata=_said("Others may be left: the same request goes on with them."))


class CancellationsQuery(RequestSchema):
    limit = fields.Integer(load_default=10_000, validate=Range(1, 10_000), metadata=_said("At most so many."))


class CancellationsAnswer(Schema):
    task_ids = fields.List(
        fields.String(metadata={"format": "uuid"}), required=True, metadata=_said("Oldest cancellation first.")
    )


class CancellationsConfirmed(RequestSchema):
    task_ids = fields.List(Id(), required=True, validate=Length(max=100_000))


class LogQuery(WaitQuery):
    stream = fields.String(load_default="stdout", validate=OneOf(STREAMS))
    after = fields.Integer(
        load_default=0, validate=Range(0, LARGEST), metadata=_said("`next` of the answer before; 0 at first.")
    )


class LogAnswer(Schema):
    task_id = fields.String(required=True, metadata={"format": "uuid"})
    stream = fields.String(required=True, metadata={"enum": list(STREAMS)})
    start = fields.Integer(
        required=True,
        metadata=_said("The place of the first character, from the task's first. Above `after`: some were not kept."),
    )
    next = fields.Integer(required=True, metadata=_said("What to ask for next, as `after`."))
    text = fields.String(required=True)
    ended = fields.Boolean(required=True, metadata=_said("The task has ended, and there is nothing after `next`."))


class ResultQueue(Schema):
    queue_prefix = fields.String(required=True)
    connection_url = fields.String(required=True)
