"""Submits the tasks of the storm as a user's program would, and notes what becomes of each."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from tests.storm.tasks import KINDS, Task

from farcall import Client, Executor
from farcall.outcomes import Outcome

#: So many tasks may be on their way at a time.
WINDOW = 1000
#: The service may be away for long in a storm; a user would try again, which would make a new task.
PATIENCE_S = 900.0


@dataclass(slots=True)
class Seen:
    """What the client knows of one task."""

    task: Task
    submitted_at: float
    future: Any
    ended_at: float | None = None
    #: What was wrong with what came of it; "" if nothing was, None while nothing has come.
    fault: str | None = None

    @property
    def task_id(self) -> str | None:
        task_id: str | None = self.future.task_id
        return task_id


class StormClient:
    """One client with an Executor for each kind of options."""

    def __init__(self, url: str, token: str, endpoint_id: str, *, markers: str) -> None:
        self.client = Client(service_url=url, token=token)
        self.client.transport.retry_for_s = PATIENCE_S
        self._markers = markers
        #: Ids of tasks that are none of the storm's.
        self.others: set[str | None] = set()
        self._executors = {
            name: Executor(endpoint_id=endpoint_id, client=self.client, **kind.options) for name, kind in KINDS.items()
        }
        self.seen: list[Seen] = []
        self._room = threading.Semaphore(WINDOW)
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
            self.seen.append(seen)
            future.add_done_callback(lambda future, seen=seen: self._note(seen, future))

    def wait_for_all(self, timeout_s: float) -> bool:
        """Whether all that was submitted has ended within that time without any progress."""
        with self._ended:
            while self.ended < len(self.seen):
                before = self.ended
                if not self._ended.wait_for(lambda before=before: self.ended > before, timeout_s):
                    return False
        return True

    def wait_for_one_after(self, moment: float, timeout_s: float) -> bool:
        """Whether one that was submitted after this moment has ended, within that time."""
        with self._ended:
            return self._ended.wait_for(lambda: self._latest > moment, timeout_s)

    def groups(self) -> set[str]:
        """The task groups that were used."""
        return {str(executor.task_group_id) for executor in self._executors.values() if executor.task_group_id}

    def close(self) -> None:
        for executor in self._executors.values():
            executor.shutdown(wait=False)

    def _note(self, seen: Seen, future: Future[Any]) -> None:
        seen.ended_at = time.monotonic()
        seen.fault = wrong_with(seen.task, outcome_of(future))
        # A million characters each.
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


def outcome_of(future: Future[Any]) -> Outcome:
    error = future.exception()
    return Outcome(error=error) if error is not None else Outcome(future.result())


def wrong_with(task: Task, outcome: Outcome) -> str:
    """ "" if it is what was to come of the task."""
    if task.kind.is_right(task, outcome):
        return ""
    got = f"{type(outcome.error).__name__}: {outcome.error}" if outcome.error is not None else repr(outcome.value)
    return f"{task.kind.name} task {task.key}: {got[:1000]}"
