"""How much time the blocks have left: a task with a time limit goes where it can end within it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from .held import Kind
from .sightings import Node

#: After a node has given a task back because its block ends too soon, how long tasks of that kind wait; doubled each
#: time, as there may be another node that has longer.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0


class Remaining:
    """Which kinds of tasks can be run to their end on the nodes that are there. Not for several threads at a time."""

    def __init__(self) -> None:
        #: Of each node, when its block ends, by our monotonic clock: the other one may jump.
        self._ends: dict[str, float | None] = {}
        self._pauses: dict[Kind, tuple[float, float]] = {}

    def nodes_changed(self, nodes: Sequence[Node]) -> None:
        now, by_their_clock = time.monotonic(), time.time()
        ends = {node.uid: None if node.ends_at is None else now + node.ends_at - by_their_clock for node in nodes}
        if ends.keys() - self._ends.keys():
            # Somebody new may have time.
            self._pauses.clear()
        self._ends = {uid: self._ends.get(uid, end) for uid, end in ends.items()}

    def suffices(self, kind: Kind) -> bool:
        """Whether a task of that kind may be handed over now."""
        if kind.timeout_s is None:
            return True
        now = time.monotonic()
        if kind in self._pauses and now < self._pauses[kind][0]:
            return False
        # Until a node has said who it is, it is not known to have too little.
        return not self._ends or any(end is None or now + kind.timeout_s <= end for end in self._ends.values())

    def fell_short(self, kind: Kind) -> None:
        """A node did not take a task of that kind, because of the time its block has left."""
        _, pause_s = self._pauses.get(kind, (0.0, FIRST_PAUSE_S / 2))
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        self._pauses[kind] = (time.monotonic() + pause_s, pause_s)
