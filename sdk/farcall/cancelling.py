"""One thread that asks the service to cancel; what is asked while its request is under way travels in the next."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any, TypeAlias

from farcall.errors import NotFound, ServiceUnavailable
from farcall.transport import Transport

log = logging.getLogger(__name__)

#: Task ids in one request.
_MOST_TASKS = 1_000
#: How long a request may take, and how long it is tried again: somebody waits for the answer.
_TIMEOUT_S = 20.0
_RETRY_FOR_S = 10.0
#: What nobody waits for is tried again until the service answers.
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 10.0
#: How long the thread is kept when there is nothing to do.
_IDLE_S = 10.0
#: How long the end of the program waits for what is still to be said.
_EXIT_WAIT_S = 10.0

#: What the service says of each task: its ``status``, whether it is ``cancelled``, and the ``reason`` in words.
Answers: TypeAlias = dict[str, dict[str, Any]]


def canceller_for(transport: Transport) -> Canceller:
    """The one of this service and user; everybody in this process shares it."""
    key = (transport.service_url, transport.credentials.header())
    canceller = _cancellers.get(key)
    # setdefault is atomic, and a canceller that lost the race has no thread yet.
    return canceller or _cancellers.setdefault(key, Canceller(transport))


class Canceller:
    """Cancels tasks at the service, for any number of threads. It runs no callback of anybody's futures."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._changed = threading.Condition()
        self._asked: deque[tuple[list[str], Future[Answers]]] = deque()
        #: What nobody waits for; the keys in their order.
        self._told: dict[str, None] = {}
        self._in_flight = 0
        self._thread: threading.Thread | None = None

    def ask(self, task_ids: Iterable[str]) -> Answers:
        """Cancel these and wait for what the service says of each.

        Raises :class:`~farcall.errors.ServiceUnavailable` when it says nothing for some ten seconds.
        """
        wanted = list(dict.fromkeys(task_ids))
        pages = [wanted[start : start + _MOST_TASKS] for start in range(0, len(wanted), _MOST_TASKS)]
        answers: list[Future[Answers]] = [Future() for _ in pages]
        with self._changed:
            self._asked.extend(zip(pages, answers, strict=True))
            self._start()
        return {task_id: said for answer in answers for task_id, said in answer.result().items()}

    def tell(self, task_ids: Iterable[str]) -> None:
        """Cancel these in the background. Tried again until the service answers or the program ends."""
        with self._changed:
            self._told.update(dict.fromkeys(task_ids))
            self._start()

    def drain(self, deadline: float) -> int:
        """Wait until everything is said. The number of tasks that are not, when ``deadline`` comes first."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._told or self._in_flight), max(0.0, deadline - time.monotonic()))
            return len(self._told) + self._in_flight

    def _start(self) -> None:
        self._changed.notify_all()
        if self._thread is None and (self._asked or self._told):
            # A daemon, so that a service that never answers cannot hold up the end of the program.
            self._thread = threading.Thread(target=self._run, name="farcall-cancel", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            with self._changed:
                self._in_flight = 0
                self._changed.notify_all()
                if not self._changed.wait_for(lambda: self._asked or self._told, _IDLE_S):
                    self._thread = None
                    return
                asked, told = self._take()
                self._in_flight = len(told)
            if self._answered(asked, told):
                pause_s = _FIRST_PAUSE_S
                continue
            with self._changed:
                # Whoever asks does not wait for the pause to be over.
                self._changed.wait_for(lambda: self._asked, pause_s)
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)

    def _take(self) -> tuple[list[tuple[list[str], Future[Answers]]], list[str]]:
        asked: list[tuple[list[str], Future[Answers]]] = []
        room = _MOST_TASKS
        while self._asked and len(self._asked[0][0]) <= room:
            asked.append(self._asked.popleft())
            room -= len(asked[-1][0])
        told = list(self._told)[:room]
        for task_id in told:
            del self._told[task_id]
        return asked, told

    def _answered(self, asked: list[tuple[list[str], Future[Answers]]], told: list[str]) -> bool:
        """Send one request and hand out its answer. False if there is something that has to be said again."""
        wanted = dict.fromkeys((*(task_id for ids, _ in asked for task_id in ids), *told))
        try:
            results = self._transport.post(
                "/v2/tasks/cancel",
                {"task_ids": list(wanted)},
                timeout_s=_TIMEOUT_S,
                retry_for_s=min(_RETRY_FOR_S, self._transport.retry_for_s),
            )["results"]
            answers = [{task_id: results[task_id] for task_id in ids} for ids, _ in asked]
        except BaseException as error:  # the thread must go on: whoever asked waits for it
            for _, answer in asked:
                answer.set_exception(error)
            if not told:
                return True
            again = isinstance(error, ServiceUnavailable)
            log.warning("%d tasks are not cancelled%s: %s", len(told), " yet" if again else "", error)
            if again:
                with self._changed:
                    self._told = dict.fromkeys((*told, *self._told))
            return not again
        for (_, answer), said in zip(asked, answers, strict=True):
            answer.set_result(said)
        return True


def cancel_group(transport: Transport, task_group_id: str) -> dict[str, Any]:
    """Cancel what a group has left, in as many requests as the service wants. What it says of them all."""
    cancelled = 0
    while True:
        said = dict(transport.post(f"/v2/taskgroup/{task_group_id}/cancel"))
        # What the requests before have cancelled had ended when this one came.
        said["ended"] -= cancelled
        cancelled += said["cancelled"]
        if not said.pop("more", False):
            return {**said, "cancelled": cancelled}


def is_cancelled(said: dict[str, Any]) -> bool:
    """Whether the end of the task is that it was cancelled. Raises NotFound where there is no such task."""
    if said["status"] == "unknown":
        raise NotFound(str(said["reason"]), http_status=404, code="TASK_NOT_FOUND")
    return bool(said["cancelled"])


_cancellers: dict[tuple[str, str | None], Canceller] = {}


def _at_exit() -> None:
    deadline = time.monotonic() + _EXIT_WAIT_S
    left = sum(canceller.drain(deadline) for canceller in list(_cancellers.values()))
    if left:
        log.warning("%d tasks were not cancelled: the program ended while the service did not answer", left)


atexit.register(_at_exit)
# The child's threads would be its parent's; what was to be said is the parent's to say.
os.register_at_fork(after_in_child=_cancellers.clear)
