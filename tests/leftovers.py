"""No process outlives a run of the tests, however the run ends."""

from __future__ import annotations

import contextlib
import os
import sys
import uuid

import psutil

#: The variable that every process of a run inherits, but for servers, which end by themselves, and those on islands.
_MARK = "TESTS_OF_FARCALL"


def begin() -> None:
    """From now on what is started belongs to this run; called before there are workers."""
    os.environ[_MARK] = uuid.uuid4().hex


def end() -> None:
    """Kill what is left of the run, and name it. After a Ctrl-C workers have little time to stop what they started."""
    # Twice, as the kernel cannot tell the environment of a process that is just beginning.
    for _ in range(2):
        left = {process.pid: process for process in psutil.process_iter() if _is_of_this_run(process)}
        for pid, process in left.items():
            with contextlib.suppress(psutil.NoSuchProcess):
                command = " ".join(" ".join(process.cmdline()).split())
                sys.stderr.write(f"ended what the tests had left: {pid} {command[:100]}\n")
                process.kill()


def _is_of_this_run(process: psutil.Process) -> bool:
    # What the process was started with: its own changes do not show.
    with contextlib.suppress(psutil.Error):
        return process.pid != os.getpid() and process.environ().get(_MARK) == os.environ[_MARK]
    return False
