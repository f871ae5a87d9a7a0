"""Messages as bytes: one writer and one reader for each type, side by side."""

from __future__ import annotations

import base64
import json
from typing import Any

from farcall.errors import WireError

from .messages import (
    MOST_DEAD_LETTER_BYTES,
    STREAMS,
    BatchedTask,
    Command,
    DeadLetter,
    ErrorDetails,
    FunctionCode,
    Message,
    Output,
    OutputBatch,
    Result,
    ResultBatch,
    StatusReport,
    Task,
    TaskBatch,
)
from .states import Transition

ENVELOPE_VERSION = b"\x01"


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
