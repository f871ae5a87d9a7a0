"""A manager's end of its workers' pipes: what their tasks print, whose it is, and which task runs now.

Printing must cost little, and too much of it must harm nobody: what is there is read, at most some times a second, the
newest of it is kept, and no more of it is passed on than the way to the service carries.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

from farcall.wire import STREAMS, Output

from .outputpipe import KEPT_BYTES, OutputPipe, Text
from .sightings import Started
from .streams import mark

#: Between two rounds of reading.
ROUND_S = 0.05

#: Bytes of one worker that wait, and characters of it that are passed on in a second; a piece costs something as such.
_MOST_WAITING = 512 * 1024
_RATE = 512 * 1024
_PIECE = 100

#: What is kept of the running task's stderr, for the case that it ends its worker.
TAIL_CHARACTERS = 4096

NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Running:
    """A task that a worker is running. ``place`` counts the worker's tasks; ``seen`` is our own monotonic clock's."""

    place: int
    task_id: str
    at: int
    seen: float


class Outlet:
    """What comes out of one worker. All of it may be used from several threads."""

    def __init__(self, worker: int, hostname: str, pipes: Sequence[Connection], secret: str) -> None:
        self._worker = worker
        self._hostname = hostname
        self._lock = threading.Lock()
        self._pipes = [OutputPipe(stream, pipe, mark(secret)) for stream, pipe in zip(STREAMS, pipes, strict=True)]
        self._running: Running | None = None
        self._call_id: int | None = None
        self._told_place = 0
        #: Those that have something to pass on, in the order in which it has come.
        self._texts: dict[Text, None] = {}
        self._waiting = 0
        self._next_telling = 0.0
        self._tail = b""
        self._closed = False

    def filenos(self) -> list[int]:
        return [pipe.connection.fileno() for pipe in self._pipes]

    def begin(self, call_id: int) -> None:
        """Its worker is given a call: the tasks that run from now on are part of it."""
        with self._lock:
            self._call_id = call_id

    def end(self) -> None:
        """Its worker has ended its call; what it prints before the next has begun is nobody's."""
        with self._lock:
            self._drain()
            for pipe in self._pipes:
                self._add(pipe, pipe.take_rest())
                self._finish(pipe)
            self._call_id = self._running = None
            self._tail = b""

    def drain(self) -> bool:
        """Read what is there. True if there may be more."""
        with self._lock:
            return self._drain()

    def running(self) -> Running | None:
        """The task that runs, as far as has been read."""
        return self._running

    def stderr_tail(self) -> str:
        """The end of what the running task has printed to stderr."""
        return self._tail.decode(errors="backslashreplace").replace("\0", "\\0")[-TAIL_CHARACTERS:]

    def started(self, *, before: float) -> Started | None:
        """The task that runs, once, if it was seen before that time and has not ended since."""
        with self._lock:
            running = self._running
            if running is None or self._call_id is None or self._told_place == running.place or running.seen > before:
                return None
            self._told_place = running.place
            return Started(self._call_id, running.task_id, running.at, self._hostname, self._worker)

    def is_untold(self, *, before: float = NEVER) -> bool:
        """Whether a task runs, and was seen before that time, of which nothing has been told yet."""
        running = self._running
        return running is not None and running.place != self._told_place and running.seen <= before

    def has_printed(self) -> bool:
        """Whether there is something to pass on, now or later."""
        return bool(self._texts)

    def due(self) -> float | None:
        """When there will be something to pass on; None if nothing waits."""
        with self._lock:
            times = [0.0 if text.has_ended else text.not_before for text in self._texts]
            return max(self._next_telling, min(times)) if times else None

    def printed(self, now: float) -> list[Output]:
        """What has been printed since this was last asked, or as much of it as may be passed on at that time."""
        with self._lock:
            if now < self._next_telling:
                return []
            pieces = self._take([text for text in self._texts if text.has_ended or text.not_before <= now], now)
            if pieces:
                size = sum(_PIECE + len(piece.text) for piece in pieces)
                self._next_telling = now + max(ROUND_S, size / _RATE)
            return pieces

    def close(self) -> list[Output]:
        """Returns what has not been passed on."""
        with self._lock:
            self._closed = True
            for pipe in self._pipes:
                self._finish(pipe)
                pipe.connection.close()
            return self._take(list(self._texts), 0.0)

    def _take(self, texts: Sequence[Text], now: float) -> list[Output]:
        for text in texts:
            del self._texts[text]
            self._waiting -= len(text.waiting) + _PIECE
        return [piece for text in texts if (piece := text.take(now)).text]

    def _drain(self) -> bool:
        if self._closed:
            return False
        more = False
        for pipe in self._pipes:
            data, is_more = pipe.read()
            more |= is_more
            if data:
                self._read(pipe, data)
        return more

    def _read(self, pipe: OutputPipe, data: bytes) -> None:
        note = None
        for text, next_note in pipe.parts(data):
            if text:
                # Marks of tasks that have printed nothing are not even looked at.
                if note is not None:
                    self._turn(pipe, note)
                    note = None
                self._add(pipe, text)
            if next_note is not None:
                note = next_note
        if note is not None:
            self._turn(pipe, note)

    def _turn(self, pipe: OutputPipe, note: bytes) -> None:
        understood = _read_note(note)
        if understood is None:
            # A task has found out the secret and plays with it.
            return
        place, task_id, at = understood
        self._finish(pipe)
        pipe.text = Text(task_id, pipe.stream)
        if pipe.stream == "stderr":
            self._tail = b""
        if self._running is None or place > self._running.place:
            self._running = Running(place, task_id, at, time.monotonic())

    def _finish(self, pipe: OutputPipe) -> None:
        text, pipe.text = pipe.text, None
        if text is not None:
            text.has_ended = True
            if not text.is_empty():
                # Perhaps in the midst of a character, of which the bytes will be shown.
                self._wait(text)

    def _add(self, pipe: OutputPipe, data: bytes) -> None:
        text = pipe.text
        if text is None or not data:
            return
        if pipe.stream == "stderr":
            # A character has four bytes at most.
            self._tail = (self._tail + data[-4 * TAIL_CHARACTERS :])[-4 * TAIL_CHARACTERS :]
        self._wait(text)
        text.waiting += data
        self._waiting += len(data)
        if len(text.waiting) > 2 * KEPT_BYTES:
            self._lose(text, len(text.waiting) - KEPT_BYTES)
        while self._waiting > _MOST_WAITING:
            oldest = next(iter(self._texts))
            self._lose(oldest, len(oldest.waiting))
            del self._texts[oldest]
            self._waiting -= _PIECE

    def _wait(self, text: Text) -> None:
        if text not in self._texts:
            self._texts[text] = None
            self._waiting += _PIECE

    def _lose(self, text: Text, count: int) -> None:
        before = len(text.waiting)
        text.lose(count)
        self._waiting -= before - len(text.waiting)


def _read_note(note: bytes) -> tuple[int, str, int] | None:
    with suppress(ValueError, RecursionError):
        match json.loads(note):
            case [int(place), str(task_id), int(at)]:
                return place, task_id, at
    return None
