"""A worker's end of what lies between it and the crew: a pipe for calls and results, and two for what tasks print."""

from __future__ import annotations

import os
import pickle
import queue
import sys
from contextlib import AbstractContextManager, nullcontext
from multiprocessing.connection import Connection
from typing import Any

from . import streams

#: What a worker says when it is up; nothing is sent to it before.
HELLO = b""


class WorkerEnd:
    """To Parsl's worker it looks like the two queues that it wants."""

    def __init__(self, pipe: Connection, outputs: tuple[Connection, Connection], secret: str) -> None:
        self._pipe = pipe
        self._outputs = outputs
        self._secret = secret
        self._identity: tuple[int, int] | None = None
        self._has_said_hello = False

    def settle(self) -> None:
        """Have this process print into its pipes, and keep them to itself; once, when it starts."""
        os.set_inheritable(self._pipe.fileno(), False)
        streams.attach([output.fileno() for output in self._outputs], self._secret)
        self._identity = self._identify()

    def get(self, timeout: float) -> Any:
        """The next task. Raises queue.Empty; ends the process if the manager is gone."""
        try:
            if not self._has_said_hello:
                self._has_said_hello = True
                self._pipe.send_bytes(HELLO)
            if not self._pipe.poll(timeout):
                raise queue.Empty
            return pickle.loads(self._pipe.recv_bytes())
        except (EOFError, ConnectionError):
            sys.exit(0)

    def put(self, package: bytes) -> None:
        streams.flush()
        if self._identity is not None and self._identify() != self._identity:
            # Who knows what a task has put in its place.
            raise SystemExit("a task has closed the descriptor by which its worker speaks to the manager")
        self._pipe.send_bytes(package)

    def close(self) -> None:
        """In the manager, once the worker has them."""
        for connection in (self._pipe, *self._outputs):
            connection.close()

    def _identify(self) -> tuple[int, int] | None:
        try:
            status = os.fstat(self._pipe.fileno())
        except OSError:
            return None
        return status.st_dev, status.st_ino


class Uncounted:
    """Parsl's workers count in a shared number how many of them are idle; the crew knows it anyway."""

    value = 0

    def get_lock(self) -> AbstractContextManager[None]:
        return nullcontext()
