"""One worker of a node, as its crew knows it: its process, its pipes, what it is doing, and how it ended."""

from __future__ import annotations

import os
import platform
import socket
import struct
import time
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

import psutil

from .failures import WorkerEnded
from .killing import GRACE_S, Tree
from .memory import Kills, Memory
from .outlets import Outlet

#: How long a worker that waits for work may take to read it before it counts as stuck, and one that has begun to say
#: something to finish it. The others wait meanwhile.
MOST_SENDING_S = 10


@dataclass(eq=False)
class Member:
    """A worker."""

    number: int
    process: SpawnProcess
    pipe: Connection
    outlet: Outlet
    #: What tells its processes from all others.
    root: psutil.Process
    mark: str
    #: Readable when it is dead.
    death: int
    task: dict[str, Any] | None = None
    #: It has said hello, so it can start.
    proven: bool = False
    #: Why it is being ended: ``died``, ``cancelled`` or ``timeout``.
    ending: str | None = None
    #: Why we have ended it although nobody wanted that.
    fault: str = ""
    #: Whose place it takes, until that one has ended with all that came of it: so long nothing is given to it.
    after: Member | None = None
    buried: bool = False
    #: What the kernel said of memory before its call began, and the most it has used.
    kills: Kills = field(default_factory=Kills)
    peak: int | None = None

    @classmethod
    def of(cls, number: int, process: SpawnProcess, pipe: Connection, outlet: Outlet, mark: str) -> Member:
        """One that has just been started."""
        assert process.pid is not None
        _limit_waiting(pipe)
        return cls(number, process, pipe, outlet, psutil.Process(process.pid), mark, _descriptor_of_death(process))

    def tree(self) -> Tree:
        """All that came of it."""
        running = self.outlet.running()
        return Tree(self.root, self.mark, running.task_id if running else None)

    def has_answered(self) -> bool:
        """Whether it has said something that was not read yet."""
        with suppress(OSError):
            return self.pipe.poll()
        return False

    def has_overrun(self, timeout_s: float) -> bool:
        """Whether the task that it runs has taken longer, and ought to have noticed by itself."""
        running = self.outlet.running()
        return running is not None and time.monotonic() > running.seen + timeout_s + GRACE_S

    def has_ended(self, patience_s: float) -> bool:
        """Whether it ends in that time. multiprocessing's join() waits for ever if a task closes all descriptors."""
        end = time.monotonic() + patience_s
        while self.process.is_alive():
            if time.monotonic() > end:
                return False
            time.sleep(0.01)
        return True

    def how_it_ended(self, memory: Memory) -> WorkerEnded:
        assert self.ending is not None
        running = self.outlet.running()
        # How it ended says something only if it has ended by itself.
        exit_code = None if self.fault else self.process.exitcode
        stderr = self.outlet.stderr_tail()
        said = ""
        if self.fault:
            stderr = f"{stderr}\n[the worker was ended: {self.fault}]".lstrip()
        elif self.ending == "died":
            said = memory.sentence(self.kills, self.peak, exit_code, stderr)
        task_id = running.task_id if running else None
        return WorkerEnded(self.ending, platform.node(), self.number, task_id, exit_code, said, stderr)

    def close(self) -> None:
        self.pipe.close()
        if self.death != self.process.sentinel:
            os.close(self.death)


def _descriptor_of_death(process: SpawnProcess) -> int:
    """Readable when the process has ended, whatever it has left behind that holds its pipes."""
    try:
        return os.pidfd_open(process.pid or 0)
    except (AttributeError, OSError):
        # What multiprocessing has: readable when neither the process nor a child of it lives.
        return process.sentinel


def _limit_waiting(pipe: Connection) -> None:
    limit = struct.pack("ll", MOST_SENDING_S, 0)
    with socket.socket(fileno=os.dup(pipe.fileno())) as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
