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
from dataclasses import dataclass
from multiprocessing.connection import Connection

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

#: Bytes of one text that wait to be passed on: when there are twice as many, the newest of them. As many characters of
#: it are passed on in a second.
_KEPT_BYTES = 64 * 1024

#: Bytes of one worker that wait, and characters of it that are passed on in a second; a piece costs something as such.
_MOST_WAITING = 512 * 1024
_RATE = 512 * 1024
_PIECE = 100

#: What is kept of the running task's stderr, for the case that it ends its worker.
TAIL_CHARACTERS = 4096

#: Pieces of dead workers that wait to be passed on.
_MOST_LEFT = 1000

_NEVER = float("inf")

#: Bytes that do not begin a character in UTF-8.
_CONTINUATIONS = bytes(range(0x80, 0xC0))


@dataclass(frozen=True, slots=True)
class Running:
    """A task that a worker is running. ``place`` counts the worker's tasks; ``seen`` is our own monotonic clock's."""

    place: int
    task_id: str
    at: int
    seen: float


class _Text:
    """What one task has printed to one stream and has not been passed on."""

    def __init__(self, task_id: str, stream: str) -> None:
        self.task_id = task_id
        self.stream = stream
        self.waiting = bytearray()
        self.has_ended = False
        self.not_before = 0.0
        self._start = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")

    def is_empty(self) -> bool:
        return not self.waiting and not self._decoder.getstate()[0]

    def lose(self, count: int) -> None:
        """Leave out the oldest bytes. Those that begin a character are counted, and none has to be decoded for it."""
        unfinished, _ = self._decoder.getstate()
        self._decoder.reset()
        lost = unfinished + self.waiting[:count]
        rest = self.waiting[count : count + 3]
        # Not in the midst of a character.
        count += len(rest) - len(rest.lstrip(_CONTINUATIONS))
        del self.waiting[:count]
        self._start += len(lost.translate(None, _CONTINUATIONS))

    def take(self, now: float) -> Output:
        text = self._decoder.decode(bytes(self.waiting), self.has_ended).replace("\0", "\\0")
        start = self._start
        self._start += len(text)
        self.waiting.clear()
        self.not_before = now + len(text) / _KEPT_BYTES
        return Output(self.task_id, self.stream, start, text)


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
        if self._opening in data:
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
        #: Those that have something to pass on, in the order in which it has come.
        self._texts: dict[_Text, None] = {}
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

    def is_untold(self, *, before: float = _NEVER) -> bool:
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

    def _take(self, texts: Sequence[_Text], now: float) -> list[Output]:
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

    def _read(self, pipe: _Pipe, data: bytes) -> None:
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
        understood = _read_note(note)
        if understood is None:
            # A task has found out the secret and plays with it.
            return
        place, task_id, at = understood
        self._finish(pipe)
        pipe.text = _Text(task_id, pipe.stream)
        if pipe.stream == "stderr":
            self._tail = b""
        if self._running is None or place > self._running.place:
            self._running = Running(place, task_id, at, time.monotonic())

    def _finish(self, pipe: _Pipe) -> None:
        text, pipe.text = pipe.text, None
        if text is not None:
            text.has_ended = True
            if not text.is_empty():
                # Perhaps in the midst of a character, of which the bytes will be shown.
                self._wait(text)

    def _add(self, pipe: _Pipe, data: bytes) -> None:
        text = pipe.text
        if text is None or not data:
            return
        if pipe.stream == "stderr":
            # A character has four bytes at most.
            self._tail = (self._tail + data[-4 * TAIL_CHARACTERS :])[-4 * TAIL_CHARACTERS :]
        self._wait(text)
        text.waiting += data
        self._waiting += len(data)
        if len(text.waiting) > 2 * _KEPT_BYTES:
            self._lose(text, len(text.waiting) - _KEPT_BYTES)
        while self._waiting > _MOST_WAITING:
            oldest = next(iter(self._texts))
            self._lose(oldest, len(oldest.waiting))
            del self._texts[oldest]
            self._waiting -= _PIECE

    def _wait(self, text: _Text) -> None:
        if text not in self._texts:
            self._texts[text] = None
            self._waiting += _PIECE

    def _lose(self, text: _Text, count: int) -> None:
        before = len(text.waiting)
        text.lose(count)
        self._waiting -= before - len(text.waiting)


def _read_note(note: bytes) -> tuple[int, str, int] | None:
    with suppress(ValueError, RecursionError):
        match json.loads(note):
            case [int(place), str(task_id), int(at)]:
                return place, task_id, at
    return None


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
        if any(outlet.is_untold(before=now - ROUND_S) or (outlet.due() or _NEVER) <= now for outlet in outlets):
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
