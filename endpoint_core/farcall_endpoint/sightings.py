"""What the nodes tell the agent while tasks run: who is there, what has started, what was printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from farcall.wire import Output


@dataclass(frozen=True, slots=True)
class Node:
    """A manager that is connected."""

    uid: str
    block_id: str
    hostname: str
    workers: int
    #: When its block will be ended (seconds since 1970); None where that is not known.
    ends_at: float | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """A task that a worker is running at this moment.

    One that has ended before anybody looked is not told of: its result says when it began.
    """

    #: The engine's number of the call that it is part of.
    call_id: int
    task_id: str
    #: Nanoseconds since 1970.
    at: int
    hostname: str
    worker: int


class Watcher(Protocol):
    """Who wants to know. Called from a thread of the line to the nodes; must not take long."""

    def nodes_changed(self, nodes: Sequence[Node]) -> None:
        """These are connected now."""

    def started(self, sightings: Sequence[Started]) -> None:
        """These run now, and did not when last looked."""

    def printed(self, pieces: Sequence[Output]) -> None:
        """These have been printed, in this order."""
