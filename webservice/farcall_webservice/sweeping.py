"""Removes what is over, in small parts and without haste, wherever a collector runs.

Nothing waits for it, and it makes nobody wait: after each part it pauses for as long as that took, or longer. What is
removed cannot be had again, so a clock is believed only when the process starts.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator

from farcall.wire import Command
from farcall_webservice.config import ServiceConfig
from farcall_webservice.database import UNAVAILABLE, cause_of
from farcall_webservice.ledger import Ledger
from farcall_webservice.ledger.removing import AT_ONCE
from farcall_webservice.surviving import keep_at

log = logging.getLogger(__name__)

#: How often it looks for what is over.
EVERY_S = 60.0
#: At least so long after each part.
PAUSE_S = 0.05
#: The first part of a walk through old rows.
_FROM_THE_START = (0.0, "00000000-0000-0000-0000-000000000000")


class Sweeper:
    """Sweeps in a thread of its own. ``tell`` is called with the groups that have news, ``command`` for agents."""

    def __init__(
        self,
        config: ServiceConfig,
        ledger: Ledger,
        *,
        tell: Callable[[Collection[str]], None],
        command: Callable[[str, Command], None],
    ) -> None:
        self._result_lifetime_s = float(config.result_lifetime_s)
        self._task_lifetime_s = float(config.task_lifetime_s)
        self._ledger = ledger
        self._tell = tell
        self._command = command
        #: When it began, by the calendar and by the clock that nobody sets.
        self._began = time.time(), time.monotonic()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End after the part that is under way."""
        self._stopping.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        keep_at(self._sweep_until_stopped, explain=_explain, wait=lambda pause: not self._stopping.wait(pause))

    def _sweep_until_stopped(self) -> None:
        while not self._stopping.wait(EVERY_S):
            self.sweep()

    def sweep(self) -> None:
        """Go through everything once, unless it is stopped."""
        started = time.monotonic()
        for _ in self._parts():
            took = time.monotonic() - started
            if self._stopping.wait(max(took, PAUSE_S)):
                return
            started = time.monotonic()

    def _parts(self) -> Iterator[None]:
        """One step is one short transaction."""
        yield from self._expire()
        before = self._now() - self._result_lifetime_s
        yield from _while_full(lambda: self._ledger.remove_tasks(before), "tasks that had ended long ago")
        yield from _while_full(self._ledger.remove_cancellations, "cancellations that nobody will ask for")
        for remove in (self._ledger.remove_submissions, self._ledger.remove_groups):
            place: tuple[float, str] | None = _FROM_THE_START
            while place is not None:
                place = remove(before, place)
                yield

    def _now(self) -> float:
        """The time, as far as time has passed: a clock that jumps ahead while we run makes nothing old."""
        at, began = self._began
        return min(time.time(), at + time.monotonic() - began)

    def _expire(self) -> Iterator[None]:
        while True:
            expired = self._ledger.expire(self._task_lifetime_s, now=self._now())
            if not expired.task_ids:
                return
            log.warning("gave up %d tasks that nothing was heard of", len(expired.task_ids))
            self._tell(expired.groups)
            for agent_id in expired.agents:
                self._command(agent_id, Command("cancel"))
            yield


def _while_full(remove: Callable[[], int], what: str) -> Iterator[None]:
    removed = AT_ONCE
    while removed >= AT_ONCE:
        removed = remove()
        if removed:
            log.info("removed %d %s", removed, what)
        yield


def _explain(error: Exception) -> str | None:
    return f"the database cannot be used ({cause_of(error)})" if isinstance(error, UNAVAILABLE) else None
