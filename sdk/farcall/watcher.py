"""One long-poll for each task group of this process; each answer resolves many futures."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from farcall.errors import ServiceError, ServiceUnavailable
from farcall.futures import FarcallFuture, abandon_in_child
from farcall.outcomes import Outcome, outcome_of
from farcall.transport import Transport

log = logging.getLogger(__name__)

_WAIT_S = 25
#: How much longer than the service waits we wait for its answer.
_PATIENCE_S = 20
_PAGE = 1000
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 10.0
#: Where a service has no room for another request that waits: so often results are looked for without waiting, before
#: it is asked again whether there is room.
_LOOKS = 10
_LOOK_EVERY_S = 1.0
#: How long a thread without work is kept for the next submit.
_IDLE_S = 10.0

#: A future, and how its result is read.
Waiting = tuple[FarcallFuture, Callable[[str], Any]]


def watcher_for(transport: Transport, group_id: str) -> GroupWatcher:
    """The one that watches this group for this user; executors that use the same group share it."""
    key = (transport.service_url, transport.credentials.header(), group_id)
    watcher = _watchers.get(key)
    # setdefault is atomic, and a watcher that lost the race has no thread yet.
    return watcher or _watchers.setdefault(key, GroupWatcher(transport, group_id))


class GroupWatcher:
    """Brings the results of one task group to whoever waits for them.

    Its thread asks the service only while something is awaited, and ends when nothing was for a while. The watcher
    itself stays, because it knows how far the group's results have been read.
    """

    def __init__(self, transport: Transport, group_id: str) -> None:
        self._transport = transport
        self._path = f"/v2/taskgroup/{group_id}/results"
        self._changed = threading.Condition()
        #: The future of each task that was submitted here.
        self._waiting: dict[str, Waiting] = {}
        #: Those that were made for tasks afterwards, any number for each.
        self._reloaded: dict[str, list[Waiting]] = {}
        #: Requests under way whose answers will name tasks of this group.
        self._announced = 0
        #: Results of tasks that nobody has claimed yet, kept while such a request is under way.
        self._unclaimed: dict[str, dict[str, Any]] = {}
        self._cursor = 0
        self._thread: threading.Thread | None = None

    @contextmanager
    def announced(self) -> Iterator[None]:
        """Around a submit: results may come back before the answer that says which task is whose."""
        with self._changed:
            self._announced += 1
            self._start()
        try:
            yield
        finally:
            with self._changed:
                self._announced -= 1
                if not self._announced:
                    self._unclaimed.clear()

    def claim(self, waiting: dict[str, Waiting]) -> None:
        """Bring the results of these tasks, by id, to these futures: the ones that submitting them gave."""
        with self._changed:
            early = [
                (self._unclaimed.pop(task_id), waiting[task_id]) for task_id in waiting if task_id in self._unclaimed
            ]
            self._waiting.update(waiting)
            for document, _ in early:
                del self._waiting[document["task_id"]]
            self._start()
        _settle(early)

    def reload(self, waiting: Mapping[str, Waiting]) -> None:
        """As :meth:`claim`, for tasks of any age. What was read before is read again, here and now.

        If that fails nothing is waited for.
        """
        with self._changed:
            for task_id, one in waiting.items():
                self._reloaded.setdefault(task_id, []).append(one)
            self._start()
        try:
            self._replay()
        except BaseException:
            self._drop(waiting)
            raise

    def abandon_in_child(self) -> None:
        abandon_in_child(future for future, _ in self._everybody())

    def _everybody(self) -> Iterator[Waiting]:
        yield from self._waiting.values()
        for several in self._reloaded.values():
            yield from several

    def _replay(self) -> None:
        """Go through the group's results from the first up to where the thread is."""
        cursor = 0
        while cursor < self._cursor:
            answer = self._ask(cursor, wait_s=0)
            if answer["cursor"] <= cursor:
                return
            cursor = answer["cursor"]
            self._deliver(answer["results"], cursor)

    def _drop(self, waiting: Mapping[str, Waiting]) -> None:
        with self._changed:
            for task_id, one in waiting.items():
                left = [other for other in self._reloaded.pop(task_id, ()) if other is not one]
                if left:
                    self._reloaded[task_id] = left

    def _start(self) -> None:
        self._changed.notify()
        if self._thread is None:
            # A daemon: at the end of the program nobody is left to hear the results.
            self._thread = threading.Thread(target=self._run, name="farcall-results", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            with self._changed:
                if not self._changed.wait_for(self._is_needed, _IDLE_S):
                    self._thread = None
                    return
            try:
                answer = self._ask(self._cursor, wait_s=_WAIT_S, retry_for_s=0)
                self._deliver(answer["results"], answer["cursor"])
                pause_s = _FIRST_PAUSE_S
            except ServiceUnavailable as error:
                if error.http_status == 429:
                    self._look_now_and_then()
                    continue
                if pause_s == _FIRST_PAUSE_S:
                    log.warning("%s; %d results are awaited, trying again until it answers", error, self._awaited())
                time.sleep(pause_s)
                pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
            except ServiceError as error:
                self._give_up(error)
            except Exception:  # this thread must go on: every future of the group depends on it
                log.exception("results of %s could not be taken; trying again", self._path)
                time.sleep(_LONGEST_PAUSE_S)

    def _look_now_and_then(self) -> None:
        """Too many requests wait there, which says nothing of the results: ask for those that are there already."""
        for _ in range(_LOOKS):
            time.sleep(random.uniform(0.5, 1.5) * _LOOK_EVERY_S)
            with suppress(ServiceUnavailable):
                answer = self._ask(self._cursor, wait_s=0, retry_for_s=0)
                self._deliver(answer["results"], answer["cursor"])
            if not self._is_needed():
                return

    def _is_needed(self) -> bool:
        return bool(self._waiting or self._reloaded or self._announced)

    def _awaited(self) -> int:
        return len(self._waiting) + len(self._reloaded)

    def _ask(self, cursor: int, *, wait_s: int, retry_for_s: float | None = None) -> Any:
        return self._transport.get(
            self._path,
            params={"after": cursor, "wait": wait_s, "limit": _PAGE},
            timeout_s=wait_s + _PATIENCE_S,
            retry_for_s=retry_for_s,
        )

    def _deliver(self, documents: Iterable[dict[str, Any]], cursor: int) -> None:
        """Hand out what came; ``cursor`` is the place of the last in the group."""
        by_id = {document["task_id"]: document for document in documents}
        ready: list[tuple[dict[str, Any], Waiting]] = []
        with self._changed:
            for task_id, document in by_id.items():
                ready.extend((document, waiting) for waiting in self._reloaded.pop(task_id, ()))
                submitted = self._waiting.pop(task_id, None)
                if submitted is not None:
                    ready.append((document, submitted))
                elif self._announced:
                    self._unclaimed[task_id] = document
            # In the same moment: whoever comes after it reads these results again. It only grows, as a replay may
            # overtake the thread.
            self._cursor = max(self._cursor, cursor)
        _settle(ready)

    def _give_up(self, error: ServiceError) -> None:
        """The service will not tell this caller: the token was revoked, or the group is gone."""
        with self._changed:
            waiting = list(self._everybody())
            self._waiting, self._reloaded = {}, {}
        log.warning("results are no longer to be had: %s", error)
        for future, _ in waiting:
            future.settle(Outcome(error=error))
        if not waiting:
            # Only a submit is under way; its own answer will say what is wrong.
            time.sleep(_FIRST_PAUSE_S)


def _settle(ready: Iterable[tuple[dict[str, Any], Waiting]]) -> None:
    for document, (future, deserialize) in ready:
        try:
            outcome = outcome_of(document, deserialize)
        except BaseException as error:  # Ctrl-C, or a document that is none: the others get theirs all the same
            outcome = Outcome(error=error)
        future.settle(outcome)


_watchers: dict[tuple[str, str | None, str], GroupWatcher] = {}


def _after_fork_in_child() -> None:
    # Threads do not survive a fork; what they would have brought will not come.
    for watcher in _watchers.values():
        watcher.abandon_in_child()
    _watchers.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
