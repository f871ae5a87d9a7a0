"""The workers of one node, each at the other end of a pipe of its own.

Parsl's workers share a queue, and a lock in it goes down with a worker that is killed while it waits for work: then
no worker of that node gets anything any more, and nobody notices. Here nothing is shared, a death is noticed at once,
and what the worker was doing is reported with all that is known of the death. A worker whose call is no longer wanted
is ended with all that came of it.
"""

from __future__ import annotations

import logging
import os
import pickle
import platform
import secrets
import selectors
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnProcess
from typing import Any

from parsl.app.errors import RemoteExceptionWrapper
from parsl.multiprocessing import SpawnContext
from parsl.serialize import serialize

from . import killing
from .bell import Bell
from .blocktime import BlockTime
from .crewmember import Member
from .failures import WorkerEnded
from .killing import GRACE_S
from .listener import Listener
from .memory import Memory
from .nodes import Nodes
from .outlets import Outlet
from .workerend import HELLO, WorkerEnd

log = logging.getLogger(f"parsl.{__name__}")

#: A worker that has closed its pipe is dying. If it lives on, a task has closed it: nothing can come of that.
_MOST_DYING_S = 1.0

#: Calls that are no longer wanted and may still come.
_MOST_UNWANTED = 100_000

#: How often the memory of workers is looked at, and the time.
_TICK_S = 0.5


class _Closed(Exception):
    """Nobody is hired any more."""


class NotEnoughNodes(Exception):
    """A task asks for more nodes than its block has."""


class Crew:
    """Hands tasks to whoever is idle. To Parsl's manager it looks like the task scheduler and queues that it wants.

    ``ends_at`` says when the block ends, in seconds since 1970; ``on_news`` is called when :meth:`Listener.gather` has
    something to say.
    """

    def __init__(
        self,
        start: Callable[[int, WorkerEnd], SpawnProcess],
        nodes: Nodes | None = None,
        *,
        ends_at: float | None = None,
        on_news: Callable[[], None] = lambda: None,
        memory: Memory | None = None,
    ) -> None:
        self._start = start
        self._nodes = nodes or Nodes([])
        self._time = BlockTime(ends_at)
        self._memory = memory or Memory()
        self._lock = threading.Lock()
        self._hiring = threading.Lock()
        self._waiting: deque[dict[str, Any]] = deque()
        self._idle: deque[Member] = deque()
        self._workers: set[Member] = set()
        self._reports: deque[bytes] = deque()
        self._unreplaced: set[int] = set()
        self._unwanted: OrderedDict[int, None] = OrderedDict()
        self._kills = self._memory.kills()
        self._selector = selectors.DefaultSelector()
        self._bell = Bell()
        self._selector.register(self._bell.fileno(), selectors.EVENT_READ, None)
        self._killer = killing.Killer()
        #: The processes that are not orphans: somebody waits for each.
        self._own: set[int] = set()
        self._clock: threading.Thread | None = None
        self._closed = False
        self.listener = Listener(on_news)
        #: The manager's list of processes, to be ended with it.
        self.processes: dict[int, SpawnProcess] = {}

    # -- what the manager does ----------------------------------------------------------------------------------------

    def hire(self, number: int) -> SpawnProcess:
        """Start a worker."""
        return self._hire(number, None)

    def _hire(self, number: int, after: Member | None) -> SpawnProcess:
        ours, theirs = SpawnContext.Pipe()
        outputs = [SpawnContext.Pipe(duplex=False) for _ in range(2)]
        secret, mark = secrets.token_hex(8), f"{os.getpid()}-{number}-{secrets.token_hex(8)}"
        end = WorkerEnd(theirs, (outputs[0][1], outputs[1][1]), secret)
        with self._hiring:
            if self._closed:
                raise _Closed
            # It serves all of them. Started with the first, it would bear that one's mark and be ended with it.
            resource_tracker.ensure_running()
            os.environ[killing.MARK] = mark
            try:
                process = self._start(number, end)
            finally:
                del os.environ[killing.MARK]
            outlet = Outlet(number, platform.node(), [reading for reading, _ in outputs], secret)
            worker = Member.of(number, process, ours, outlet, mark)
            self._own.add(worker.root.pid)
        end.close()
        with self._lock:
            worker.after = after if after is not None and not after.buried else None
            self._workers.add(worker)
            self._selector.register(ours, selectors.EVENT_READ, worker)
            self._selector.register(worker.death, selectors.EVENT_READ, worker)
            if self._clock is None:
                self._clock = threading.Thread(target=self._tick, name="crew's clock", daemon=True)
                self._clock.start()
        self.listener.add(outlet)
        self.processes[number] = process
        return process

    def close(self) -> None:
        """The manager ends: nobody is hired any more."""
        with self._hiring:
            self._closed = True

    def look_after(self) -> None:
        """Now and then: replace those who could not even start, and those for whom nobody could be started."""
        with self._lock:
            numbers, self._unreplaced = self._unreplaced, set()
        for number in numbers:
            self._try_to_hire(number, None)
        self.put(None)

    def reap_orphans(self) -> None:
        """Take note of the deaths of orphans, for a process that has adopted them and has no other children."""
        with self._hiring, suppress(OSError):
            while (dead := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                if dead.si_pid in self._own:
                    return
                os.waitpid(dead.si_pid, os.WNOHANG)

    def put_task(self, task: dict[str, Any]) -> None:
        with self._lock:
            if task["task_id"] in self._unwanted:
                self._report(task, self._cancelled())
            elif self._nodes.wanted(task) > self._nodes.count:
                self._report(task, _too_few(self._nodes, task))
            elif not self._time.fits(task):
                self._give_back(task)
            else:
                self._waiting.append(task)
                self._hand_out()

    def cancel(self, call_ids: Collection[int], grace_s: float) -> None:
        """End these calls, those that run or wait here and those that are still to come."""
        with self._lock:
            for call_id in call_ids:
                self._unwanted[call_id] = None
                self._unwanted.move_to_end(call_id)
            while len(self._unwanted) > _MOST_UNWANTED:
                self._unwanted.popitem(last=False)
            unwanted = set(call_ids)
            for task in [task for task in self._waiting if task["task_id"] in unwanted]:
                self._waiting.remove(task)
                self._report(task, self._cancelled())
            for worker in list(self._workers):
                # If its result is there already, it has ended by itself.
                if worker.task is not None and worker.task["task_id"] in unwanted and not worker.has_answered():
                    self._end(worker, "cancelled", grace_s)

    def qsize(self) -> int:
        return len(self._waiting)

    def put(self, package: None) -> None:
        """Have :meth:`get_result` return."""
        self._bell.ring()

    def get_result(self) -> bytes | None:
        """Wait for a result, or a report of a loss; None when there may be other things to look at."""
        while True:
            if self._reports:
                return self._reports.popleft()
            for key, _ in self._selector.select():
                if key.data is None:
                    self._bell.silence()
                    return self._reports.popleft() if self._reports else None
                package = self._hear(key.data)
                if package is not None:
                    return package

    # -- workers ------------------------------------------------------------------------------------------------------

    def _hear(self, worker: Member) -> bytes | None:
        """Take a worker's result or its hello; if it has nothing to say any more, see to its end and succession."""
        with suppress(EOFError, OSError):
            if worker.ending is None and worker.pipe.poll():
                package = worker.pipe.recv_bytes()
                # What it has printed lies in its pipes by now. The next call's text must not get mixed up with it.
                worker.outlet.end()
                self.listener.hurry(worker.outlet)
                with self._lock:
                    if worker.ending is not None:
                        # It has been too late.
                        return None
                    if worker.task is not None:
                        self._nodes.take_back(worker.task)
                    worker.task = None
                    worker.proven = True
                    if worker.after is None:
                        self._idle.append(worker)
                    self._hand_out()
                return None if package == HELLO else package
        with self._lock:
            self._end(worker, "died", GRACE_S)
        return None

    def _end(self, worker: Member, cause: str, grace_s: float) -> None:
        """Have a worker's processes ended, if that has not begun already, and hear no more of it until then."""
        if worker.ending is not None:
            return
        worker.ending = cause
        self._workers.discard(worker)
        with suppress(ValueError):
            self._idle.remove(worker)
        self._selector.unregister(worker.pipe)
        self._selector.unregister(worker.death)
        if worker.proven:
            # It takes a while to be up, which is as well used now.
            try:
                threading.Thread(target=self._try_to_hire, args=(worker.number, worker), daemon=True).start()
            except RuntimeError as error:
                log.error("no thread can be started to replace worker %d: %s", worker.number, error)
                self._unreplaced.add(worker.number)
        else:
            self._unreplaced.add(worker.number)
        tree = worker.tree()
        if cause == "died" and worker.process.is_alive():
            # Its pipe is closed, and it is probably on its way out.
            threading.Thread(target=self._await_death, args=(worker, tree, grace_s), daemon=True).start()
        else:
            self._killer.end(tree, grace_s, lambda: self._bury(worker))

    def _try_to_hire(self, number: int, after: Member | None) -> None:
        """If that cannot be done now, perhaps as its task has used up all processes or memory, it is tried again."""
        try:
            self._hire(number, after)
        except _Closed:
            pass
        # Whatever it is: a worker less for as long as this node lives would be worse.
        except Exception as error:
            log.error("worker %d cannot be replaced now, trying again: %s", number, error)
            with self._lock:
                self._unreplaced.add(number)

    def _await_death(self, worker: Member, tree: killing.Tree, grace_s: float) -> None:
        if not worker.has_ended(_MOST_DYING_S):
            worker.fault = worker.fault or "its connection to the manager was closed, perhaps by the task"
        self._killer.end(tree, grace_s, lambda: self._bury(worker))

    def _bury(self, worker: Member) -> None:
        """A worker has ended, and all that came of it: report what it was doing, and see to its succession."""
        worker.has_ended(_MOST_DYING_S)
        with self._hiring:
            self._own.discard(worker.root.pid)
        worker.outlet.drain()
        with self._lock:
            worker.buried = True
            others = any(other.proven or other.process.is_alive() for other in self._workers)
            if self._waiting and not worker.proven and not others:
                # Perhaps no worker can ever start here: then what waits must not wait for ever.
                worker.task = self._waiting.popleft()
            if worker.task is not None:
                self._nodes.take_back(worker.task)
                self._report(worker.task, worker.how_it_ended(self._memory))
            for successor in [other for other in self._workers if other.after is worker]:
                successor.after = None
                if successor.proven:
                    self._idle.append(successor)
            # The nodes that it had may be what others wait for.
            self._hand_out()
        self.listener.remove(worker.outlet)
        worker.close()

    def _hand_out(self) -> None:
        while self._waiting and self._idle:
            worker = self._idle[0]
            if not worker.process.is_alive():
                # Its end is about to be noticed. Until then its pipe may be held by what its tasks left behind.
                self._idle.popleft()
                continue
            if not self._time.fits(self._waiting[0]):
                self._give_back(self._waiting.popleft())
                continue
            if not self._nodes.lend(self._waiting[0]):
                # Who came first is first: small tasks that went ahead could keep a large one waiting for ever.
                return
            self._idle.popleft()
            worker.task = self._waiting.popleft()
            worker.kills, worker.peak = self._kills, None
            worker.outlet.begin(worker.task["task_id"])
            try:
                worker.pipe.send_bytes(pickle.dumps(worker.task))
            except OSError:
                # It has died meanwhile, or it is stuck with half a message; its end will tell of the loss.
                if worker.process.is_alive():
                    worker.fault = "it did not read its next call"
                    worker.process.kill()

    # -- time ---------------------------------------------------------------------------------------------------------

    def _give_back(self, task: dict[str, Any]) -> None:
        self._time.put_aside(task)
        self._give_back_untimely()

    def _give_back_untimely(self) -> None:
        for task, why in self._time.to_be_given_back():
            self._report(task, why)

    def _tick(self) -> None:
        while True:
            time.sleep(_TICK_S)
            try:
                self._look_at_the_clock()
            except Exception:
                log.exception("looking at the workers failed")

    def _look_at_the_clock(self) -> None:
        with self._lock:
            self._give_back_untimely()
            busy = [worker for worker in self._workers if worker.task is not None]
        self._kills = self._memory.kills()
        for worker in busy:
            worker.peak = max(worker.peak or 0, self._memory.peak(worker.root.pid) or 0) or None
            timeout_s = self._time.limit_of(worker.task)
            if timeout_s is not None and worker.has_overrun(timeout_s):
                with self._lock:
                    # Another task may have begun meanwhile, or it has ended.
                    worker.outlet.drain()
                    if worker.has_overrun(timeout_s) and not worker.has_answered():
                        self._end(worker, "timeout", GRACE_S)

    # -- reports ------------------------------------------------------------------------------------------------------

    def _report(self, task: dict[str, Any], error: Exception) -> None:
        self._reports.append(_failure(task, error))
        self.put(None)

    def _cancelled(self) -> WorkerEnded:
        return WorkerEnded("cancelled", platform.node(), -1)


def _too_few(nodes: Nodes, task: dict[str, Any]) -> Exception:
    return NotEnoughNodes(f"the task asks for {nodes.wanted(task)} nodes, and this block came with {nodes.count}")


def _failure(task: dict[str, Any], error: Exception) -> bytes:
    """What Parsl's manager says of a task that no worker will answer."""
    try:
        raise error
    except Exception:
        exception = serialize(RemoteExceptionWrapper(*sys.exc_info()))
    return pickle.dumps({"type": "result", "task_id": task["task_id"], "exception": exception})
