"""One long-poll for each task group of this process; each answer resolves many futures."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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

    Its thread asks the service only while something is awaited.
    """

    def __init__(self, transport: Transport, group_id: str) -> None:
        self._transport = transport
        self._path = f"/v2/taskgroup/{group_id}/results"
        self._changed = threading.Condition()
        self._waiting: dict[str, Waiting] = {}
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
        """Bring the results of these tasks, by id, to these futures."""
        with self._changed:
            early = [
                (self._unclaimed.pop(task_id), waiting[task_id]) for task_id in waiting if task_id in self._unclaimed
            ]
            self._waiting.update(waiting)
            for document, _ in early:
                del self._waiting[document["task_id"]]
            self._start()
        _settle(early)

    def replay(self) -> None:
        """Go through the group's results from the first: those that came before their futures were claimed."""
        cursor = 0
        while cursor < self._cursor:
            answer = self._ask(cursor, wait_s=0)
            if answer["cursor"] <= cursor:
                return
            cursor = answer["cursor"]
            self._deliver(answer["results"])

    def abandon_in_child(self) -> None:
        abandon_in_child(future for future, _ in self._waiting.values())

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
                while not self._waiting and not self._announced:
                    self._changed.wait()
            try:
                answer = self._ask(self._cursor, wait_s=_WAIT_S)
                self._deliver(answer["results"])
                self._cursor = answer["cursor"]
                pause_s = _FIRST_PAUSE_S
            except ServiceUnavailable as error:
                if pause_s == _FIRST_PAUSE_S:
                    log.warning("%s; %d results are awaited, trying again until it answers", error, len(self._waiting))
                time.sleep(pause_s)
                pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
            except ServiceError as error:
                self._give_up(error)
            except Exception:  # this thread must go on: every future of the group depends on it
                log.exception("results of %s could not be taken; trying again", self._path)
                time.sleep(_LONGEST_PAUSE_S)

    def _ask(self, cursor: int, *, wait_s: int) -> Any:
        return self._transport.get(
            self._path,
            params={"after": cursor, "wait": wait_s, "limit": _PAGE},
            timeout_s=wait_s + _PATIENCE_S,
            retry_for_s=0,
        )

    def _deliver(self, documents: Iterable[dict[str, Any]]) -> None:
        ready = []
        with self._changed:
            for document in documents:
                waiting = self._waiting.pop(document["task_id"], None)
                if waiting is not None:
                    ready.append((document, waiting))
                elif self._announced:
                    self._unclaimed[document["task_id"]] = document
        _settle(ready)

    def _give_up(self, error: ServiceError) -> None:
        """The service will not tell this caller: the token was revoked, or the group is gone."""
        with self._changed:
            waiting, self._waiting = self._waiting, {}
        log.warning("results are no longer to be had: %s", error)
        for future, _ in waiting.values():
            future.settle(Outcome(error=error))
        if not waiting:
            # Only a submit is under way; its own answer will say what is wrong.
            time.sleep(_FIRST_PAUSE_S)


def _settle(ready: Iterable[tuple[dict[str, Any], Waiting]]) -> None:
    for document, (future, deserialize) in ready:
        future.settle(outcome_of(document, deserialize))


_watchers: dict[tuple[str, str | None, str], GroupWatcher] = {}


def _after_fork_in_child() -> None:
    # Threads do not survive a fork; what they would have brought will not come.
    for watcher in _watchers.values():
        watcher.abandon_in_child()
    _watchers.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
