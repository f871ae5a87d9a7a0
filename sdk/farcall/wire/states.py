"""Where a task is, and how that changed."""

from __future__ import annotations

import enum
from dataclasses import dataclass


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


@dataclass(frozen=True, slots=True)
class Transition:
    """A state, when it began (nanoseconds since 1970), who says so (``worker``, ``endpoint``, ...), and perhaps why."""

    timestamp: int
    state: str
    actor: str
    note: str = ""
