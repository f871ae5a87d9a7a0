"""Asks the service which of this endpoint's tasks have been cancelled, whenever there may be some.

The command on the queue names none, so that it may come late, twice or not at all: asked again, the service says the
same until it is told that it was heard.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Sequence

from farcall.errors import NotFound, ServiceError
from farcall.transport import Transport

log = logging.getLogger(__name__)

#: Tasks in one answer.
MOST_IDS = 10_000

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0


class Cancellations:
    """``on_cancelled`` gets ids, also of tasks that are unknown here; when it returns, they will not be run."""

    def __init__(
        self, transport: Transport, endpoint_id: str, *, on_cancelled: Callable[[Sequence[str]], None]
    ) -> None:
        self._transport = transport
        self._path = f"/v3/endpoints/{endpoint_id}/cancellations"
        self._on_cancelled = on_cancelled
        self._wanted = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cancellations", daemon=True)

    def start(self) -> None:
        """Ask now, and have :meth:`ask` asked from a thread. Raises ServiceError or sqlite3.Error."""
        self._fetch(retry_for_s=None)
        self._thread.start()

    def ask(self) -> None:
        """There may be some. Returns at once."""
        self._wanted.set()

    def stop(self) -> None:
        self._stopping.set()
        self._wanted.set()

    def _run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            self._wanted.wait()
            if self._stopping.is_set():
                return
            self._wanted.clear()
            try:
                self._fetch(retry_for_s=0)
                pause_s = _FIRST_PAUSE_S
                continue
            except (ServiceError, sqlite3.Error) as error:
                log.warning("which tasks were cancelled is not known yet, trying again: %s", error)
            except Exception:
                log.exception("asking which tasks were cancelled failed, trying again")
            self._wanted.set()
            self._stopping.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _fetch(self, *, retry_for_s: float | None) -> None:
        earlier: list[str] = []
        while True:
            try:
                answer = self._transport.request("GET", self._path, params={"limit": MOST_IDS}, retry_for_s=retry_for_s)
                task_ids = [str(task_id) for task_id in answer["task_ids"]]
            except NotFound:
                # Either it cancels nothing, being older than we are, or it has deleted us and will say so.
                return
            except (KeyError, TypeError) as error:
                raise ServiceError(f"the service names cancelled tasks in an unknown way: {error}") from error
            # The same again: the service does not remember what it was told, and would say it for ever.
            if not task_ids or task_ids == earlier:
                return
            log.info("%d tasks were cancelled", len(task_ids))
            self._on_cancelled(task_ids)
            self._transport.request("POST", self._path, body={"task_ids": task_ids}, retry_for_s=retry_for_s)
            if len(task_ids) < MOST_IDS:
                return
            earlier = task_ids
