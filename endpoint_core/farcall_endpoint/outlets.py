"""A manager's end of its workers' pipes: what their tasks print, whose it is, and which task runs now.

Printing must cost little, and too much of it must harm nobody: what is there is read, at most some times a second, the
newest of it is kept, and no more of it is passed on than the way to the service carries.
"""

from __future__ import annotations

import codecs
import fcntl
import json
import logging
import os
import re
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from farcall.wire import STREAMS, Output

from .bell import Bell
from .sightings import Started
from .streams import mark

log = logging.getLogger(f"parsl.{__name__}")

#: Between two rounds of reading; after one that found a full pipe, the next comes sooner.
ROUND_S = 0.05
_SOON_S = 0.002

_PIPE_BYTES = 1024 * 1024
_READ_BYTES = 256 * 1024
#: What is read of one pipe in one round at most.
_MOST_READ_BYTES = 4 * 1024 * 1024

#: Bytes of one stream that are kept of what one read has brought.
_KEPT_BYTES = 64 * 1024

#: Characters of one worker that wait to be passed on, and that are passed on in a second.
_MOST_WAITING = 128 * 1024
_RATE = 64 * 1024
#: What a piece costs besides its text.
_PIECE = 100

#: What is kept of the running task's stderr, for the case that it ends its worker.
TAIL_CHARACTERS = 4096

#: Pieces of dead workers that wait to be passed on.
_MOST_LEFT = 1000

#: Bytes that do not begin a character in UTF-8.
_CONTINUATIONS = bytes(range(0x80, 0xC0))


@dataclass(frozen=True, slots=True)
class Running:
    """A task that a worker is running. ``place`` counts the worker's tasks; ``seen`` is our own monotonic clock's."""

    place: int
    task_id: str
    at: int
    seen: float


@dataclass(slots=True)
class _Piece:
    task_id: str
    stream: str
    start: int
    text: str

    def cut(self, characters: int) -> None:
        """Lose the oldest."""
        self.start += characters
        self.text = self.text[characters:]


@dataclass(slots=True)
class _Text:
    """What one task has printed to one stream."""

    task_id: str
    characters: int = 0
    decoder: Any = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("backslashreplace"))

    def decode(self, data: bytes, *, last: bool = False) -> tuple[int, str]:
        """The text of these bytes, of a lot of them the end of it; and its place."""
        if len(data) > _KEPT_BYTES:
            # Of what is left out, every byte that begins a character is counted as one.
            left_out, data = data[:-_KEPT_BYTES], data[-_KEPT_BYTES:]
            whole = data.lstrip(_CONTINUATIONS)
            if 0 < len(data) - len(whole) <= 3:
                data = whole
            self.decoder.reset()
            self.characters += len(left_out.translate(None, _CONTINUATIONS))
        text = self.decoder.decode(data, last).replace("\0", "\\0")
        start = self.characters
        self.characters += len(text)
        return start, text


class _Pipe:
    """The reading end of one pipe, and what has come out of it that is not understood yet."""

    def __init__(self, stream: str, connection: Connection, opening: bytes) -> None:
        self.stream = stream
        self.connection = connection
        self.text: _Text | None = None
        self._opening = opening
        self._note = re.compile(re.escape(opening) + rb"([^\n]*)\n")
        self._rest = b""
        os.set_blocking(connection.fileno(), False)
        # Linux lets an account have only so much of this; elsewhere a pipe is as large as it is.
        with suppress(OSError, AttributeError):
            fcntl.fcntl(connection.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def read(self) -> tuple[bytes, bool]:
        """What is there, and whether there may be more."""
        chunks = []
        size = 0
        while size < _MOST_READ_BYTES:
            try:
                chunk = os.read(self.connection.fileno(), _READ_BYTES)
            except OSError:
                # Nothing there.
                break
            if not chunk:
                break
            chunks.append(chunk)
            size += len(chunk)
            if len(chunk) < _READ_BYTES:
                break
        return b"".join(chunks), size >= _READ_BYTES

    def parts(self, data: bytes) -> Iterator[tuple[bytes, bytes | None]]:
        """Texts, each with the note of the mark that follows it; the last has none."""
        data = self._rest + data
        position = 0
        for match in self._note.finditer(data):
            yield data[position : match.start()], match[1]
            position = match.end()
        data = data[position:]
        cut = self._unfinished_mark(data)
        self._rest = data[cut:]
        yield data[:cut], None

    def take_rest(self) -> bytes:
        rest, self._rest = self._rest, b""
        return rest

    def _unfinished_mark(self, data: bytes) -> int:
        """Where a mark begins whose end has not come yet; the end of the data if there is none."""
        start = data.find(self._opening)
        if start >= 0:
            return start
        start = data.rfind(b"\0", max(0, len(data) - len(self._opening)))
        return start if start >= 0 and self._opening.startswith(data[start:]) else len(data)


class Outlet:
    """What comes out of one worker. All of it may be used from several threads."""

    def __init__(self, worker: int, hostname: str, pipes: Sequence[Connection], secret: str) -> None:
        self._worker = worker
        self._hostname = hostname
        self._lock = threading.Lock()
        self._pipes = [_Pipe(stream, pipe, mark(secret)) for stream, pipe in zip(STREAMS, pipes, strict=True)]
        self._running: Running | None = None
        self._call_id: int | None = None
        self._told_place = 0
        self._pieces: deque[_Piece] = deque()
        self._waiting = 0
        self._next_telling = 0.0
        self._tail = ""
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
                self._add(pipe, pipe.take_rest(), last=True)
                pipe.text = None
            self._call_id = self._running = None
            self._tail = ""

    def drain(self) -> bool:
        """Read what is there. True if there may be more."""
        with self._lock:
            return self._drain()

    def running(self) -> Running | None:
        """The task that runs, as far as has been read."""
        return self._running

    def stderr_tail(self) -> str:
        """The end of what the running task has printed to stderr."""
        return self._tail

    def started(self, *, before: float) -> Started | None:
        """The task that runs, once, if it was seen before that time and has not ended since."""
        with self._lock:
            running = self._running
            if running is None or self._call_id is None or self._told_place == running.place or running.seen > before:
                return None
            self._told_place = running.place
            return Started(self._call_id, running.task_id, running.at, self._hostname, self._worker)

    def is_untold(self) -> bool:
        """Whether a task runs of which nothing has been told yet."""
        running = self._running
        return running is not None and running.place != self._told_place

    def has_news(self, now: float) -> bool:
        """Whether there is something to pass on at that time."""
        running = self._running
        untold = self.is_untold() and running is not None and running.seen <= now - ROUND_S
        return untold or (bool(self._pieces) and self._next_telling <= now)

    def due(self) -> float | None:
        """When there will be something to pass on; None if nothing waits."""
        return self._next_telling if self._pieces else None

    def printed(self, now: float) -> list[Output]:
        """What has been printed since this was last asked, or as much of it as may be passed on at that time."""
        with self._lock:
            if now < self._next_telling or not self._pieces:
                return []
            self._next_telling = now + max(ROUND_S, (self._waiting + _PIECE * len(self._pieces)) / _RATE)
            return self._take_pieces()

    def close(self) -> list[Output]:
        """Returns what has not been passed on."""
        with self._lock:
            self._closed = True
            for pipe in self._pipes:
                pipe.connection.close()
            return self._take_pieces()

    def _take_pieces(self) -> list[Output]:
        pieces = [Output(piece.task_id, piece.stream, piece.start, piece.text) for piece in self._pieces]
        self._pieces.clear()
        self._waiting = 0
        return pieces

    def _drain(self) -> bool:
        if self._closed:
            return False
        more = False
        for pipe in self._pipes:
            data, is_more = pipe.read()
            more |= is_more
            if data:
                self._take(pipe, data)
        return more

    def _take(self, pipe: _Pipe, data: bytes) -> None:
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

    def _turn(self, pipe: _Pipe, note: bytes) -> None:
        place, task_id, at = json.loads(note)
        self._add(pipe, b"", last=True)
        pipe.text = _Text(task_id)
        if pipe.stream == "stderr":
            self._tail = ""
        if self._running is None or place > self._running.place:
            self._running = Running(place, task_id, at, time.monotonic())

    def _add(self, pipe: _Pipe, data: bytes, *, last: bool = False) -> None:
        if pipe.text is None:
            return
        start, text = pipe.text.decode(data, last=last)
        if not text:
            return
        if pipe.stream == "stderr":
            self._tail = (self._tail + text)[-TAIL_CHARACTERS:]
        self._keep(_Piece(pipe.text.task_id, pipe.stream, start, text))

    def _keep(self, piece: _Piece) -> None:
        self._waiting += len(piece.text)
        last = self._pieces[-1] if self._pieces else None
        if (
            last is not None
            and (last.task_id, last.stream) == (piece.task_id, piece.stream)
            and last.start + len(last.text) == piece.start
        ):
            last.text += piece.text
        else:
            self._pieces.append(piece)
        while self._waiting + _PIECE * len(self._pieces) > _MOST_WAITING:
            first = self._pieces[0]
            surplus = self._waiting + _PIECE * len(self._pieces) - _MOST_WAITING
            if surplus < len(first.text):
                first.cut(surplus)
                self._waiting -= surplus
                return
            self._waiting -= len(first.text)
            self._pieces.popleft()


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
        if outlet.due() is not None:
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
            if any(outlet.has_news(now) for outlet in self._outlets):
                self._on_news()
        return _SOON_S if is_more else ROUND_S

    def _patience_s(self) -> float | None:
        """How long to wait for something to read; None is for ever."""
        with self._lock:
            if any(outlet.is_untold() for outlet in self._outlets):
                return ROUND_S
            dues = [due for outlet in self._outlets if (due := outlet.due()) is not None]
        return max(0.0, min(dues) - time.monotonic()) if dues else None
