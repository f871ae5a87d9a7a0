"""What keeps one task from spoiling its worker for the next: a time limit."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from farcall.errors import ConfigurationError

#: A task that swallows its TaskTimeout is reminded this often.
REMIND_EVERY_S = 5.0


class TaskTimeout(BaseException):
    """Raised inside a task that has run too long. No Exception, so that ``except Exception`` does not swallow it."""


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise :class:`TaskTimeout` in the block when it has taken that long. None is no limit.

    It works in a process's main thread, where workers run their tasks; a call that never returns to the interpreter,
    such as one deep in a C library, is stopped only when it does.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.signal(signal.SIGALRM, _raise_timeout)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds, REMIND_EVERY_S)
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        # Again: the time may have been up in the very moment in which it was stopped.
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)


def node_timeout_s() -> float | None:
    """The time limit that the node sets for tasks without one of their own, as Globus Compute does it."""
    text = os.environ.get("GC_TASK_TIMEOUT")
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise ConfigurationError(f"GC_TASK_TIMEOUT on this node is {text!r}, not a number of seconds") from None


def _raise_timeout(signal_number: int, frame: FrameType | None) -> None:
    raise TaskTimeout
