"""Runs tasks: decides what travels together, hands it to Parsl, and runs again what was lost on the way.

Little is handed over at a time, about two calls a worker; the rest waits here, so that how many tasks go into a call is
decided when we know how long they take. Scaling, and life and death of Parsl's processes, are ``supervisor``'s.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Protocol

import zmq

from farcall.wire import FunctionCode, TaskState, Transition

from . import attempts, verdicts
from .attempts import Attempt
from .backlog import Backlog
from .calls import Outcome, Setting, read_outcome, write_call
from .failures import TooLittleTime, WorkerEnded, failure
from .held import Call, Held, Kind, Load
from .htex import Executor
from .journal import Unfinished
from .mpi import completed, specification_of
from .remaining import Remaining
from .sightings import Node, Started
from .verdicts import Verdict

log = logging.getLogger(__name__)

#: What Parsl's workers call with the bytes we hand over.
TASK_EXECUTOR: dict[str, Any] = {"task_executor": {"f": "farcall_endpoint.worker.run_batch"}}

#: Calls per worker that Parsl has at a time: one that runs and one that is ready to follow.
CALLS_PER_WORKER = 2


class Listener(Protocol):
    """Who writes down what becomes of the tasks. May be called from any thread, without a lock of the engine's held.

    Only ``handing_over`` and ``not_started`` are called with it held, so that they come in the order in which things
    happen. ``handing_over`` keeps a task from being handed over if it raises sqlite3.Error.
    """

    def ended(self, results: Sequence[tuple[str, str]]) -> None:
        """Task ids and the JSON texts of their results."""

    def attempted(self, failed: Sequence[Attempt]) -> None: ...

    def handing_over(self, task_ids: Sequence[str]) -> None:
        """These, which must not start twice, may start from now on."""

    def not_started(self, task_ids: Sequence[str]) -> None:
        """They were handed over, have come back without having started, and have not been handed over again since."""


class Engine:
    """The tasks between journal and Parsl."""

    def __init__(self, setting: Setting, *, max_retries: int, nodes_per_block: int = 1, listener: Listener) -> None:
        self._setting = setting
        self._max_retries = max_retries
        self._nodes_per_block = nodes_per_block
        self._listener = listener
        #: Set by the supervisor: somebody should look whether a block is needed.
        self.on_demand: Callable[[], None] = lambda: None
        #: Set by the supervisor: the loss of a node, with what is known of how its block ended.
        self.explain: Callable[[Exception], Exception] = lambda error: error
        self._lock = threading.Lock()
        self._unfollowed: deque[Future[Any]] = deque()
        self._results: list[tuple[str, str]] = []
        self._failed: list[Attempt] = []
        self._not_started: list[str] = []
        self._backlog = Backlog()
        self._payload_bytes = 0
        self._calls: dict[Future[Any], Call] = {}
        self._numbers: dict[int, Call] = {}
        self._remaining = Remaining()
        self._executor: Executor | None = None
        self._workers = 0
        self._expected_workers = 1

    # -- what the agent does ------------------------------------------------------------------------------------------

    def add(self, functions: Mapping[str, FunctionCode], tasks: Iterable[Unfinished]) -> None:
        """Take tasks that stand in the journal; each will end with a result for the listener."""
        with self._changing():
            self._backlog.learn(functions, in_use=self._functions_in_calls)
            for unfinished in tasks:
                held = self._held(unfinished)
                if unfinished.cancelled:
                    self._results.append(attempts.cancelled(held.task.task_id, held.attempts))
                elif unfinished.handed_over and held.kind.once:
                    reason = "it was handed to a worker before, and how it ended is not known any more"
                    self._results.append(attempts.not_again(held.task.task_id, held.attempts, reason))
                else:
                    self._backlog.add(held)
                    self._payload_bytes += len(held.task.payload)
            self._hand_over()
            wanted = self._backlog or self._calls
        if wanted and not self._workers:
            self.on_demand()

    def cancel(self, task_ids: Collection[str]) -> None:
        """End these tasks wherever they are; those that are not here are none of ours."""
        wanted = frozenset(task_ids)
        with self._changing():
            for held in self._backlog.remove(wanted):
                self._end(held, attempts.cancelled(held.task.task_id, held.attempts))
            for call in self._calls.values():
                for held in call.tasks:
                    held.cancelled = held.cancelled or held.task.task_id in wanted
            self._end_unwanted()
            self._hand_over()

    def load(self) -> Load:
        with self._lock:
            handed_over = sum(len(call.tasks) for call in self._calls.values())
            return Load(len(self._backlog), handed_over, self._payload_bytes, len(self._calls), self._workers)

    def task_ids(self) -> set[str]:
        """All that is here, waiting or handed over."""
        with self._lock:
            return {held.task.task_id for held in self._all()}

    def outstanding(self) -> int:
        """How many workers could be kept busy, at most: what scaling goes by."""
        with self._lock:
            handed_over = sum(len(call.tasks) for call in self._calls.values())
            # For those who need more time than is left here, the workers that are here do not count.
            useless = any(not self._remaining.suffices(kind) for kind in self._backlog.kinds)
            return len(self._backlog) + handed_over + (self._workers if useless else 0)

    def news(self, *, older_than_s: float, most: int) -> dict[str, list[Transition]]:
        """What has become of tasks since this was last asked: where they run, attempts that failed, and where they
        wait if they have waited there for so long."""
        found: dict[str, list[Transition]] = {}
        with self._lock:
            for held in self._all():
                if len(found) >= most:
                    break
                if told := held.news(older_than_s):
                    found[held.task.task_id] = told
        return found

    # -- what the nodes say -------------------------------------------------------------------------------------------

    def nodes_changed(self, nodes: Sequence[Node]) -> None:
        with self._changing():
            self._remaining.nodes_changed(nodes)
            self._hand_over()

    def started(self, sightings: Iterable[Started]) -> None:
        with self._lock:
            for seen in sightings:
                call = self._numbers.get(seen.call_id)
                if call is None:
                    continue
                for held in call.tasks:
                    if held.task.task_id == seen.task_id:
                        held.enter(TaskState.RUNNING, at=seen.at, note=f"on {seen.hostname}")
                        call.running = held
            self._end_unwanted()

    # -- what the supervisor does -------------------------------------------------------------------------------------

    def use(self, executor: Executor | None) -> None:
        """Hand tasks to this executor from now on; what an earlier one had will be run again."""
        with self._changing():
            self._executor = executor
            self._workers = 0
            self._remaining = Remaining()
            calls = list(self._calls.values())
            self._calls.clear()
            self._numbers.clear()
            for call in reversed(calls):
                self._settle(call, verdicts.on_interruption(call, "the endpoint's engine was started again"))
            self._hand_over()

    def all_nodes_lost(self, error: BaseException, *, running_calls: int) -> None:
        """Count the end of all nodes against what they were running: one of these may have brought it about.

        Otherwise a task that ends its node would do so again and again, and take its neighbours with it for ever.
        """
        with self._changing():
            self._executor = None
            lost = list(self._calls.items())[:running_calls]
            for future, call in lost:
                self._forget(future)
                log.warning("a call of %d tasks was lost: %s", len(call.tasks), error)
                self._settle(call, verdicts.on_loss(call, error))

    def expect(self, *, workers: int, expected: int) -> None:
        """Say how many workers are connected, and how many there will be when a block starts."""
        with self._changing():
            self._workers = workers
            self._expected_workers = max(expected, 1)
            self._hand_over()

    def fail_all(self, code: str, message: str) -> None:
        """Give every task a failure for its result: nothing will run them."""
        with self._changing():
            doomed = [*self._all()]
            self._calls.clear()
            self._numbers.clear()
            self._backlog.clear()
            self._payload_bytes = 0
            for held in doomed:
                history = [attempt.transition for attempt in held.attempts]
                self._results.append(failure(held.task.task_id, code, message, history))
        log.error("%d tasks fail: %s", len(doomed), message)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the lock; afterwards tell the listener, and wait for the calls made meanwhile.

        A call that is done already is taken at once.
        """
        try:
            with self._lock:
                yield
            while self._unfollowed:
                with suppress(IndexError):
                    self._unfollowed.popleft().add_done_callback(self._done)
        finally:
            self._tell()

    def _tell(self) -> None:
        with self._lock:
            results, self._results = self._results, []
            failed, self._failed = self._failed, []
            not_started, self._not_started = self._not_started, []
            if not_started:
                self._listener.not_started(not_started)
        if failed:
            self._listener.attempted(failed)
        if results:
            self._listener.ended(results)

    # -- handing over -------------------------------------------------------------------------------------------------

    def _hand_over(self) -> None:
        """Keep Parsl supplied. Called, with the lock held, whenever something has changed."""
        if self._executor is None or self._executor.bad_state_is_set:
            return
        most_calls = CALLS_PER_WORKER * (self._workers or self._expected_workers)
        while (free_calls := most_calls - len(self._calls)) > 0 and (kind := self._next()) is not None:
            calls = self._calls_of(kind, free_calls)
            if not self._note(calls) or not self._submit_all(self._executor, calls):
                return
            self._backlog.let_others_go_first(kind)

    def _next(self) -> Kind | None:
        """The first kind of which something can be handed over now."""
        for kind in self._backlog.kinds:
            if not self._remaining.suffices(kind):
                continue
            if not kind.once or len(self._calls) < self._workers:
                return kind
            if self._workers:
                # It waits for a worker that is free, so nothing may be put before it that keeps all of them busy.
                return None
        return None

    def _calls_of(self, kind: Kind, free_calls: int) -> list[Call]:
        """The next call, or as many as there are free workers where each takes one task alone."""
        code = self._backlog.code(kind)
        number = min(self._backlog.waiting(kind), self._workers - len(self._calls)) if kind.once else 1
        return [Call(kind, code, self._backlog.take(kind, free_calls=free_calls)) for _ in range(number)]

    def _note(self, calls: Sequence[Call]) -> bool:
        """Have it written down what may start from now on and must not start twice."""
        ids = [held.task.task_id for call in calls if call.kind.once for held in call.tasks]
        try:
            if ids:
                self._listener.handing_over(ids)
                # What was said of them is no longer so.
                self._not_started = [task_id for task_id in self._not_started if task_id not in ids]
            return True
        except sqlite3.Error as error:
            # Most likely a full disk. The supervisor's next round tries again.
            log.debug("tasks that must not start twice wait until that can be written down: %s", error)
            for call in reversed(calls):
                self._put_back(call)
            return False

    def _submit_all(self, executor: Executor, calls: Sequence[Call]) -> bool:
        for position, call in enumerate(calls):
            if not self._submit(executor, call):
                for other in reversed(calls[position:]):
                    self._settle(other, verdicts.on_return(other))
                # If this function is to blame, the others come first next time.
                self._backlog.let_others_go_first(call.kind)
                return False
        return True

    def _submit(self, executor: Executor, call: Call) -> bool:
        """Whether Parsl has taken it."""
        tasks = [held.task for held in call.tasks]
        try:
            buffer = write_call(self._setting, {call.kind.function_id: call.code}, tasks)
            future = executor.submit_payload(self._context(call), buffer)
        except zmq.ZMQError as error:
            # The interchange is gone. The supervisor will notice, and bring another.
            log.warning("the interchange takes no tasks: %s", error)
            self.on_demand()
            return False
        # Parsl raises whatever has made it go bad. What was taken from its queue must not be lost with that.
        except Exception:
            log.exception("Parsl takes no tasks, %d of them wait", len(tasks))
            if executor.bad_state_is_set:
                self.on_demand()
            return False
        call.number = future.parsl_executor_task_id
        self._calls[future] = self._numbers[call.number] = call
        self._unfollowed.append(future)
        now = time.time_ns()
        for held in call.tasks:
            held.enter(TaskState.WAITING_FOR_LAUNCH, at=now)
        return True

    def _context(self, call: Call) -> dict[str, Any]:
        limit_s = call.kind.timeout_s
        context = {
            **TASK_EXECUTOR,
            # For the node: after how long a task is ended by force, and how much time its block must have left.
            "farcall": {"timeout_s": limit_s or self._setting.task_timeout_s, "needs_s": limit_s},
        }
        wanted = specification_of(call.tasks[0].task.options)
        if wanted:
            # What asks for nodes is alone in its call, and was checked when it came.
            context["resource_spec"] = completed(wanted, most_nodes=self._nodes_per_block)
        return context

    # -- what comes back ----------------------------------------------------------------------------------------------

    def _done(self, future: Future[Any]) -> None:
        """Parsl's result thread calls this."""
        with self._changing():
            call = self._forget(future)
            if call is None:
                # It was of an executor that is no longer used, and its tasks have been put back or failed.
                return
            try:
                outcome = read_outcome(future.result())
            except Exception as error:
                self._lost(call, self.explain(error))
            else:
                self._finished(call, outcome)
            self._hand_over()

    def _finished(self, call: Call, outcome: Outcome) -> None:
        self._backlog.observe(call.kind.function_id, outcome.busy_s / len(call.tasks))
        earlier = {held.task.task_id: held.attempts for held in call.tasks if held.attempts}
        for held in call.tasks:
            self._payload_bytes -= len(held.task.payload)
        self._results += [(key, attempts.with_history(text, earlier.get(key, ()))) for key, text in outcome.results]

    def _lost(self, call: Call, error: Exception) -> None:
        if self._executor is None or self._executor.bad_state_is_set:
            found = verdicts.on_interruption(call, "the endpoint's engine went bad while it had it")
        elif isinstance(error, TooLittleTime):
            self._remaining.fell_short(call.kind)
            # Each takes less time alone than with others.
            found = verdicts.on_return(call, alone=True)
        elif isinstance(error, WorkerEnded):
            what = attempts.what_happened(error)
            # A worker that was told to end is nothing to worry about.
            level = logging.WARNING if error.cause == "died" else logging.INFO
            log.log(level, "%s (%s), while it had a call of %d tasks", what, error.cause, len(call.tasks))
            found = verdicts.on_worker_ended(call, error, limit_s=self._setting.task_timeout_s)
        else:
            log.warning("a call of %d tasks was lost: %s", len(call.tasks), error)
            found = verdicts.on_loss(call, error)
        self._settle(call, found)

    def _settle(self, call: Call, found: Sequence[Verdict]) -> None:
        again = []
        for verdict in found:
            held = verdict.held
            if verdict.attempt is not None:
                held.attempted(verdict.attempt)
                self._failed.append(verdict.attempt)
            if verdict.result is not None:
                self._end(held, verdict.result)
                continue
            held.alone = held.alone or verdict.alone
            held.returns += verdict.returned
            if verdict.returned and held.kind.once:
                self._not_started.append(held.task.task_id)
            again.append(held)
        self._put_back(replace(call, tasks=again))

    def _end(self, held: Held, result: tuple[str, str]) -> None:
        self._payload_bytes -= len(held.task.payload)
        self._results.append(result)

    def _put_back(self, call: Call) -> None:
        now = time.time_ns()
        for held in call.tasks:
            held.enter(TaskState.WAITING_FOR_NODES, at=now)
        self._backlog.put_back(call.kind, call.code, call.tasks)

    def _end_unwanted(self) -> None:
        """Have those calls ended whose task was cancelled.

        Where another task of the call is known to be running, it may go on: it is not to blame.
        """
        numbers = []
        for call in self._calls.values():
            if call.unwanted or call.number is None or not any(held.cancelled for held in call.tasks):
                continue
            if call.running is None or call.running.cancelled:
                call.unwanted = True
                numbers.append(call.number)
        if numbers and self._executor is not None:
            self._executor.cancel_calls(numbers)

    def _forget(self, future: Future[Any]) -> Call | None:
        call = self._calls.pop(future, None)
        if call is not None and call.number is not None:
            self._numbers.pop(call.number, None)
        return call

    # -- what is here -------------------------------------------------------------------------------------------------

    def _held(self, unfinished: Unfinished) -> Held:
        options = unfinished.task.options
        retries = attempts.most_retries(options, self._max_retries)
        return Held(
            unfinished.task,
            Kind(unfinished.task.function_id, attempts.timeout_s(options), once=retries == 0),
            retries,
            list(unfinished.notes),
            unfinished.attempts,
            alone=unfinished.attempts > 0 or bool(specification_of(options)),
        )

    def _all(self) -> Iterator[Held]:
        yield from (held for call in self._calls.values() for held in call.tasks)
        yield from self._backlog

    def _functions_in_calls(self) -> set[str]:
        return {call.kind.function_id for call in self._calls.values()}
