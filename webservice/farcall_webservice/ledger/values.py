"""What the ledger is given and gives: requests, receipts, what is to be sent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Row

from farcall.wire import BatchedTask, TaskState

#: What an agent may say of a task that has not ended. All else is the ledger's own to say.
REPORTABLE_STATES = frozenset({TaskState.WAITING_FOR_NODES, TaskState.WAITING_FOR_LAUNCH, TaskState.RUNNING})


class KeyReused(Exception):
    """An idempotency key came again with a different request."""


class UnknownGroup(Exception):
    """A group is not there: it was removed, as its tasks were."""


class GroupExists(Exception):
    """A group that was to be made has been made meanwhile, by whoever is its owner."""


@dataclass(frozen=True)
class Outgoing:
    """Committed tasks of one submission, to be sent to whoever runs them."""

    submission_id: str
    runner_id: str
    tasks: Sequence[BatchedTask]
    #: Until when no other process publishes it (seconds since 1970).
    claimed_until: float = math.inf
    #: Whether it may be held back: not what was sent already, or is let go after it was held back.
    is_new: bool = True

    @property
    def characters(self) -> int:
        return sum(len(task.payload) for task in self.tasks)


@dataclass(frozen=True)
class Receipt:
    """What a submitter is told; ``outgoing`` is empty where the request had been answered before, or is held back."""

    request_id: str
    task_group_id: str
    endpoint_id: str
    #: Function id -> task ids, in the order of the request's payloads.
    tasks: Mapping[str, list[str]]
    outgoing: Sequence[Outgoing] = ()
    is_held: bool = False


@dataclass(frozen=True)
class Load:
    """How much waits somewhere: tasks, and about how many bytes of arguments."""

    tasks: int
    size: int


@dataclass(frozen=True)
class Request:
    """Tasks for one endpoint, all of one submission.

    ``payloads`` maps a function id to packed arguments, one text a task; ``runner_id`` is who runs them: the endpoint
    itself, or a user endpoint of its.
    """

    owner_id: str
    endpoint_id: str
    runner_id: str
    payloads: Mapping[str, Sequence[str]]
    options: Mapping[str, Any] = field(default_factory=dict)
    idempotency_key: str | None = None
    digest: str | None = None


@dataclass(frozen=True)
class TaskFilter:
    """Which tasks of one owner to list; None = any. Times are seconds since 1970."""

    state: TaskState | None = None
    endpoint_id: str | None = None
    function_id: str | None = None
    task_group_id: str | None = None
    created_after: float | None = None
    created_before: float | None = None


@dataclass(frozen=True)
class Page:
    """Some rows of a listing, and where the next page begins (``before`` of it); None if there is none."""

    rows: Sequence[Row[Any]]
    next: int | None


@dataclass
class Unaccounted:
    """Tasks of an endpoint that its agent does not hold, although the ledger has not seen them end."""

    #: Sent, never reported as taken: on the queue, unless the queue lost them.
    sent: list[str] = field(default_factory=list)
    #: Reported as taken earlier.
    taken: list[str] = field(default_factory=list)


@dataclass
class Cancelled:
    """What came of a cancellation."""

    #: The tasks that it has ended; all others had ended before.
    task_ids: list[str] = field(default_factory=list)
    #: The groups that have news.
    groups: set[str] = field(default_factory=set)
    #: The agents that have to be told.
    agents: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class LogPart:
    """Some of what a task has printed to one of its streams.

    ``start`` is the place of the first character; something before it may not have been kept. ``until`` is the place
    after the last one.
    """

    start: int
    until: int
    text: str
    #: Whether the task has ended, and nothing more of this stream is there.
    is_all: bool
