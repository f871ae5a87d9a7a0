"""What travels between service, agent and worker: states, packed buffers, messages and their envelope.

A message on a queue is the byte ``0x01`` followed by UTF-8 JSON ``{"message_type": ..., "data": {...}}``. The types
``task``, ``result`` and ``ep_status_report`` are those of Globus Compute; ``task_batch``, ``result_batch``,
``output_batch``, ``dead_letter`` and ``command`` are Farcall's own, for a peer that knows them. Unknown fields are
ignored, so that either side may be the newer one. Nothing here unpickles anything.
"""

from __future__ import annotations

import base64
import enum
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from farcall.errors import WireError

ENVELOPE_VERSION = b"\x01"

#: What an agent names under ``accepts`` in its registration metadata to be sent many tasks in one message.
ACCEPTS_TASK_BATCH = "task_batch"


class TaskState(enum.StrEnum):
    """Where a task is. The service's ledger alone moves a task from one to the next."""

    #: Its row is committed; its message has not gone out yet.
    RECEIVED = "received"
    #: Its message is on the endpoint's queue.
    WAITING_FOR_EP = "waiting-for-ep"
    #: The agent holds it, in its journal.
    WAITING_FOR_NODES = "waiting-for-nodes"
    #: The engine has it; no worker has started it yet.
    WAITING_FOR_LAUNCH = "waiting-for-launch"
    RUNNING = "running"
    SUCCESS = "success"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in FINAL_STATES


FINAL_STATES = frozenset({TaskState.SUCCESS, TaskState.FAILED, TaskState.CANCELLED})

#: The names that Globus Compute's workers give to the two ends of a run.
EXECUTION_START = "execution-start"
EXECUTION_END = "execution-end"

#: So much is kept of a message that cannot be used.
MOST_DEAD_LETTER_BYTES = 64 * 1024

#: The two streams that a task prints to.
STREAMS = ("stdout", "stderr")


def pack_buffers(buffers: Iterable[str]) -> str:
    r"""Join texts so that they can be told apart again, each preceded by its length in characters and a newline.

    >>> pack_buffers(["ab", ""])
    '2\nab0\n'
    """
    return "".join(f"{len(buffer)}\n{buffer}" for buffer in buffers)


def unpack_buffers(packed: str) -> list[str]:
    r"""Take apart what :func:`pack_buffers` joined. Raises :class:`WireError` for anything else.

    >>> unpack_buffers("2\nab0\n")
    ['ab', '']
    """
    buffers = []
    position = 0
    while position < len(packed):
        newline = packed.find("\n", position)
        length = packed[position:newline] if newline > 0 else ""
        # isdecimal() alone would let through digits of other scripts.
        if not (length.isascii() and length.isdecimal()) or len(length) > 18:
            raise WireError(f"packed buffers: no length at character {position}")
        start, end = newline + 1, newline + 1 + int(length)
        if end > len(packed):
            raise WireError(f"packed buffers: {length} characters were announced at {position}, fewer are there")
        buffers.append(packed[start:end])
        position = end
    return buffers


@dataclass(frozen=True, slots=True)
class Transition:
    """A state, when it began (nanoseconds since 1970), who says so (``worker``, ``endpoint``, ...), and perhaps why."""

    timestamp: int
    state: str
    actor: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Task:
    """One task for a foreign endpoint.

    ``task_buffer`` is the function's packed code followed by the packed arguments.
    """

    task_id: str
    task_buffer: str


@dataclass(frozen=True, slots=True)
class FunctionCode:
    """A function's packed code, and the Python version (``3.11.7``) that wrote it where that is known."""

    code: str
    python_version: str | None = None


@dataclass(frozen=True, slots=True)
class BatchedTask:
    """One task of a :class:`TaskBatch`.

    ``payload`` is the packed arguments: two buffers, positional and keyword. ``options`` holds what the submitter
    set of ``resource_specification`` (a mapping), ``result_serializers`` (a list of import paths), ``max_retries``
    (how often the task is run again whose worker or node was lost; 0 = it is never started twice) and ``timeout_s``
    (seconds after which it is stopped). ``may_have_started`` says that the task was sent before, and taken: who has its
    result sends that once more, and nobody runs it again that must not start twice.
    """

    task_id: str
    function_id: str
    payload: str
    options: Mapping[str, Any] = field(default_factory=dict)
    may_have_started: bool = False


@dataclass(frozen=True, slots=True)
class TaskBatch:
    """Many tasks for one endpoint, and the code of every function they name, once."""

    functions: Mapping[str, FunctionCode]
    tasks: Sequence[BatchedTask]


@dataclass(frozen=True, slots=True)
class ErrorDetails:
    """Why a task failed: a code for programs (``RemoteExecutionError``, ``WorkerLost``, ...), a sentence for people."""

    code: str
    user_message: str


@dataclass(frozen=True, slots=True)
class Result:
    """How a task ended.

    ``data`` is the serialised value, or, where ``error_details`` is set, the text of the traceback. ``details``
    describes the worker (``os``, ``python_version``, ``dill_version``, ``endpoint_id``, ...).
    ``exception_object`` is the serialised exception, where it could be serialised, so that the submitter can raise
    the original class.
    """

    task_id: str
    data: str
    details: Mapping[str, Any] | None = None
    error_details: ErrorDetails | None = None
    task_statuses: Sequence[Transition] = ()
    exception_object: str | None = None


@dataclass(frozen=True, slots=True)
class ResultBatch:
    """Results of one endpoint that travel together."""

    results: Sequence[Result]


@dataclass(frozen=True, slots=True)
class Output:
    """A piece of what a running task has printed.

    ``stream`` is ``stdout`` or ``stderr``; ``start`` is the place of the piece's first character, counted from the
    task's first. Pieces may be missing: of a task that prints much, not all is kept.
    """

    task_id: str
    stream: str
    start: int
    text: str


@dataclass(frozen=True, slots=True)
class OutputBatch:
    """Pieces of the output of one endpoint's tasks. It travels on the way of the results."""

    pieces: Sequence[Output]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that an agent cannot use, for the service to set aside. It travels on the way of the results.

    ``queue`` is where it came from, ``reason`` says in words what is wrong with it. ``body`` holds its first
    :data:`MOST_DEAD_LETTER_BYTES` bytes, ``size`` says how many it had.
    """

    queue: str
    reason: str
    body: bytes
    size: int


@dataclass(frozen=True, slots=True)
class StatusReport:
    """What an agent says of itself with each heartbeat.

    ``global_state`` holds ``heartbeat_period`` (seconds; 0 = going offline now), ``total_workers``,
    ``outstanding_tasks`` and whatever else the agent knows; why tasks may have to wait follows from ``pending_tasks``
    (those that wait in the agent), ``idle_workers``, ``blocks`` (``id``, ``state`` and ``message``, the system's words,
    of each that has not ended and of the last that failed) and ``troubles`` (sentences, the most important first).
    ``task_statuses`` maps a task's id to its latest transitions. ``holds`` lists the tasks that the agent has and has
    not yet reported a result of; None means that it does not say (a foreign endpoint).
    """

    endpoint_id: str
    global_state: Mapping[str, Any]
    task_statuses: Mapping[str, Sequence[Transition]] = field(default_factory=dict)
    holds: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class Command:
    """What the service tells an agent, with the reason in words: ``stop``, or ``cancel``.

    ``cancel`` names no tasks: the agent asks the service which of its tasks have been cancelled.
    """

    command: str
    reason: str = ""


Message: TypeAlias = Task | TaskBatch | Result | ResultBatch | OutputBatch | DeadLetter | StatusReport | Command


def encode(message: Message) -> bytes:
    """Put a message into its envelope."""
    message_type, data = _WRITERS[type(message)](message)
    return ENVELOPE_VERSION + json.dumps(
        {"message_type": message_type, "data": data}, separators=(",", ":"), ensure_ascii=False
    ).encode("utf-8", "surrogatepass")


def decode(body: bytes) -> Message:
    """Take a message out of its envelope. Raises :class:`WireError`, which says what was wrong with it."""
    if body[:1] != ENVELOPE_VERSION:
        raise WireError(f"not a message: it begins with {bytes(body[:1])!r}, not with {ENVELOPE_VERSION!r}")
    try:
        document = json.loads(body[1:].decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise WireError(f"not a message: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("data"), dict):
        raise WireError("not a message: it is not an object with 'message_type' and 'data'")
    message_type = document.get("message_type")
    reader = _READERS.get(message_type) if isinstance(message_type, str) else None
    if reader is None:
        raise WireError(f"unknown message type {message_type!r}")
    try:
        message: Message = reader(document["data"])
        return message
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise WireError(f"malformed {message_type!r} message: {type(error).__name__}: {error}") from error


# -- One writer and one reader a type, side by side -------------------------------------------------------------------


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a text, got {type(value).__name__}")
    return value


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"expected an object, got {type(value).__name__}")
    return value


def _write_transition(transition: Transition) -> dict[str, Any]:
    said = {"timestamp": transition.timestamp, "state": transition.state, "actor": transition.actor}
    return {**said, "note": transition.note} if transition.note else said


def _read_transition(data: Any) -> Transition:
    return Transition(
        int(data["timestamp"]), _text(data["state"]), str(data.get("actor", "")), _text(data.get("note", ""))
    )


def _write_task(task: Task) -> tuple[str, dict[str, Any]]:
    return "task", {"task_id": task.task_id, "task_buffer": task.task_buffer}


def _read_task(data: dict[str, Any]) -> Task:
    return Task(_text(data["task_id"]), _text(data["task_buffer"]))


def _write_task_batch(batch: TaskBatch) -> tuple[str, dict[str, Any]]:
    return "task_batch", {
        "functions": {
            function_id: {"code": function.code, "python_version": function.python_version}
            for function_id, function in batch.functions.items()
        },
        "tasks": [
            {"task_id": task.task_id, "function_id": task.function_id, "payload": task.payload, **_extras(task)}
            for task in batch.tasks
        ],
    }


def _extras(task: BatchedTask) -> dict[str, Any]:
    extras: dict[str, Any] = {"options": task.options} if task.options else {}
    if task.may_have_started:
        extras["may_have_started"] = True
    return extras


def _read_task_batch(data: dict[str, Any]) -> TaskBatch:
    functions = {
        _text(function_id): FunctionCode(_text(function["code"]), function.get("python_version"))
        for function_id, function in _mapping(data["functions"]).items()
    }
    tasks = [
        BatchedTask(
            _text(task["task_id"]),
            _text(task["function_id"]),
            _text(task["payload"]),
            _mapping(task.get("options", {})),
            bool(task.get("may_have_started", False)),
        )
        for task in data["tasks"]
    ]
    for task in tasks:
        if task.function_id not in functions:
            raise ValueError(f"task {task.task_id} names function {task.function_id}, whose code is not in the batch")
    return TaskBatch(functions, tasks)


def write_result(result: Result) -> dict[str, Any]:
    """A result as the plain data inside its envelope; what is not set is left out."""
    data: dict[str, Any] = {"task_id": result.task_id, "data": result.data}
    if result.details is not None:
        data["details"] = result.details
    if result.error_details is not None:
        error = result.error_details
        data["error_details"] = {"code": error.code, "user_message": error.user_message}
    if result.task_statuses:
        data["task_statuses"] = [_write_transition(transition) for transition in result.task_statuses]
    if result.exception_object is not None:
        data["exception_object"] = result.exception_object
    return data


def read_result(data: dict[str, Any]) -> Result:
    """The reverse of :func:`write_result`. Raises KeyError, TypeError or ValueError for anything else."""
    error, details, exception_object = data.get("error_details"), data.get("details"), data.get("exception_object")
    return Result(
        _text(data["task_id"]),
        _text(data["data"]),
        None if details is None else _mapping(details),
        None if error is None else ErrorDetails(str(error["code"]), str(error["user_message"])),
        [_read_transition(transition) for transition in data.get("task_statuses") or ()],
        None if exception_object is None else _text(exception_object),
    )


def _write_result(result: Result) -> tuple[str, dict[str, Any]]:
    return "result", write_result(result)


def _write_result_batch(batch: ResultBatch) -> tuple[str, dict[str, Any]]:
    return "result_batch", {"results": [write_result(result) for result in batch.results]}


def _read_result_batch(data: dict[str, Any]) -> ResultBatch:
    return ResultBatch([read_result(result) for result in data["results"]])


def _write_output_batch(batch: OutputBatch) -> tuple[str, dict[str, Any]]:
    return "output_batch", {
        "pieces": [
            {"task_id": piece.task_id, "stream": piece.stream, "start": piece.start, "text": piece.text}
            for piece in batch.pieces
        ]
    }


def _read_output_batch(data: dict[str, Any]) -> OutputBatch:
    return OutputBatch([_read_output(piece) for piece in data["pieces"]])


def _read_output(data: dict[str, Any]) -> Output:
    stream, start = data["stream"], data["start"]
    if stream not in STREAMS or type(start) is not int or start < 0:
        raise ValueError(f"no piece of an output: stream {stream!r}, start {start!r}")
    return Output(_text(data["task_id"]), stream, start, _text(data["text"]))


def _write_dead_letter(letter: DeadLetter) -> tuple[str, dict[str, Any]]:
    return "dead_letter", {
        "queue": letter.queue,
        "reason": letter.reason,
        "body": base64.b64encode(letter.body).decode(),
        "size": letter.size,
    }


def _read_dead_letter(data: dict[str, Any]) -> DeadLetter:
    body, size = base64.b64decode(_text(data["body"]), validate=True), data["size"]
    if len(body) > MOST_DEAD_LETTER_BYTES or type(size) is not int or size < len(body):
        raise ValueError(f"no dead letter: {len(body)} bytes are said to be of {size!r}")
    return DeadLetter(_text(data["queue"]), _text(data["reason"]), body, size)


def _write_status_report(report: StatusReport) -> tuple[str, dict[str, Any]]:
    data: dict[str, Any] = {
        "endpoint_id": report.endpoint_id,
        "global_state": report.global_state,
        "task_statuses": {
            task_id: [_write_transition(transition) for transition in transitions]
            for task_id, transitions in report.task_statuses.items()
        },
    }
    if report.holds is not None:
        data["holds"] = list(report.holds)
    return "ep_status_report", data


def _read_status_report(data: dict[str, Any]) -> StatusReport:
    # Older endpoints say `ep_status_report` where newer ones say `global_state`.
    global_state = data["global_state"] if "global_state" in data else data["ep_status_report"]
    holds = data.get("holds")
    return StatusReport(
        _text(data["endpoint_id"]),
        _mapping(global_state),
        {
            _text(task_id): [_read_transition(transition) for transition in transitions]
            for task_id, transitions in (data.get("task_statuses") or {}).items()
        },
        None if holds is None else [_text(task_id) for task_id in holds],
    )


def _write_command(command: Command) -> tuple[str, dict[str, Any]]:
    return "command", {"command": command.command, "reason": command.reason}


def _read_command(data: dict[str, Any]) -> Command:
    return Command(_text(data["command"]), str(data.get("reason", "")))


_WRITERS: dict[type, Any] = {
    Task: _write_task,
    TaskBatch: _write_task_batch,
    Result: _write_result,
    ResultBatch: _write_result_batch,
    OutputBatch: _write_output_batch,
    DeadLetter: _write_dead_letter,
    StatusReport: _write_status_report,
    Command: _write_command,
}
_READERS: dict[str, Any] = {
    "task": _read_task,
    "task_batch": _read_task_batch,
    "result": read_result,
    "result_batch": _read_result_batch,
    "output_batch": _read_output_batch,
    "dead_letter": _read_dead_letter,
    "ep_status_report": _read_status_report,
    "command": _read_command,
}
