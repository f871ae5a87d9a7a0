"""How much may wait on the queue of an endpoint; the rest waits in the ledger.

A broker is no place for a million tasks: it keeps them in memory, and would lose them all at once. So a dispatcher
publishes a runner's first tasks unasked, and from then on looks into the ledger how many the runner was sent and has
not spoken of. Are they enough, it holds back what is to follow (`ledger.holding`). What is held back is let go when
there is news of its endpoint: results, a report, another submission. Nothing is polled.

Only our own agents have a window, for only they say what they have taken.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from farcall_webservice.catalogue import Catalogue
from farcall_webservice.ledger import Ledger, Load, Outgoing

#: What may wait on a queue: some seconds of work for an agent, and nothing that a broker would feel.
WINDOW = Load(tasks=20_000, size=32 * 1024 * 1024)
#: So much a process publishes for a runner before it looks for the first time.
UNASKED = Load(tasks=2000, size=4 * 1024 * 1024)
#: So much is let go at a time, whoever it is for; what comes beyond that has to wait for the next time.
LET_GO_AT_ONCE = 32 * 1024 * 1024
#: What is held back is let go when no more than this part of the window is filled.
REFILL_BELOW = 0.6
#: An endpoint is not looked at more often, however much is heard of it.
LOOKS_APART_S = 0.25
#: Where other processes may hold something back too: how often to ask, of an endpoint that is heard of.
ASKED_APART_S = 1.0
RUNNERS_REMEMBERED = 10_000


@dataclass
class _Room:
    """What may be published for a runner before the next look."""

    tasks: int
    size: int

    @property
    def is_left(self) -> bool:
        return self.tasks > 0 and self.size > 0

    def take(self, batch: Outgoing) -> None:
        self.tasks -= len(batch.tasks)
        self.size -= batch.characters


class Window:
    """The windows of all runners, as one process sees them. For one thread, but for :meth:`heed`."""

    def __init__(self, ledger: Ledger, catalogue: Catalogue, *, alone: bool) -> None:
        """``alone`` says that no other process holds anything back."""
        self._ledger = ledger
        self._catalogue = catalogue
        self._alone = alone
        self._rooms: OrderedDict[str, _Room] = OrderedDict()
        #: Tasks and size of what was admitted and is not marked in the ledger yet.
        self._unmarked: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()
        #: Endpoints for which something is held back, as far as this process knows.
        self._held: set[str] = set()
        #: When to look at those that something was heard of, and when they were looked at last.
        self._due: dict[str, float] = {}
        self._looked_at: OrderedDict[str, float] = OrderedDict()

    def recall(self) -> None:
        """Look at all for which something is held back: after a start, and when the broker is back."""
        held = self._ledger.held_for()
        with self._lock:
            self._held |= held
            self._due.update(dict.fromkeys(held, 0.0))

    # -- what is to be published ---------------------------------------------------------------------------------------

    def admit(self, outgoing: Sequence[Outgoing]) -> list[Outgoing]:
        """What of this may be published now; the rest is held back. What the dispatcher has published is noted."""
        admitted, held = [], []
        for batch in outgoing:
            if self._admits(batch):
                admitted.append(batch)
            else:
                held.append(batch)
        if held:
            self._ledger.hold_back([batch.submission_id for batch in held])
            with self._lock:
                self._held.update(batch.runner_id for batch in held)
        return admitted

    def _admits(self, batch: Outgoing) -> bool:
        if not batch.tasks:
            return True
        room = self._room(batch.runner_id)
        if batch.is_new and not room.is_left:
            self._measure(batch.runner_id, room)
            if not room.is_left:
                return False
        self._take(batch)
        return True

    def _take(self, batch: Outgoing) -> None:
        self._room(batch.runner_id).take(batch)
        tasks, size = self._unmarked.get(batch.runner_id, (0, 0))
        self._unmarked[batch.runner_id] = (tasks + len(batch.tasks), size + batch.characters)

    def marked(self) -> None:
        """What was admitted has been published, and marked in the ledger."""
        self._unmarked.clear()

    def _room(self, runner_id: str) -> _Room:
        room = self._rooms.get(runner_id)
        if room is None:
            room = self._rooms[runner_id] = _Room(UNASKED.tasks, UNASKED.size)
            while len(self._rooms) > RUNNERS_REMEMBERED:
                self._rooms.popitem(last=False)
        self._rooms.move_to_end(runner_id)
        return room

    def _measure(self, runner_id: str, room: _Room) -> None:
        """Find out how much room there is. None where something is held back, after which this comes."""
        if not self._catalogue.runner(runner_id).takes_batches:
            room.tasks, room.size = UNASKED.tasks, UNASKED.size
        elif self._ledger.held_for([runner_id]):
            room.tasks = 0
        else:
            there = self._ledger.on_queue(runner_id, at_most=WINDOW.tasks)
            tasks, size = self._unmarked.get(runner_id, (0, 0))
            # Others may be publishing too.
            room.tasks = (WINDOW.tasks - there.tasks - tasks) // 2
            room.size = (WINDOW.size - there.size - size) // 2
            if room.tasks < UNASKED.tasks // 2:
                room.tasks = 0

    # -- what is held back ---------------------------------------------------------------------------------------------

    def heed(self, runner_id: str, *, held: bool = False) -> bool:
        """Something was heard of an endpoint; ``held``: that something was held back. Whether to look at it soon."""
        with self._lock:
            if held:
                self._held.add(runner_id)
            if runner_id in self._due or (self._alone and runner_id not in self._held):
                return False
            apart_s = LOOKS_APART_S if runner_id in self._held else ASKED_APART_S
            self._due[runner_id] = self._looked_at.get(runner_id, -math.inf) + apart_s
            return True

    def next_due(self) -> float:
        """When to call :meth:`let_go` next, on the clock of ``time.monotonic``."""
        with self._lock:
            return min(self._due.values(), default=math.inf)

    def let_go(self) -> Iterator[Outgoing]:
        """What was held back and may be published now. What was published before has to be marked in the ledger."""
        due = self._take_due()
        if not due:
            return
        held = self._ledger.held_for(due)
        with self._lock:
            self._held -= due - held
        waiting = sorted(held, reverse=True)
        size = 0
        while waiting and size < LET_GO_AT_ONCE:
            batches = self._let_go(waiting.pop())
            size += sum(batch.characters for batch in batches)
            yield from batches
        with self._lock:
            self._due.update(dict.fromkeys(waiting, 0.0))

    def _take_due(self) -> set[str]:
        now = time.monotonic()
        with self._lock:
            due = {endpoint_id for endpoint_id, at in self._due.items() if at <= now}
            for endpoint_id in due:
                del self._due[endpoint_id]
                self._looked_at[endpoint_id] = now
                self._looked_at.move_to_end(endpoint_id)
            while len(self._looked_at) > RUNNERS_REMEMBERED:
                self._looked_at.popitem(last=False)
        return due

    def _let_go(self, endpoint_id: str) -> Sequence[Outgoing]:
        if not self._catalogue.runner(endpoint_id).takes_batches:
            # Another kind of agent has taken over.
            room = WINDOW
        else:
            there = self._ledger.on_queue(endpoint_id, at_most=WINDOW.tasks)
            if there.tasks > REFILL_BELOW * WINDOW.tasks or there.size > REFILL_BELOW * WINDOW.size:
                return ()
            room = Load(WINDOW.tasks - there.tasks, WINDOW.size - there.size)
        batches = self._ledger.let_go(endpoint_id, room)
        if batches is None:
            self.heed(endpoint_id, held=True)
            return ()
        for batch in batches:
            self._take(batch)
        if batches:
            # It may have been only the first of many small ones: to be seen when these are published.
            with self._lock:
                self._due[endpoint_id] = 0.0
        return batches
