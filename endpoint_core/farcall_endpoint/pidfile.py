"""Whether an endpoint's agent is alive: ``agent.pid``, held under a lock for as long as the agent lives.

The lock says that it lives, never the number: after a reboot that may be somebody else's. The kernel drops the lock
with the process, however that ended, and a forked child does not inherit it. (A POSIX lock also goes when the process
that has it closes the file once more; so the agent itself must not ask about its own state.)
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from farcall.errors import FarcallError

from .directories import read_endpoint_id

_NAME = "agent.pid"
_ATTEMPTS = 10


class AlreadyRunning(FarcallError, RuntimeError):
    """Another agent has the endpoint's directory."""


class NotWritable(FarcallError, OSError):
    """A file of the endpoint's cannot be written, most likely as its disk is full."""

    def __init__(self, path: object, error: OSError) -> None:
        super().__init__(f"{path} cannot be written: {error.strerror or error}. Is its disk full?")


class State(enum.Enum):
    """What ``farcall-endpoint list`` says of an endpoint."""

    #: Configured, and never registered with the service.
    INITIALIZED = "Initialized"
    RUNNING = "Running"
    #: Not running, by its own will.
    STOPPED = "Stopped"
    #: Not running, and it did not say goodbye: killed, or the machine went down.
    DISCONNECTED = "Disconnected"


@dataclasses.dataclass(frozen=True)
class Holder:
    """The agent that wrote ``agent.pid``; it need not live any more."""

    pid: int
    hostname: str
    #: Seconds since 1970.
    started: float

    @property
    def is_here(self) -> bool:
        return self.hostname == socket.gethostname()


@contextlib.contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold ``agent.pid`` while an agent runs; it is gone after an orderly end. Raises AlreadyRunning or NotWritable."""
    descriptor = _open_locked(directory / _NAME)
    try:
        holder = Holder(os.getpid(), socket.gethostname(), time.time())
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(dataclasses.asdict(holder)).encode() + b"\n", 0)
        except OSError as error:
            # Nothing has run, so nothing was disconnected.
            (directory / _NAME).unlink(missing_ok=True)
            raise NotWritable(directory / _NAME, error) from error
        yield
        (directory / _NAME).unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def read_holder(directory: Path) -> Holder | None:
    """Who wrote ``agent.pid``; None if there is none, or it is just being written."""
    try:
        document = json.loads((directory / _NAME).read_text())
        return Holder(int(document["pid"]), str(document["hostname"]), float(document["started"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def state_of(directory: Path) -> State:
    """What an endpoint is doing, without asking the service."""
    path = directory / _NAME
    if path.exists():
        return State.RUNNING if _is_locked(path) else State.DISCONNECTED
    return State.STOPPED if read_endpoint_id(directory) else State.INITIALIZED


def clean_up(directory: Path) -> None:
    """Remove what an agent left that did not end by itself. Raises AlreadyRunning if it lives after all."""
    descriptor = _open_locked(directory / _NAME)
    (directory / _NAME).unlink(missing_ok=True)
    os.close(descriptor)


def _open_locked(path: Path) -> int:
    """Open and lock the file. Whoever asks for the state holds the lock for an instant, hence several attempts."""
    for _ in range(_ATTEMPTS):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # Between open and lock the file may have been removed by the one that had it.
        if _lock(descriptor, fcntl.LOCK_EX) and _is_still_there(path, descriptor):
            return descriptor
        os.close(descriptor)
        time.sleep(0.02)
    raise AlreadyRunning(f"an agent of the endpoint {path.parent.name!r} runs already")


def _is_locked(path: Path) -> bool:
    try:
        # Not for writing: a shared lock is enough to find out, and does not make two who ask see each other.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not _lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.lockf(descriptor, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _is_still_there(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
