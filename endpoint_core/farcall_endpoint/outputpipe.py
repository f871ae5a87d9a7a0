"""The reading end of one pipe of a worker: whose text comes out of it, and what of it waits to be passed on."""

from __future__ import annotations

import codecs
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection

from farcall.wire import Output

_PIPE_BYTES = 1024 * 1024
_READ_BYTES = 256 * 1024
#: What is read of one pipe in one round at most.
_MOST_READ_BYTES = 4 * 1024 * 1024

#: Bytes of one text that wait to be passed on: when there are twice as many, the newest of them. As many characters of
#: it are passed on in a second.
KEPT_BYTES = 64 * 1024

#: Bytes that do not begin a character in UTF-8.
_CONTINUATIONS = bytes(range(0x80, 0xC0))


class Text:
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
        self.not_before = now + len(text) / KEPT_BYTES
        return Output(self.task_id, self.stream, start, text)


class OutputPipe:
    """The reading end of one pipe, and what has come out of it that is not understood yet."""

    def __init__(self, stream: str, connection: Connection, opening: bytes) -> None:
        self.stream = stream
        self.connection = connection
        self.text: Text | None = None
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
