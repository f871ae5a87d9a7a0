"""What travels, as values: one class for each type of message, and what they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from .states import Transition

#: So much is kept of a message that cannot be used.
MOST_DEAD_LETTER_BYTES = 64 * 1024

#: The two streams that a task prints to.
STREAMS = ("stdout", "stderr")


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
