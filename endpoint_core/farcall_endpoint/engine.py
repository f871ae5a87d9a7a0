"""Runs tasks: decides what travels together, hands it to Parsl, and runs again what was lost on the way.

Little is handed over at a time, about two calls a worker; the rest waits here, so that how many tasks go into a call is
decided when we know how long they take. Scaling, and life and death of Parsl's processes, are ``supervisor``'s.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import zmq

from farcall.wire import BatchedTask, FunctionCode, TaskState

from . import chunking
from .calls import Outcome, Setting, read_outcome, write_call
from .failures import failure, lost_for_good
from .htex import Executor
from .journal import Unfinished
from .mpi import completed, specification_of

log = logging.getLogger(__name__)

#: What Parsl's workers call with the bytes we hand over.
TASK_EXECUTOR: dict[str, Any] = {"task_executor": {"f": "farcall_endpoint.worker.run_batch"}}

#: Calls per worker that Parsl has at a time: one that runs and one that is ready to follow.
CALLS_PER_WORKER = 2

#: Functions whose run time is remembered, and whose code is kept although no task of theirs is here.
MOST_ESTIMATES = 10_000
MOST_FUNCTIONS = 500


@dataclass(slots=True, eq=False)
class Held:
    """A task that the engine has."""

    task: BatchedTask
    #: How many workers it has lost while it was alone in its call: only then was it to blame.
    attempts: int = 0
    #: It was in a call that was lost, or wants nodes of its own, so it is not put together with others.
    alone: bool = False
    since: float = field(default_factory=time.monotonic)
    #: What was last said of it.
    state: TaskState | None = None


@dataclass(slots=True, eq=False)
class Call:
    """Tasks of one function that were handed to Parsl together."""

    function_id: str
    code: FunctionCode
    tasks: Sequence[Held]


@dataclass(frozen=True)
class Load:
    """How much there is to do, and who is there to do it."""

    waiting: int
    handed_over: int
    payload_bytes: int
    calls: int
    workers: int


class Engine:
    """The tasks between journal and Parsl.

    ``on_results`` gets task ids and the JSON texts of their results, ``on_lost`` ids whose attempts are to be counted.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        max_retries: int,
        nodes_per_block: int = 1,
        on_results: Callable[[Sequence[tuple[str, str]]], None],
        on_lost: Callable[[Sequence[str]], None],
    ) -> None:
        self._setting = setting
        self._max_retries = max_retries
        self._nodes_per_block = nodes_per_block
        self._on_results = on_results
        self._on_lost = on_lost
        #: Set by the supervisor: somebody should look whether a block is needed.
        self.on_demand: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self._unfollowed: deque[Future[Any]] = deque()
        self._functions: dict[str, FunctionCode] = {}
        self._queues: OrderedDict[str, deque[Held]] = OrderedDict()
        self._waiting = 0
        self._payload_bytes = 0
        self._calls: dict[Future[Any], Call] = {}
        self._estimates: OrderedDict[str, float] = OrderedDict()
        self._executor: Executor | None = None
        self._workers = 0
        self._expected_workers = 1

    # -- what the agent does ------------------------------------------------------------------------------------------

    def add(self, functions: Mapping[str, FunctionCode], tasks: Iterable[Unfinished]) -> None:
        """Take tasks that stand in the journal; each will come back through ``on_results``."""
        with self._changing():
            self._learn(functions)
            for unfinished in tasks:
                alone = (
                    self._max_retries == 0 or unfinished.attempts > 0 or bool(specification_of(unfinished.task.options))
                )
                held = Held(unfinished.task, unfinished.attempts, alone=alone)
                self._queue(held.task.function_id).append(held)
                self._count(held, 1)
            self._hand_over()
            wanted = self._waiting or self._calls
        if wanted and not self._workers:
            self.on_demand()

    def load(self) -> Load:
        with self._lock:
            handed_over = sum(len(call.tasks) for call in self._calls.values())
            return Load(self._waiting, handed_over, self._payload_bytes, len(self._calls), self._workers)

    def task_ids(self) -> set[str]:
        """All that is here, waiting or handed over."""
        with self._lock:
            tasks = [*self._queues.values(), *(call.tasks for call in self._calls.values())]
            return {held.task.task_id for part in tasks for held in part}

    def outstanding(self) -> int:
        """How many workers could be kept busy, at most: what scaling goes by."""
        load = self.load()
        return load.waiting + load.handed_over

    def changes(self, *, older_than_s: float, running_calls: int, most: int) -> dict[str, TaskState]:
        """Tasks held for longer than that whose state is another than when this was last asked.

        Parsl starts calls in their order, so with ``running_calls`` workers busy it is the first ones that are running.
        """
        oldest = time.monotonic() - older_than_s
        found: dict[str, TaskState] = {}
        with self._lock:
            running = [held for call in list(self._calls.values())[:running_calls] for held in call.tasks]
            handed = [held for call in list(self._calls.values())[running_calls:] for held in call.tasks]
            waiting = [held for queue in self._queues.values() for held in queue]
        for tasks, state in (
            (running, TaskState.RUNNING),
            (handed, TaskState.WAITING_FOR_LAUNCH),
            (waiting, TaskState.WAITING_FOR_NODES),
        ):
            for held in tasks:
                if held.since < oldest and held.state != state and len(found) < most:
                    held.state = state
                    found[held.task.task_id] = state
        return found

    # -- what the supervisor does -------------------------------------------------------------------------------------

    def use(self, executor: Executor | None) -> None:
        """Hand tasks to this executor from now on; what an earlier one had will be run again."""
        with self._changing():
            self._executor = executor
            self._workers = 0
            calls = list(self._calls.values())
            self._calls.clear()
            for call in reversed(calls):
                self._put_back(call)
            self._hand_over()

    def all_nodes_lost(self, error: BaseException, *, running_calls: int) -> None:
        """Count the end of all nodes against what they were running: one of these may have brought it about.

        Otherwise a task that ends its node would do so again and again, and take its neighbours with it for ever.
        """
        with self._lock:
            self._executor = None
            lost = list(self._calls.items())[:running_calls]
            for future, _ in lost:
                del self._calls[future]
        for _, call in lost:
            self._charge(call, error)

    def expect(self, *, workers: int, expected: int) -> None:
        """Say how many workers are connected, and how many there will be when a block starts."""
        with self._changing():
            self._workers = workers
            self._expected_workers = max(expected, 1)
            self._hand_over()

    def fail_all(self, code: str, message: str) -> None:
        """Give every task a failure for its result: nothing will run them."""
        with self._lock:
            doomed = [held for call in self._calls.values() for held in call.tasks]
            doomed += [held for queue in self._queues.values() for held in queue]
            self._calls.clear()
            self._queues.clear()
            self._waiting = self._payload_bytes = 0
        log.error("%d tasks fail: %s", len(doomed), message)
        self._on_results([failure(held.task.task_id, code, message) for held in doomed])

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the lock; afterwards wait for the calls made meanwhile. One that is done already is taken at once."""
        with self._lock:
            yield
        while self._unfollowed:
            with suppress(IndexError):
                self._unfollowed.popleft().add_done_callback(self._done)

    # -- handing over -------------------------------------------------------------------------------------------------

    def _hand_over(self) -> None:
        """Keep Parsl supplied. Called, with the lock held, whenever something has changed."""
        if self._executor is None or self._executor.bad_state_is_set:
            return
        most_calls = CALLS_PER_WORKER * (self._workers or self._expected_workers)
        while self._queues and len(self._calls) < most_calls:
            function_id, queue = next(iter(self._queues.items()))
            code = self._functions[function_id]
            chunk = self._chunk(function_id, queue, free_calls=most_calls - len(self._calls))
            call = Call(function_id, code, chunk)
            try:
                self._call(self._executor, call)
            except zmq.ZMQError as error:
                # The interchange is gone. The supervisor will notice, and bring another.
                log.warning("the interchange takes no tasks: %s", error)
                self._put_back(call)
                self.on_demand()
                return
            # Parsl raises whatever has made it go bad. What was taken from its queue must not be lost with that.
            except Exception:
                log.exception("Parsl takes no tasks, %d of them wait", len(chunk))
                self._put_back(call)
                # The supervisor's next round tries again; if this function is to blame, the others come first then.
                self._queues.move_to_end(function_id)
                if self._executor.bad_state_is_set:
                    self.on_demand()
                return
            if queue:
                # The next call is another function's, so that a long queue of one does not keep out all others.
                self._queues.move_to_end(function_id)
            else:
                self._queues.pop(function_id, None)

    def _chunk(self, function_id: str, queue: deque[Held], *, free_calls: int) -> list[Held]:
        if queue[0].alone:
            number = 1
        else:
            number = chunking.tasks_per_call(
                self._estimates.get(function_id), waiting=len(queue), free_calls=free_calls
            )
            number = chunking.within_bytes([len(queue[n].task.payload) for n in range(min(number, len(queue)))])
        chunk: list[Held] = []
        while queue and len(chunk) < number and not (chunk and queue[0].alone):
            chunk.append(queue.popleft())
        self._waiting -= len(chunk)
        return chunk

    def _call(self, executor: Executor, call: Call) -> None:
        buffer = write_call(self._setting, {call.function_id: call.code}, [held.task for held in call.tasks])
        future = executor.submit_payload(self._context(call), buffer)
        self._calls[future] = call
        self._unfollowed.append(future)

    def _context(self, call: Call) -> dict[str, Any]:
        wanted = specification_of(call.tasks[0].task.options)
        if not wanted:
            return TASK_EXECUTOR
        # What asks for nodes is alone in its call, and was checked when it came.
        return {**TASK_EXECUTOR, "resource_spec": completed(wanted, most_nodes=self._nodes_per_block)}

    # -- what comes back ----------------------------------------------------------------------------------------------

    def _done(self, future: Future[Any]) -> None:
        """Parsl's result thread calls this."""
        with self._lock:
            call = self._calls.pop(future, None)
        if call is None:
            # It was of an executor that is no longer used, and its tasks have been put back or failed.
            return
        try:
            outcome = read_outcome(future.result())
        except Exception as error:
            self._lost(call, error)
        else:
            self._finished(call, outcome)

    def _finished(self, call: Call, outcome: Outcome) -> None:
        try:
            with self._changing():
                self._observe(call.function_id, outcome.busy_s / len(call.tasks))
                for held in call.tasks:
                    self._count(held, -1, waiting=False)
                self._hand_over()
        finally:
            self._on_results(outcome.results)

    def _observe(self, function_id: str, sample_s: float) -> None:
        self._estimates[function_id] = chunking.estimate(self._estimates.get(function_id), sample_s)
        self._estimates.move_to_end(function_id)
        if len(self._estimates) > MOST_ESTIMATES:
            self._estimates.popitem(last=False)

    def _lost(self, call: Call, error: BaseException) -> None:
        with self._lock:
            executor_is_bad = self._executor is None or self._executor.bad_state_is_set
        if executor_is_bad:
            with self._lock:
                self._put_back(call)
            return
        self._charge(call, error)

    def _charge(self, call: Call, error: BaseException) -> None:
        """Run a lost call's tasks again, one a call; a task that was alone in it has used up one of its attempts."""
        log.warning("a call of %d tasks was lost: %s", len(call.tasks), error)
        if len(call.tasks) > 1:
            self._run_again(call)
            return
        (held,) = call.tasks
        held.attempts += 1
        self._on_lost([held.task.task_id])
        if held.attempts <= self._max_retries:
            self._run_again(call)
            return
        with self._changing():
            self._count(held, -1, waiting=False)
            self._hand_over()
        self._on_results([lost_for_good(held.task.task_id, held.attempts, error)])

    def _run_again(self, call: Call) -> None:
        with self._changing():
            for held in call.tasks:
                held.alone = True
            self._put_back(call)
            self._hand_over()

    def _put_back(self, call: Call) -> None:
        """To the front of their queue, in their order."""
        # While the call was on its way to its end, nobody seemed to need its function.
        self._functions.setdefault(call.function_id, call.code)
        self._queue(call.function_id).extendleft(reversed(call.tasks))
        self._waiting += len(call.tasks)

    def _learn(self, functions: Mapping[str, FunctionCode]) -> None:
        self._functions.update(functions)
        if len(self._functions) > MOST_FUNCTIONS:
            needed = {*self._queues, *functions, *(call.function_id for call in self._calls.values())}
            self._functions = {key: code for key, code in self._functions.items() if key in needed}

    # -- counting -----------------------------------------------------------------------------------------------------

    def _queue(self, function_id: str) -> deque[Held]:
        return self._queues.setdefault(function_id, deque())

    def _count(self, held: Held, change: int, *, waiting: bool = True) -> None:
        self._waiting += change if waiting else 0
        self._payload_bytes += change * len(held.task.payload)
