"""Submits the tasks of the storm as users' programs would, and notes what becomes of each."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any

from tests.storm.tasks import KINDS, PATIENCE_S, Task

from farcall import Client, Executor
from farcall.errors import ServiceUnavailable
from farcall.outcomes import Outcome, is_done, outcome_of

#: So many tasks may be on their way at a time.
WINDOW = 1000
#: Of each program that submits and is gone; their keys are beyond those of the schedule.
VISITORS_TASKS, VISITORS_KEYS = 5, 10_000_000


@dataclass(slots=True)
class Seen:
    """What the client knows of one task."""

    task: Task
    submitted_at: float
    future: Any
    ended_at: float | None = None
    #: What was wrong with what came of it; "" if nothing was, None while nothing has come.
    fault: str | None = None
    has_value: bool = False
    #: Why it has none, in words.
    said: str = ""
    was_cancelled: bool = False
    #: It was cancelled before the service had answered, and the service hears of that later.
    was_cancelled_early: bool = False
    #: When the service had said that it is cancelled.
    cancelled_at: float | None = None

    @property
    def task_id(self) -> str | None:
        task_id: str | None = self.future.task_id
        return task_id


class SecondThoughts:
    """Cancels tasks when their time has come."""

    def __init__(self) -> None:
        self._unwanted: queue.PriorityQueue[tuple[float, int, Any, Seen]] = queue.PriorityQueue()
        #: What went wrong that must not go wrong, in sentences.
        self.troubles: list[str] = []
        threading.Thread(target=self._cancel, daemon=True).start()

    def have(self, seen: Seen, future: Any, at: float) -> None:
        """Cancel it then."""
        self._unwanted.put((at, seen.task.key, future, seen))

    def _cancel(self) -> None:
        while True:
            at, key, future, seen = self._unwanted.get()
            time.sleep(max(0.0, min(0.2, at - time.monotonic())))
            if time.monotonic() < at:
                self._unwanted.put((at, key, future, seen))
                continue
            # What the service does not know yet is cancelled here, and the service hears of it later.
            is_known = future.task_id is not None
            try:
                if future.cancel() and is_known:
                    seen.cancelled_at = time.monotonic()
            except ServiceUnavailable:
                self.have(seen, future, time.monotonic() + 1)
            # The tasks that come after it are to be cancelled all the same.
            except Exception as error:
                self.troubles.append(f"task {key} could not be cancelled: {type(error).__name__}: {error}")


class StormClient:
    """One client with an Executor for each kind of options."""

    def __init__(self, url: str, token: str, endpoint_id: str, *, markers: str) -> None:
        self.client = Client(service_url=url, token=token)
        self.client.transport.retry_for_s = PATIENCE_S
        self._markers = markers
        self._address = (url, token, endpoint_id, markers)
        #: What programs that are gone have submitted, and the groups it is in.
        self._left: list[Seen] = []
        self._groups: set[str] = set()
        #: Ids of tasks that are none of the storm's.
        self.others: set[str | None] = set()
        self._executors = {
            name: Executor(endpoint_id=endpoint_id, client=self.client, **kind.options) for name, kind in KINDS.items()
        }
        self.seen: list[Seen] = []
        self._room = threading.Semaphore(WINDOW)
        self.second_thoughts = SecondThoughts()
        self._ended = threading.Condition()
        self.ended = 0
        #: When the latest was submitted of those that have ended.
        self._latest = 0.0

    def wait_for_worker(self, timeout_s: float) -> None:
        """Have one task come back, so that everything runs."""
        first = next(iter(self._executors.values())).submit(len, "ready")
        first.result(timeout_s)
        self.others = {first.task_id}

    def submit(self, tasks: Iterable[Task]) -> None:
        """Submit these; blocks while too many are under way."""
        for task in tasks:
            self._room.acquire()
            executor = self._executors[task.kind.name]
            submitted_at = time.monotonic()
            future = executor.submit(task.kind.function, self._markers, task.key, *task.arguments)
            seen = Seen(task, submitted_at, future)
            with self._ended:
                self.seen.append(seen)
                self._ended.notify_all()
            future.add_done_callback(lambda future, seen=seen: self._note(seen, future))
            if task.cancelled_after_s is not None:
                self.second_thoughts.have(seen, future, submitted_at + task.cancelled_after_s)

    def visit(self, number: int) -> None:
        """Have a program submit tasks and be killed when they are accepted."""
        keys = [VISITORS_KEYS + number * VISITORS_TASKS + each for each in range(VISITORS_TASKS)]
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "tests.storm.visitor", *self._address, *map(str, keys)],
            check=False,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        accepted = json.loads(done.stdout)
        self._groups.add(accepted["group"])
        for key, task_id in zip(keys, accepted["tasks"], strict=True):
            self._left.append(Seen(Task(key, KINDS["brief"], ()), began, _Ended(task_id)))

    def ask_for_visitors(self, timeout_s: float) -> bool:
        """Whether all tasks have ended, within that time, of the programs that are gone; now they are seen too."""
        deadline = time.monotonic() + timeout_s
        missing = {str(seen.task_id): seen for seen in self._left}
        while missing and time.monotonic() < deadline:
            answer = self.client.transport.post("/v2/batch_status", {"task_ids": list(missing)})
            for task_id, document in answer["results"].items():
                if is_done(document):
                    seen = missing.pop(task_id)
                    seen.fault = wrong_with(seen.task, of_document(document, self.client.serializer.deserialize))
            time.sleep(0.2)
        self.seen += self._left
        return not missing

    def wait_until_submitted(self, count: float, timeout_s: float) -> bool:
        """Whether so many have been submitted; no longer than so many seconds pass in which none ends."""
        return self._wait(lambda: len(self.seen) >= count, timeout_s)

    def wait_for_all(self, timeout_s: float) -> bool:
        """Whether all that was submitted has ended; no longer than so many seconds pass in which none does."""
        return self._wait(lambda: self.ended >= len(self.seen), timeout_s)

    def _wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        with self._ended:
            while not condition():
                before = self.ended
                if not self._ended.wait_for(lambda before=before: condition() or self.ended > before, timeout_s):
                    return False
        return True

    def wait_for_one_after(self, moment: float, timeout_s: float) -> bool:
        """Whether one that was submitted after this moment has ended, within that time."""
        with self._ended:
            return self._ended.wait_for(lambda: self._latest > moment, timeout_s)

    def groups(self) -> set[str]:
        """The task groups that were used."""
        used = {str(executor.task_group_id) for executor in self._executors.values() if executor.task_group_id}
        return used | self._groups

    def close(self) -> None:
        for executor in self._executors.values():
            executor.shutdown(wait=False)

    def _note(self, seen: Seen, future: Future[Any]) -> None:
        seen.ended_at = time.monotonic()
        seen.was_cancelled = future.cancelled()
        outcome = of_future(future)
        seen.has_value = outcome.error is None
        seen.said = "" if outcome.error is None else f"{type(outcome.error).__name__}: {outcome.error}"[:1000]
        seen.fault = wrong_with(seen.task, outcome)
        if seen.was_cancelled:
            # It may yet be told its id.
            seen.was_cancelled_early = seen.future.task_id is None
        else:
            # Its result may have a million characters.
            seen.future = _Ended(seen.future.task_id)
        self._room.release()
        with self._ended:
            self.ended += 1
            self._latest = max(self._latest, seen.submitted_at)
            self._ended.notify_all()


@dataclass(frozen=True, slots=True)
class _Ended:
    """What is kept of a future."""

    task_id: str | None


def of_future(future: Future[Any]) -> Outcome:
    if future.cancelled():
        return Outcome(error=CancelledError())
    error = future.exception()
    return Outcome(error=error) if error is not None else Outcome(future.result())


def of_document(document: Mapping[str, Any], deserialize: Callable[[str], Any]) -> Outcome:
    """What a task's document says, as a future would say it."""
    if document["status"] == "cancelled":
        return Outcome(error=CancelledError())
    return outcome_of(document, deserialize)


def wrong_with(task: Task, outcome: Outcome) -> str:
    """ "" if it is what was to come of the task."""
    if task.kind.is_right(task, outcome):
        return ""
    got = f"{type(outcome.error).__name__}: {outcome.error}" if outcome.error is not None else repr(outcome.value)
    return f"{task.kind.name} task {task.key}: {got[:1000]}"
