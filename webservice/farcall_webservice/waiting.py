"""Who waits for which task group or task, so that a result wakes them instead of being asked for again and again."""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator


class TooManyWaiting(Exception):
    """Every place for a waiting request is taken; the server must keep threads for those that do not wait."""


class Waiting:
    """The long-polls that are held in this process. Safe to use from many threads."""

    def __init__(self, max_waiters: int) -> None:
        self._max_waiters = max_waiters
        self._lock = threading.Lock()
        self._events: dict[str, set[threading.Event]] = defaultdict(set)
        self._count = 0
        self._closed = False

    @contextlib.contextmanager
    def listen(self, *ids: str) -> Iterator[threading.Event]:
        """An event that is set when one of these task groups has news, or one of these tasks has printed.

        Listen first, then look: so no news falls in between.

        Raises :class:`TooManyWaiting`.
        """
        event = threading.Event()
        with self._lock:
            if self._count >= self._max_waiters:
                raise TooManyWaiting
            self._count += 1
            for each in ids:
                self._events[each].add(event)
            if self._closed:
                event.set()
        try:
            yield event
        finally:
            with self._lock:
                self._count -= 1
                for each in ids:
                    listeners = self._events[each]
                    listeners.discard(event)
                    if not listeners:
                        del self._events[each]

    def wake(self, ids: Iterable[str]) -> None:
        """These groups have news, or these tasks have printed."""
        with self._lock:
            for each in ids:
                for event in self._events.get(each, ()):
                    event.set()

    def wake_all(self) -> None:
        """Any group may have news."""
        with self._lock:
            self._wake_all()

    def close(self) -> None:
        """Wake everybody, now and from now on: the service is going down."""
        with self._lock:
            self._closed = True
            self._wake_all()

    def _wake_all(self) -> None:
        for events in self._events.values():
            for event in events:
                event.set()
