"""The thread of a manager that reads what its workers print."""

from __future__ import annotations

import logging
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable

from farcall.wire import Output

from .bell import Bell
from .outlets import NEVER, ROUND_S, Outlet
from .sightings import Started

log = logging.getLogger(f"parsl.{__name__}")

#: After a round that found a full pipe, the next comes sooner.
_SOON_S = 0.002

#: Pieces of dead workers that wait to be passed on.
_MOST_LEFT = 1000


class Listener:
    """The thread that reads the outlets of all workers, and calls ``on_news`` when there is something to pass on."""

    def __init__(self, on_news: Callable[[], None]) -> None:
        self._on_news = on_news
        self._lock = threading.Lock()
        self._outlets: set[Outlet] = set()
        #: What those had to say that are closed by now.
        self._left: deque[Output] = deque(maxlen=_MOST_LEFT)
        self._bell = Bell()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._bell.fileno(), selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._run, name="listener", daemon=True)

    def add(self, outlet: Outlet) -> None:
        with self._lock:
            self._outlets.add(outlet)
            for number in outlet.filenos():
                self._selector.register(number, selectors.EVENT_READ, outlet)
            if not self._thread.is_alive():
                self._thread.start()

    def remove(self, outlet: Outlet) -> None:
        """Its worker has died, and what it had to say has been read."""
        with self._lock:
            if outlet not in self._outlets:
                return
            self._outlets.remove(outlet)
            for number in outlet.filenos():
                self._selector.unregister(number)
            self._left += outlet.close()
        self._on_news()

    def hurry(self, outlet: Outlet) -> None:
        """Its worker has ended a call: if it has printed something, that should not come long after its result."""
        if outlet.has_printed():
            self._on_news()
            self._bell.ring()

    def gather(self) -> tuple[list[Started], list[Output]]:
        """What is to be passed on now."""
        now = time.monotonic()
        with self._lock:
            outlets = list(self._outlets)
            printed = list(self._left)
            self._left.clear()
        started = [sighting for outlet in outlets if (sighting := outlet.started(before=now - ROUND_S))]
        for outlet in outlets:
            printed += outlet.printed(now)
        return started, printed

    def _run(self) -> None:
        while True:
            try:
                pause_s = self._round()
            except Exception:
                log.exception("reading what tasks print failed")
                pause_s = 1.0
            # Nothing is read meanwhile: so much of what many small tasks print is read at once.
            time.sleep(pause_s)

    def _round(self) -> float:
        ready = {key.data for key, _ in self._selector.select(self._patience_s())}
        self._bell.silence()
        is_more = False
        for outlet in ready - {None}:
            is_more |= outlet.drain()
        now = time.monotonic()
        with self._lock:
            outlets = list(self._outlets)
        if any(outlet.is_untold(before=now - ROUND_S) or (outlet.due() or NEVER) <= now for outlet in outlets):
            self._on_news()
        return _SOON_S if is_more else ROUND_S

    def _patience_s(self) -> float | None:
        """How long to wait for something to read; None is for ever."""
        with self._lock:
            outlets = list(self._outlets)
        if any(outlet.is_untold() for outlet in outlets):
            return ROUND_S
        dues = [due for outlet in outlets if (due := outlet.due()) is not None]
        return max(0.0, min(dues) - time.monotonic()) if dues else None
