"""What the engine has in hand: tasks, the calls they are handed over in, and how much it is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from farcall.wire import BatchedTask, FunctionCode, TaskState, Transition

from .attempts import Attempt


class Kind(NamedTuple):
    """Tasks that can travel together, and wait in one queue."""

    function_id: str
    #: The time limit of each.
    timeout_s: float | None = None
    #: They must not start twice.
    once: bool = False


@dataclass(slots=True, eq=False)
class Held:
    """A task that the engine has."""

    task: BatchedTask
    kind: Kind
    most_retries: int
    attempts: list[Attempt] = field(default_factory=list)
    #: How many of the attempts count against it.
    lost: int = 0
    #: It may have been to blame for a loss, or wants nodes of its own, so it is not put together with others.
    alone: bool = False
    cancelled: bool = False
    #: How often it came back without having begun.
    returns: int = 0
    #: Where it is, since when (by the calendar and by the monotonic clock), and whether that was told.
    state: TaskState = TaskState.WAITING_FOR_NODES
    at: int = field(default_factory=time.time_ns)
    since: float = field(default_factory=time.monotonic)
    note: str = ""
    is_told: bool = False
    untold: list[Attempt] = field(default_factory=list)

    def enter(self, state: TaskState, *, at: int, note: str = "") -> None:
        """It is somewhere else, since that moment (nanoseconds since 1970)."""
        self.state, self.at, self.note = state, at, note
        self.since = time.monotonic()
        self.is_told = False

    def attempted(self, attempt: Attempt) -> None:
        self.attempts.append(attempt)
        self.untold.append(attempt)
        self.lost += attempt.counts

    def news(self, older_than_s: float) -> list[Transition]:
        """What has not been told yet. Where it waits only if it has waited there for so long."""
        found = [attempt.transition for attempt in self.untold]
        self.untold.clear()
        is_of_interest = self.state is TaskState.RUNNING or time.monotonic() - self.since > older_than_s
        if is_of_interest and not self.is_told:
            self.is_told = True
            found.append(Transition(self.at, self.state.value, "endpoint", self.note))
        return found


@dataclass(slots=True, eq=False)
class Call:
    """Tasks of one kind that were handed to Parsl together."""

    kind: Kind
    code: FunctionCode
    tasks: Sequence[Held]
    #: Parsl's number of it; the nodes know it by that too.
    number: int | None = None
    #: Which of its tasks was last seen running.
    running: Held | None = None
    #: The nodes have been told that it is no longer wanted.
    unwanted: bool = False


@dataclass(frozen=True)
class Load:
    """How much there is to do, and who is there to do it."""

    waiting: int
    handed_over: int
    payload_bytes: int
    calls: int
    workers: int
