"""Writes into the journal what becomes of the tasks, and keeps it in memory while that cannot be written.

The disk may be full for a while. What has been computed must not be lost by that, and nobody may stand still in a
thread that others wait for; so what cannot be written waits here, and is tried again.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime

from .attempts import Attempt
from .journal import Journal

log = logging.getLogger(__name__)

#: How often the log says that it is still so.
SAY_AGAIN_S = 60.0

#: How long after the last failure the trouble counts as over: where there is room for a little, much may still fail.
OVER_AFTER_S = 5.0


class Writer:
    """The engine's listener. ``on_results`` is called when there are more results in the journal."""

    def __init__(self, journal: Journal, *, on_results: Callable[[], None]) -> None:
        self._journal = journal
        self._on_results = on_results
        self._lock = threading.Lock()
        self._results: list[tuple[str, str]] = []
        self._attempts: list[Attempt] = []
        self._not_started: list[str] = []
        self._error: sqlite3.Error | None = None
        self._since = ""
        self._failed_at = 0.0
        self._say_next = 0.0
        #: How many results there have been.
        self.finished = 0

    @property
    def is_stuck(self) -> bool:
        """The journal cannot be written."""
        return self._error is not None

    @property
    def trouble(self) -> str | None:
        """The same as a sentence for people."""
        if self._error is None:
            return None
        kept = len(self._results)
        return (
            f"The endpoint cannot write its journal {self._journal.path} since {self._since}: {self._error}. It takes "
            f"no tasks until it can; {kept} results wait in its memory."
        )

    # -- what the engine tells ----------------------------------------------------------------------------------------

    def ended(self, results: Sequence[tuple[str, str]]) -> None:
        with self._lock:
            self._results += results
        self.write()

    def attempted(self, failed: Sequence[Attempt]) -> None:
        with self._lock:
            self._attempts += failed
        self.write()

    def not_started(self, task_ids: Sequence[str]) -> None:
        # Nobody is told of results here: the engine, which calls this, does not want to be asked anything meanwhile.
        with self._lock:
            self._not_started += task_ids
            try:
                self._take_back()
            except sqlite3.Error as error:
                self.failed(error)

    def handing_over(self, task_ids: Sequence[str]) -> None:
        with self._lock:
            try:
                self._journal.hand_over(task_ids)
            except sqlite3.Error as error:
                self.failed(error)
                raise
            # That they had not started then must not be written later.
            again = frozenset(task_ids)
            self._not_started = [task_id for task_id in self._not_started if task_id not in again]

    # -- writing ------------------------------------------------------------------------------------------------------

    def write(self) -> None:
        """Write what waits; where that failed before, try again."""
        with self._lock:
            number = len(self._results)
            try:
                if self._attempts:
                    self._journal.attempted(self._attempts)
                    self._attempts = []
                self._take_back()
                if self._results:
                    self._journal.finish(self._results)
                    self._results = []
                if self._error is not None:
                    self._journal.try_writing()
            except sqlite3.Error as error:
                self.failed(error)
                return
            if self._error is not None and time.monotonic() - self._failed_at >= OVER_AFTER_S:
                log.warning("the journal can be written again; it could not since %s", self._since)
                self._error = None
            self.finished += number
        if number:
            self._on_results()

    def _take_back(self) -> None:
        if self._not_started:
            self._journal.take_back(self._not_started)
            self._not_started = []

    def failed(self, error: sqlite3.Error) -> None:
        """The journal could not be written."""
        if self._error is None:
            self._since = datetime.now().astimezone().isoformat(timespec="seconds")
        self._error = error
        self._failed_at = time.monotonic()
        if time.monotonic() >= self._say_next:
            self._say_next = time.monotonic() + SAY_AGAIN_S
            log.error("%s", self.trouble)
