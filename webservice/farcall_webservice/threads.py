"""The threads that answer requests: as many as are needed at a time, and always the one that was busy last.

Waitress keeps a fixed number of threads and wakes the one that has slept longest. With hundreds of them, kept for
requests that wait for results, each request then meets cold caches: that cost half of the service's processor time.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

log = logging.getLogger(__name__)

#: A thread that had nothing to do for so long ends.
IDLE_S = 30.0


class Request(Protocol):
    """What Waitress hands over."""

    def service(self) -> None: ...

    def cancel(self) -> None: ...


class RequestThreads:
    """Takes the place of Waitress's own dispatcher of requests to threads. Requests beyond ``most`` wait in line."""

    def __init__(self, most: int, *, on_shutdown: Callable[[], None]) -> None:
        self._most = most
        self._on_shutdown = on_shutdown
        self._lock = threading.Lock()
        self._count = 0
        self._line: deque[Request] = deque()
        #: Threads without work, the last one to finish at the end.
        self._idle: list[_Seat] = []
        self._ended = threading.Condition(self._lock)
        self._closed = False

    def add_task(self, request: Request) -> None:
        with self._lock:
            if self._idle:
                self._idle.pop().give(request)
            elif self._count < self._most:
                self._count += 1
                threading.Thread(target=self._work, args=(request,), name="request", daemon=True).start()
            else:
                self._line.append(request)

    def shutdown(self, cancel_pending: bool = True, timeout: float = 5) -> bool:
        """End the threads when they have answered what they are at; after ``timeout`` seconds give up on them.

        ``on_shutdown`` is called first, to have an end of those that wait for something.
        """
        self._on_shutdown()
        with self._lock:
            self._closed = True
            pending, self._line = self._line, deque()
            for seat in self._idle:
                seat.give(None)
            self._idle.clear()
            if not self._ended.wait_for(lambda: not self._count, timeout):
                log.warning("%d requests were still being answered", self._count)
        for request in pending if cancel_pending else ():
            request.cancel()
        return True

    def _work(self, first: Request) -> None:
        seat = _Seat()
        request: Request | None = first
        while request is not None:
            try:
                request.service()
            except Exception:
                # A request that fails in an unforeseen way must not cost the service a thread.
                log.exception("a request ended in an unforeseen way")
            request = self._next(seat)
        with self._lock:
            self._count -= 1
            self._ended.notify()

    def _next(self, seat: _Seat) -> Request | None:
        """Wait for something to do; None = end."""
        with self._lock:
            if self._line:
                return self._line.popleft()
            if self._closed:
                return None
            seat.given.clear()
            self._idle.append(seat)
        if not seat.given.wait(IDLE_S):
            with self._lock:
                # Work may have come in the very moment in which the wait was over.
                if seat in self._idle:
                    self._idle.remove(seat)
                    return None
        return seat.request


class _Seat:
    """Where a thread without work waits, and where work is laid down for it."""

    def __init__(self) -> None:
        self.given = threading.Event()
        self.request: Request | None = None

    def give(self, request: Request | None) -> None:
        self.request = request
        self.given.set()
