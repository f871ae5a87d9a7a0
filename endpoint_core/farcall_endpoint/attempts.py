"""Attempts that failed although the task may be well: a worker, a node or a block was lost. What is said of them.

A user's exception is a result and no failure of this kind; it is never tried again.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parsl.executors.high_throughput.errors import ManagerLost, WorkerLost

from farcall.wire import ErrorDetails, Result, TaskState, Transition, write_result

from .failures import NodesLost, WorkerEnded, failure

#: Characters of a note; the end of what a task printed stands in its failure alone.
MOST_NOTE_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at a task that failed: when (nanoseconds since 1970), how, and whether it counts against the task."""

    task_id: str
    at: int
    note: str
    counts: bool = True

    @property
    def transition(self) -> Transition:
        """As the task's history has it: afterwards it waits again."""
        return Transition(self.at, TaskState.WAITING_FOR_NODES.value, "endpoint", self.note)


def most_retries(options: Mapping[str, Any], usual: int) -> int:
    """How often a task may be run again: what its submitter asked for, else what is usual at its endpoint.

    >>> most_retries({"max_retries": 0}, 2), most_retries({}, 2), most_retries({"max_retries": "many"}, 2)
    (0, 2, 2)
    """
    wanted = options.get("max_retries")
    return wanted if type(wanted) is int and wanted >= 0 else usual


def timeout_s(options: Mapping[str, Any]) -> float | None:
    """The time limit that a task's submitter set.

    >>> timeout_s({"timeout_s": 5}), timeout_s({}), timeout_s({"timeout_s": -1})
    (5.0, None, None)
    """
    wanted = options.get("timeout_s")
    return float(wanted) if isinstance(wanted, int | float) and wanted > 0 and wanted is not True else None


def ended(number: int, of: int, error: BaseException) -> str:
    """The note of an attempt that counts."""
    return _short(f"attempt {number} of {of} ended: {what_happened(error)}")


def interrupted(reason: str) -> str:
    """The note of one that does not."""
    return _short(f"an attempt was interrupted, which does not count: {reason}")


def what_happened(error: BaseException) -> str:
    """How an attempt ended, as the end of a sentence, without its full stop."""
    if isinstance(error, WorkerEnded):
        memory = f"; {error.memory}" if error.memory else ""
        return f"worker {error.worker} on node {error.hostname} {_how_it_ended(error.exit_code)}{memory}".rstrip(".")
    if isinstance(error, (WorkerLost, ManagerLost, NodesLost)):
        return str(error).rstrip(".")
    return f"the worker could not run the task: {type(error).__name__}: {error}"


def given_up(task_id: str, attempts: Sequence[Attempt], error: BaseException) -> tuple[str, str]:
    """The failure of a task that has used up its attempts; ``error`` ended the last of them."""
    counted = [attempt for attempt in attempts if attempt.counts]
    times = "once" if len(counted) == 1 else f"{len(counted)} times"
    lines = []
    if isinstance(error, (WorkerEnded, WorkerLost, ManagerLost, NodesLost)):
        code = "WorkerLost"
        lines.append(
            "The worker process ended before the task did: the task called os._exit, was killed by a signal, or ran "
            f"out of memory, or its node was lost. It was started {times}. The last time: {what_happened(error)}."
        )
    else:
        code = "WorkerFailed"
        lines.append(f"The worker could not run the task at all. It was started {times}. The last time: {_said(error)}")
    if len(attempts) > 1:
        lines += [f"- {attempt.note}" for attempt in attempts]
    if isinstance(error, WorkerEnded) and error.stderr:
        lines += ["The end of its stderr:", error.stderr]
    return failure(task_id, code, "\n".join(lines), [attempt.transition for attempt in attempts])


def not_again(task_id: str, attempts: Sequence[Attempt], reason: str) -> tuple[str, str]:
    """The failure of a task that must not start twice, and may have started."""
    message = f"The task may have started and is not started again, as max_retries is 0: {reason}."
    return failure(task_id, "WorkerLost", message, [attempt.transition for attempt in attempts])


def timed_out(task_id: str, attempts: Sequence[Attempt], limit_s: float | None, error: WorkerEnded) -> tuple[str, str]:
    """The failure of a task that did not end when its time was over, so that its worker was ended."""
    limit = "its time limit" if limit_s is None else f"its limit of {limit_s:g} s"
    message = f"the task was stopped: it ran longer than {limit}, and its worker was killed as it did not end then"
    text = f"{message}\nThe end of its stderr:\n{error.stderr}" if error.stderr else message
    transitions = [attempt.transition for attempt in attempts]
    return _result(Result(task_id, text, error_details=ErrorDetails("TaskTimeout", message), task_statuses=transitions))


def cancelled(task_id: str, attempts: Sequence[Attempt]) -> tuple[str, str]:
    """What the service is told of a task that it had cancelled; it knows already."""
    transitions = [attempt.transition for attempt in attempts]
    return failure(task_id, "Cancelled", "The task was cancelled.", transitions)


def with_history(text: str, attempts: Sequence[Attempt]) -> str:
    """A worker's JSON text of a result, with what was before it."""
    if not attempts:
        return text
    result = json.loads(text)
    before = json.loads(_result(Result("", "", task_statuses=[each.transition for each in attempts]))[1])
    result["task_statuses"] = [*before["task_statuses"], *result.get("task_statuses", ())]
    return json.dumps(result, separators=(",", ":"))


def _result(result: Result) -> tuple[str, str]:
    return result.task_id, json.dumps(write_result(result), separators=(",", ":"))


def _how_it_ended(exit_code: int | None) -> str:
    if exit_code is None:
        return "ended"
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    try:
        return f"was killed by signal {-exit_code} ({signal.Signals(-exit_code).name})"
    except ValueError:
        return f"was killed by signal {-exit_code}"


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _short(text: str) -> str:
    return text if len(text) <= MOST_NOTE_CHARACTERS else f"{text[:MOST_NOTE_CHARACTERS]}..."
