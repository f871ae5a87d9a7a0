"""The workers of one node, each at the other end of a pipe of its own.

Parsl's workers share a queue, and a lock in it goes down with a worker that is killed while it waits for work: then
no worker of that node gets anything any more, and nobody notices. Here nothing is shared, a death is noticed at once,
and what the worker was doing is reported as lost.
"""

from __future__ import annotations

import os
import pickle
import platform
import queue
import selectors
import socket
import struct
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from parsl.app.errors import RemoteExceptionWrapper
from parsl.executors.high_throughput.errors import WorkerLost
from parsl.multiprocessing import SpawnContext
from parsl.serialize import serialize

from .nodes import Nodes

#: What a worker says when it is up; nothing is sent to it before.
HELLO = b""

#: How long a worker that waits for work may take to read it before it counts as stuck. The others wait meanwhile.
MOST_SENDING_S = 10


class NotEnoughNodes(Exception):
    """A task asks for more nodes than its block has."""


class WorkerEnd:
    """A worker's end of its pipe; to Parsl's worker it looks like the two queues that it wants."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._has_said_hello = False

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
        self._pipe.send_bytes(package)


class Uncounted:
    """Parsl's workers count in a shared number how many of them are idle; the crew knows it anyway."""

    value = 0

    def get_lock(self) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass(eq=False)
class _Worker:
    number: int
    process: SpawnProcess
    pipe: Connection
    task: dict[str, Any] | None = None
    #: It has said hello, so it can start.
    proven: bool = False


class Crew:
    """Hands tasks to whoever is idle. To Parsl's manager it looks like the task scheduler and queues that it wants."""

    def __init__(self, start: Callable[[int, WorkerEnd], SpawnProcess], nodes: Nodes | None = None) -> None:
        self._start = start
        self._nodes = nodes or Nodes([])
        self._lock = threading.Lock()
        self._waiting: deque[dict[str, Any]] = deque()
        self._idle: deque[_Worker] = deque()
        self._workers: dict[int, _Worker] = {}
        self._reports: deque[bytes] = deque()
        self._unreplaced: set[int] = set()
        self._suspects: set[_Worker] = set()
        self._selector = selectors.DefaultSelector()
        self._bell, self._rope = SpawnContext.Pipe(duplex=False)
        self._selector.register(self._bell, selectors.EVENT_READ, None)
        #: The manager's list of processes, to be ended with it.
        self.processes: dict[int, SpawnProcess] = {}

    # -- what the manager does ----------------------------------------------------------------------------------------

    def hire(self, number: int) -> SpawnProcess:
        """Start a worker."""
        ours, theirs = SpawnContext.Pipe()
        process = self._start(number, WorkerEnd(theirs))
        theirs.close()
        _limit_sending(ours)
        worker = _Worker(number, process, ours)
        with self._lock:
            self._workers[number] = worker
            self._selector.register(ours, selectors.EVENT_READ, worker)
            self._selector.register(process.sentinel, selectors.EVENT_READ, worker)
        self.processes[number] = process
        return process

    def look_after(self) -> None:
        """Now and then: replace those who could not even start, and notice deaths that nothing else tells of.

        A task that leaves a child process behind leaves it our worker's pipes, and then their end is not seen.
        """
        with self._lock:
            dead = {worker for worker in self._workers.values() if not worker.process.is_alive()}
            # Only at the second look: its last result may be just being read.
            for worker in dead & self._suspects:
                self._bury(worker)
            self._suspects = dead
            numbers, self._unreplaced = self._unreplaced, set()
        for number in numbers:
            self.hire(number)
        self.put(None)

    def put_task(self, task: dict[str, Any]) -> None:
        with self._lock:
            if self._nodes.wanted(task) > self._nodes.count:
                self._reports.append(_failure(task, _too_few(self._nodes, task)))
                self.put(None)
                return
            self._waiting.append(task)
            self._hand_out()

    def qsize(self) -> int:
        return len(self._waiting)

    def put(self, package: None) -> None:
        """Have :meth:`get_result` return."""
        with suppress(OSError):
            self._rope.send_bytes(b"!")

    def get_result(self) -> bytes | None:
        """Wait for a result, or a report of a loss; None when there may be other things to look at."""
        while True:
            if self._reports:
                return self._reports.popleft()
            for key, _ in self._selector.select():
                if key.data is None:
                    self._bell.recv_bytes()
                    return self._reports.popleft() if self._reports else None
                package = self._hear(key.data)
                if package is not None:
                    return package

    # -- workers ------------------------------------------------------------------------------------------------------

    def _hear(self, worker: _Worker) -> bytes | None:
        """Take a worker's result or its hello; if it has nothing to say any more, see to its succession."""
        with suppress(EOFError, OSError):
            if not worker.pipe.closed and worker.pipe.poll():
                package = worker.pipe.recv_bytes()
                with self._lock:
                    if worker.task is not None:
                        self._nodes.take_back(worker.task)
                    worker.task = None
                    worker.proven = True
                    self._idle.append(worker)
                    self._hand_out()
                return None if package == HELLO else package
        with self._lock:
            # Its pipe and its process may both tell of the same death.
            numbers = [worker.number] if self._bury(worker) and worker.proven else []
            self._unreplaced.difference_update(numbers)
        for number in numbers:
            self.hire(number)
        return None

    def _bury(self, worker: _Worker) -> bool:
        """Forget a worker that has died. False if that has been done already."""
        if self._workers.get(worker.number) is not worker:
            return False
        del self._workers[worker.number]
        with suppress(ValueError):
            self._idle.remove(worker)
        self._selector.unregister(worker.pipe)
        self._selector.unregister(worker.process.sentinel)
        worker.pipe.close()
        self._unreplaced.add(worker.number)
        others = any(other.proven or other.process.is_alive() for other in self._workers.values())
        if self._waiting and not worker.proven and not others:
            # Perhaps no worker can ever start here: then what waits must not wait for ever.
            worker.task = self._waiting.popleft()
        if worker.task is not None:
            self._nodes.take_back(worker.task)
            self._reports.append(_failure(worker.task, WorkerLost(worker.number, platform.node())))
        # The nodes that it had may be what others wait for.
        self._hand_out()
        return True

    def _hand_out(self) -> None:
        while self._waiting and self._idle:
            worker = self._idle[0]
            if not worker.process.is_alive():
                # Its end is about to be noticed. Until then its pipe may be held by what its tasks left behind.
                self._idle.popleft()
                continue
            if not self._nodes.lend(self._waiting[0]):
                # Who came first is first: small tasks that went ahead could keep a large one waiting for ever.
                return
            self._idle.popleft()
            worker.task = self._waiting.popleft()
            try:
                worker.pipe.send_bytes(pickle.dumps(worker.task))
            except OSError:
                # It has died meanwhile, or it is stuck with half a message; its end will tell of the loss.
                worker.process.kill()


def _limit_sending(pipe: Connection) -> None:
    with socket.socket(fileno=os.dup(pipe.fileno())) as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", MOST_SENDING_S, 0))


def _too_few(nodes: Nodes, task: dict[str, Any]) -> Exception:
    return NotEnoughNodes(f"the task asks for {nodes.wanted(task)} nodes, and this block came with {nodes.count}")


def _failure(task: dict[str, Any], error: Exception) -> bytes:
    """What Parsl's manager says of a task that no worker will answer."""
    try:
        raise error
    except Exception:
        exception = serialize(RemoteExceptionWrapper(*sys.exc_info()))
    return pickle.dumps({"type": "result", "task_id": task["task_id"], "exception": exception})
