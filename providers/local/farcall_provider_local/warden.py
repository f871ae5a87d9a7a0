"""Runs one block and leaves nothing of it behind. A program of its own: ``warden.py LIFELINE WALLTIME SHELL SCRIPT``.

LIFELINE is the reading end of a pipe that the agent holds open: its end means that the agent is gone. A group of
processes is not enough to find what a block started, since a task may start sessions of its own; so the warden makes
itself the parent of every orphan below it, and is done when it has no child left.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
#: Between asking the block to end and killing it.
_GRACE_S = 2.0


def main(lifeline: int, walltime_s: int, shell: str, script: str) -> int:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    os.set_inheritable(lifeline, False)
    signals = _signals_as_bytes()
    block = os.posix_spawn(shell, [shell, "-c", script], os.environ, setsigdef=[signal.SIGPIPE, signal.SIGXFSZ])
    status = _watch(block, lifeline, signals, time.monotonic() + walltime_s if walltime_s else None)
    _kill_all()
    return status


def _watch(block: int, lifeline: int, signals: int, walltime_end: float | None) -> int:
    """Wait for the block's end, or see to it. Returns the exit code that a shell would report."""
    kill_at: float | None = None
    while True:
        status = _reap(block)
        if status is not None:
            return status
        due = kill_at if kill_at is not None else walltime_end
        ready, _, _ = select.select(
            [lifeline, signals], [], [], None if due is None else max(0, due - time.monotonic())
        )
        if lifeline in ready or (kill_at is not None and time.monotonic() >= kill_at):
            return 128 + signal.SIGKILL
        asked_to_end = signals in ready and signal.SIGTERM in os.read(signals, 4096)
        overdue = walltime_end is not None and time.monotonic() >= walltime_end
        if kill_at is None and (asked_to_end or overdue):
            if overdue:
                print("the block's walltime is over", flush=True)  # noqa: T201 - this is the block's output
            kill_at = time.monotonic() + _GRACE_S
            _signal_all(signal.SIGTERM)


def _signals_as_bytes() -> int:
    """A descriptor on which SIGTERM and SIGCHLD arrive, each as a byte."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda _number, _frame: None)
    return reading


def _reap(block: int) -> int | None:
    """Take note of children that have ended. Returns the block's exit code if it was among them."""
    found = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == block:
                code = os.waitstatus_to_exitcode(status)
                found = code if code >= 0 else 128 - code
    return found


def _kill_all() -> None:
    """Kill every process below this one. Those of a killed parent come to us, so no child means that all are gone."""
    with contextlib.suppress(ChildProcessError):
        while True:
            _signal_all(signal.SIGKILL)
            os.waitpid(-1, 0)


def _signal_all(number: signal.Signals) -> None:
    for pid in _descendants(os.getpid()):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _descendants(root: int) -> list[int]:
    """The processes below ``root``, parents first."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            # One that ends while we look is of no interest.
            with contextlib.suppress(OSError):
                # The name before the last bracket may hold anything; then come the state and the parent.
                stat = Path(entry.path, "stat").read_text(errors="replace")
                children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found[1:]


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]))
