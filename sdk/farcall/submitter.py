"""One thread that sends what has accumulated since its last request returned."""

from __future__ import annotations

import atexit
import copy
import logging
import os
import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

from farcall.cancelling import canceller_for
from farcall.errors import NotFound, PayloadTooLarge, ServiceError, ServiceUnavailable
from farcall.futures import FarcallFuture
from farcall.options import Options
from farcall.outcomes import Outcome
from farcall.registry import RegisteredFunction
from farcall.transport import Transport
from farcall.watcher import watcher_for

log = logging.getLogger(__name__)

MOST_TASKS = 2_000
#: Characters of arguments in one request; a task that has more travels alone.
_MOST_CHARACTERS = 4 * 1024 * 1024
#: How long the end of the program waits for what was submitted to be sent.
_EXIT_WAIT_S = 10.0


@dataclass(slots=True, eq=False)
class Submission:
    """One task that has not been sent yet."""

    future: FarcallFuture
    function: RegisteredFunction
    payload: str
    options: Options
    deserialize: Callable[[str], Any]

    def fail(self, error: BaseException) -> None:
        self.future.settle(Outcome(error=_own_copy(error)))

    @property
    def function_id(self) -> str:
        assert self.function.function_id is not None
        return self.function.function_id


class TaskGroup:
    """The task group that an Executor's next tasks go to.

    Executors that were not given one share the first that the service makes for this user in this process.
    """

    _shared: ClassVar[dict[tuple[str, str | None], str]] = {}

    def __init__(self, transport: Transport, chosen: str | None = None) -> None:
        self._transport = transport
        self.chosen = chosen

    def get(self) -> str | None:
        return self.chosen or self._shared.get(self._user())

    def answered(self, group_id: str) -> None:
        if self.chosen is None:
            self._shared[self._user()] = group_id

    def forget(self) -> bool:
        """The service does not know it (any more). True if the next request may ask for a new one."""
        return self.chosen is None and self._shared.pop(self._user(), None) is not None

    def _user(self) -> tuple[str, str | None]:
        return self._transport.service_url, self._transport.credentials.header()

    @classmethod
    def after_fork(cls) -> None:
        cls._shared.clear()


_submitters: weakref.WeakSet[Submitter] = weakref.WeakSet()


class Submitter:
    """Takes submissions from any thread and sends them in batches, in their order.

    A request that fails fails its own futures; the next one is sent all the same.
    """

    def __init__(self, transport: Transport, group: TaskGroup, most_tasks: int = MOST_TASKS) -> None:
        self._transport = transport
        self._group = group
        self._most_tasks = max(1, most_tasks)
        self._changed = threading.Condition()
        self._queue: deque[Submission] = deque()
        #: How many tasks the thread has taken and not yet sent.
        self._in_flight = 0
        self._closed = False
        self._thread: threading.Thread | None = None
        _submitters.add(self)

    def put(self, submission: Submission) -> None:
        with self._changed:
            self._queue.append(submission)
            if self._thread is None:
                # A daemon, so that a service that never answers cannot hold up the end of the program; what is
                # still to be sent then is seen to by _at_exit.
                self._thread = threading.Thread(target=self._run, name="farcall-submit", daemon=True)
                self._thread.start()
            elif not self._in_flight:
                self._changed.notify_all()

    def close(self) -> None:
        """Send what is there, then end the thread. Does not wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def drain(self, deadline: float) -> int:
        """Wait until everything is sent. The number of tasks that are not, when ``deadline`` comes first."""
        with self._changed:
            while (self._queue or self._in_flight) and time.monotonic() < deadline:
                self._changed.wait(max(0.0, deadline - time.monotonic()))
            return len(self._queue) + self._in_flight

    def after_fork(self) -> None:
        self._changed = threading.Condition()
        self._queue.clear()
        self._in_flight = 0
        self._thread = None

    def _run(self) -> None:
        while True:
            with self._changed:
                self._in_flight = 0
                self._changed.notify_all()
                while not self._queue and not self._closed:
                    self._changed.wait()
                if not self._queue:
                    self._thread = None
                    return
                taken = list(self._take())
                self._in_flight = len(taken)
            try:
                self._send(taken)
            except BaseException as error:  # the thread must go on: later submissions depend on it
                log.exception("not all of %d tasks could be sent", len(taken))
                _fail_unsent(taken, error)
            del taken  # not to keep the last batch's futures while waiting for the next

    def _take(self) -> Iterator[Submission]:
        characters = 0
        for count in range(self._most_tasks):
            if not self._queue or (count and characters + len(self._queue[0].payload) > _MOST_CHARACTERS):
                return
            characters += len(self._queue[0].payload)
            yield self._queue.popleft()

    def _send(self, taken: list[Submission]) -> None:
        by_options: dict[Options, list[Submission]] = {}
        for submission in taken:
            if submission.future.begin():
                by_options.setdefault(submission.options, []).append(submission)
        for options, submissions in by_options.items():
            self._submit(options, self._registered(submissions))

    def _registered(self, submissions: list[Submission]) -> list[Submission]:
        """Those whose function the service has now."""
        failures: dict[RegisteredFunction, Exception] = {}
        ready = []
        for submission in submissions:
            function = submission.function
            if function.function_id is None and function not in failures:
                try:
                    function.function_id = self._transport.post("/v3/functions", function.body)["function_uuid"]
                    function.body = None
                except Exception as error:  # the thread must go on: later submissions depend on it
                    failures[function] = error
            if function in failures:
                submission.fail(failures[function])
            else:
                ready.append(submission)
        return ready

    def _submit(self, options: Options, submissions: list[Submission]) -> None:
        submissions = [submission for submission in submissions if not submission.future.cancelled()]
        if not submissions:
            return
        by_function: dict[str, list[Submission]] = {}
        for submission in submissions:
            by_function.setdefault(submission.function_id, []).append(submission)
        group_id = self._group.get()
        watcher = watcher_for(self._transport, group_id) if group_id else None
        with watcher.announced() if watcher else nullcontext():
            try:
                self._accepted(self._post(options, by_function, group_id), by_function)
            except ServiceError as error:
                self._refused(options, submissions, by_function, error)
            except Exception as error:  # the thread must go on: later submissions depend on it
                log.exception("%d tasks could not be sent", len(submissions))
                for submission in submissions:
                    submission.fail(error)

    def _post(self, options: Options, by_function: dict[str, list[Submission]], group_id: str | None) -> Any:
        body: dict[str, Any] = {
            "tasks": {
                function_id: [submission.payload for submission in submissions]
                for function_id, submissions in by_function.items()
            },
            **options.body,
        }
        if group_id:
            body["task_group_id"] = group_id
        # The same key with every repetition: a request whose answer was lost makes no second set of tasks.
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        return self._transport.post(f"/v3/endpoints/{options.endpoint_id}/submit", body, headers=headers)

    def _accepted(self, answer: Any, by_function: dict[str, list[Submission]]) -> None:
        waiting = {}
        cancelled = []
        for function_id, submissions in by_function.items():
            for submission, task_id in zip(submissions, answer["tasks"][function_id], strict=True):
                submission.future.task_id = task_id
                if submission.future.cancelled():
                    cancelled.append(task_id)
                else:
                    waiting[task_id] = (submission.future, submission.deserialize)
        group_id = answer["task_group_id"]
        self._group.answered(group_id)
        watcher_for(self._transport, group_id).claim(waiting)
        if cancelled:
            canceller_for(self._transport).tell(cancelled)

    def _refused(
        self,
        options: Options,
        submissions: list[Submission],
        by_function: dict[str, list[Submission]],
        error: ServiceError,
    ) -> None:
        """Send in parts what others of the request may be to blame for; otherwise it is everybody's error."""
        parts: Iterable[list[Submission]] = ()
        if isinstance(error, NotFound) and (error.code or "").startswith("TASK_GROUP") and self._group.forget():
            parts = [submissions]
        elif isinstance(error, ServiceUnavailable):
            pass
        elif len(by_function) > 1:
            parts = by_function.values()
        elif isinstance(error, PayloadTooLarge) and len(submissions) > 1:
            middle = len(submissions) // 2
            parts = [submissions[:middle], submissions[middle:]]
        if not parts:
            for submission in submissions:
                submission.fail(error)
        for part in parts:
            self._submit(options, part)


def _fail_unsent(submissions: Iterable[Submission], error: BaseException) -> None:
    for submission in submissions:
        if submission.future.task_id is None:
            submission.fail(error)


def _own_copy(error: BaseException) -> BaseException:
    """One for each future, as raising it adds to its traceback; the same one where its class cannot be copied."""
    try:
        return copy.copy(error)
    except Exception:  # the exception's own class decides what may happen here
        return error


def _at_exit() -> None:
    deadline = time.monotonic() + _EXIT_WAIT_S
    left = sum(submitter.drain(deadline) for submitter in list(_submitters))
    if left:
        log.warning("%d submitted tasks were not sent: the program ended while the service did not answer", left)


atexit.register(_at_exit)
os.register_at_fork(after_in_child=TaskGroup.after_fork)
