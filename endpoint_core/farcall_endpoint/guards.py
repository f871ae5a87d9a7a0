"""What keeps one task from spoiling its worker for the next: a time limit, and bounds on what it prints."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

#: A worker's output file is emptied when a task leaves it larger than this.
MOST_OUTPUT_BYTES = 10 * 1024 * 1024

#: A task that swallows its TaskTimeout is reminded this often.
REMIND_EVERY_S = 5.0

_redirected_pid: int | None = None
#: Device and number of this process's own output file; what a task puts in its place is the task's.
_output_file: tuple[int, int] | None = None


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
        signal.setitimer(signal.ITIMER_REAL, seconds, REMIND_EVERY_S)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)


def _raise_timeout(signal_number: int, frame: FrameType | None) -> None:
    raise TaskTimeout


def redirect_output(directory: str) -> None:
    """Send what this process prints, also below Python, to a file of its own; once a process."""
    global _redirected_pid, _output_file  # noqa: PLW0603 - it is the process's output, of which there is one
    if _redirected_pid == os.getpid():
        return
    _redirected_pid = os.getpid()
    block, rank = os.environ.get("PARSL_WORKER_BLOCK_ID", "0"), os.environ.get("PARSL_WORKER_RANK", "0")
    name = f"block-{block}-{os.uname().nodename}-worker-{rank}.out"
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
        # Appending, so that what is printed after the file was emptied begins at its beginning.
        file = os.open(Path(directory, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        print(f"the output of this worker stays where it was: {error}", file=sys.stderr)  # noqa: T201
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    status = os.fstat(file)
    _output_file = status.st_dev, status.st_ino
    os.close(file)


def keep_output_small() -> None:
    """Empty this process's output file if the last task made it too large."""
    for stream in (sys.stdout, sys.stderr):
        # A task may have closed or replaced it.
        with contextlib.suppress(ValueError, OSError, AttributeError):
            stream.flush()
    with contextlib.suppress(OSError):
        status = os.fstat(1)
        if (status.st_dev, status.st_ino) == _output_file and status.st_size > MOST_OUTPUT_BYTES:
            os.ftruncate(1, 0)
            os.write(1, f"[output up to here was removed, it was over {MOST_OUTPUT_BYTES} bytes]\n".encode())
