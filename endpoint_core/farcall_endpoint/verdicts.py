"""What is to become of the tasks of a call that did not come back with results. Pure decisions, nothing here acts."""

from __future__ import annotations

import time
from dataclasses import dataclass

from . import attempts
from .attempts import Attempt
from .failures import WorkerEnded
from .held import Call, Held

#: How often a task may come back without having begun before that counts as an attempt.
MOST_RETURNS = 10

#: Attempts that do not count, of one task, that are told of.
MOST_INTERRUPTIONS = 20


@dataclass(frozen=True, slots=True)
class Verdict:
    """On one task: with a result it has ended, without one it runs again."""

    held: Held
    result: tuple[str, str] | None = None
    attempt: Attempt | None = None
    #: It may be to blame, so it is not put together with others any more.
    alone: bool = False
    #: It has not started.
    returned: bool = False


def on_loss(call: Call, error: BaseException) -> list[Verdict]:
    """Nobody knows which of the tasks was running: one that was alone in its call has used up an attempt."""
    if len(call.tasks) == 1:
        return [_blamed(call.tasks[0], error)]
    return on_interruption(call, attempts.what_happened(error), alone=True)


def on_interruption(call: Call, reason: str, *, alone: bool = False) -> list[Verdict]:
    """No fault of theirs; only what must not start twice ends."""
    return [_interrupted(held, reason, was_running=held is call.running, alone=alone) for held in call.tasks]


def on_return(call: Call, *, alone: bool = False) -> list[Verdict]:
    """None of them has started."""
    return [
        Verdict(held, _cancelled(held)) if held.cancelled else Verdict(held, alone=alone, returned=True)
        for held in call.tasks
    ]


def on_worker_ended(call: Call, error: WorkerEnded, *, limit_s: float | None) -> list[Verdict]:
    """Only the task that the worker was running has to do with it, and only if the worker was not told to end."""
    running = [held for held in call.tasks if held.task.task_id == error.task_id]
    if error.cause == "died" and not running:
        if any(held.returns >= MOST_RETURNS for held in call.tasks):
            return on_loss(call, error)
        return on_return(call)
    if error.cause == "cancelled":
        return on_interruption(call, "another task of its call was cancelled")
    return [
        (_timed_out(held, error, limit_s) if error.cause == "timeout" else _blamed(held, error))
        if held in running
        else _interrupted(held, "another task of its call ended its worker", was_running=False, alone=False)
        for held in call.tasks
    ]


def _blamed(held: Held, error: BaseException) -> Verdict:
    number, of = held.lost + 1, held.most_retries + 1
    attempt = Attempt(held.task.task_id, time.time_ns(), attempts.ended(number, of, error))
    if held.cancelled:
        return Verdict(held, _cancelled(held), attempt)
    if number < of:
        return Verdict(held, None, attempt, alone=True)
    return Verdict(held, attempts.given_up(held.task.task_id, [*held.attempts, attempt], error), attempt)


def _interrupted(held: Held, reason: str, *, was_running: bool, alone: bool) -> Verdict:
    if held.cancelled:
        return Verdict(held, _cancelled(held))
    if held.kind.once:
        return Verdict(held, attempts.not_again(held.task.task_id, held.attempts, reason))
    attempt = None
    if was_running and len(held.attempts) - held.lost < MOST_INTERRUPTIONS:
        attempt = Attempt(held.task.task_id, time.time_ns(), attempts.interrupted(reason), counts=False)
    return Verdict(held, None, attempt, alone=alone)


def _timed_out(held: Held, error: WorkerEnded, limit_s: float | None) -> Verdict:
    limit_s = held.kind.timeout_s or limit_s
    return Verdict(held, attempts.timed_out(held.task.task_id, held.attempts, limit_s, error))


def _cancelled(held: Held) -> tuple[str, str]:
    return attempts.cancelled(held.task.task_id, held.attempts)
