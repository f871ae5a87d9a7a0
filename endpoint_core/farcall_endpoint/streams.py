r"""A worker's end of the two pipes through which its manager hears what tasks print.

Where a task begins there is a mark in both: its secret, which no task can print by chance, and a line of JSON: the
task's place among all that this worker has run, its id, and the time. So whoever reads knows whose text follows, and
which task runs, and no message has to be sent for it.
"""

from __future__ import annotations

import ctypes
import io
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from json.encoder import encode_basestring_ascii
from typing import TextIO

from farcall.wire import STREAMS

#: From <fcntl.h> of C's library: a line at a time.
_IOLBF = 1


def mark(secret: str) -> bytes:
    """What every mark begins with; a newline ends it."""
    return f"\0farcall {secret} ".encode()


class _Stream:
    """One of the two: the descriptor that tasks use, and a hold of our own on the pipe behind it."""

    def __init__(self, name: str, number: int, pipe: int) -> None:
        self._name = name
        self._number = number
        self._pipe = pipe
        os.set_inheritable(pipe, False)
        self._identity = _identity(pipe)
        self._file: TextIO | None = None

    def begin(self, note: bytes) -> None:
        """Undo what the task before may have done to it, and write a mark."""
        if _identity(self._pipe) != self._identity:
            # With it, what tasks print cannot be told apart any more. Our successor has everything again.
            raise SystemExit(f"a task has closed the descriptor that its worker keeps for {self._name}")
        if _identity(self._number) != self._identity:
            os.dup2(self._pipe, self._number)
        os.set_blocking(self._pipe, True)
        if self._file is None or self._file.closed or getattr(sys, self._name) is not self._file:
            self._file = self._open()
            setattr(sys, self._name, self._file)
        os.write(self._pipe, note)

    def _open(self) -> TextIO:
        raw = io.FileIO(self._number, "w", closefd=False)
        return io.TextIOWrapper(
            io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True
        )


_streams: list[_Stream] = []
_mark = b""
_begun = 0


def attach(pipes: Sequence[int], secret: str) -> None:
    """Have this process print into these pipes, the first for stdout; once, when the worker starts."""
    global _mark  # noqa: PLW0603 - it is the process's output, of which there is one
    flush()
    _mark = mark(secret)
    for number, (name, pipe) in enumerate(zip(STREAMS, pipes, strict=True), start=1):
        os.dup2(pipe, number)
        _streams.append(_Stream(name, number, pipe))
    with suppress(OSError, ValueError, AttributeError):
        # To a pipe, C's own library would print when it has gathered a page, long after the task has ended.
        library = ctypes.CDLL(None)
        library.setvbuf(ctypes.c_void_p.in_dll(library, "stdout"), None, _IOLBF, 0)


def begin(task_id: str) -> None:
    """What is printed from now on is this task's. Ends the process if a task has taken the means to say so."""
    global _begun  # noqa: PLW0603 - as above
    if not _streams:
        return
    _begun += 1
    # This is done for every task, however short: json.dumps() of the list would take several times as long.
    note = _mark + f"[{_begun},{encode_basestring_ascii(task_id)},{time.time_ns()}]\n".encode()
    for stream in _streams:
        stream.begin(note)


def flush() -> None:
    """Let go of what has been printed and is still in here."""
    for file in (sys.stdout, sys.stderr):
        try:  # noqa: SIM105 - suppress() takes longer than what it would be for
            file.flush()
        # A task may have closed it, or put anything in its place.
        except Exception:
            pass


def _identity(descriptor: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    return status.st_dev, status.st_ino
