"""The agent's memory on disk: tasks accepted, results not sent yet, and for a while those that were.

A task is acknowledged to the broker when it stands here, and leaves when its result has been sent; in between the agent
may be killed at any moment. Everything comes in batches, one transaction each. ``synchronous=NORMAL`` keeps what a
killed process wrote. What a power cut takes of the last moments, the service finds missing and sends again: tasks, not
which of them were cancelled, so that is on the disk before the service hears that it was understood.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from farcall.wire import BatchedTask, FunctionCode, TaskBatch

from .attempts import Attempt
from .journalfile import FINISHED, HELD, SENT, JournalError, Opened, checksum

__all__ = ["Journal", "JournalError", "Unfinished"]

#: How long a result that was sent is kept, and how many of them, and how much: a broker may lose what it has confirmed,
#: and a task that is sent again is answered from here.
KEEP_SENT_S = 24 * 3600.0
KEEP_SENT_RESULTS = 100_000
KEEP_SENT_BYTES = 64 * 1024 * 1024

#: How long a task is remembered that must not start when its message comes: for much longer than the service may send
#: it, as it may wait on the queue while the endpoint is stopped.
KEEP_TOMBSTONES_S = 180 * 24 * 3600.0

#: Rows removed in one transaction, so that nobody waits long for it.
PURGE_ROWS = 5000


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A task that stands in the journal without a result, and what has become of it so far."""

    task: BatchedTask
    #: How many workers it has lost.
    attempts: int = 0
    #: What became of those, and of attempts that do not count.
    notes: Sequence[Attempt] = ()
    #: If it must not start twice: it may have started already.
    handed_over: bool = False
    cancelled: bool = False


class Journal:
    """One endpoint's journal. Its methods may be called from any thread; all may raise sqlite3.Error."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file = Opened(path)
        self._db = self._file.db
        #: Why something that was written last may be missing; None if nothing is.
        self.doubt = self._file.doubt
        rows = self._db.execute("SELECT task_id FROM tasks WHERE state != ?", (SENT,))
        self._held: set[str] = {task_id for (task_id,) in rows}

    # -- tasks --------------------------------------------------------------------------------------------------------

    def accept(self, batch: TaskBatch) -> list[Unfinished]:
        """Write a batch down and return those of its tasks that are new.

        Of the others, those still held need nothing; those whose result was sent will have it sent again.
        """
        with self._writing() as db:
            ids = json.dumps([task.task_id for task in batch.tasks])
            known = dict(
                db.execute("SELECT task_id, state FROM tasks WHERE task_id IN (SELECT value FROM json_each(?))", (ids,))
            )
            buried = dict(
                db.execute(
                    "SELECT task_id, cancelled FROM tombstones WHERE task_id IN (SELECT value FROM json_each(?))",
                    (ids,),
                )
            )
            new = {task.task_id: task for task in batch.tasks if task.task_id not in known}
            again = [task_id for task_id, state in known.items() if state == SENT]
            db.executemany(
                "INSERT OR IGNORE INTO functions VALUES (?, ?, ?, ?)", map(_function_row, batch.functions.items())
            )
            db.executemany(
                "INSERT INTO tasks (task_id, function_id, payload, options, checksum, handed_over) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                map(_task_row, new.values()),
            )
            db.executemany(f"UPDATE tasks SET state = {FINISHED} WHERE task_id = ?", [(key,) for key in again])
        self._held.update(new, again)
        return [
            Unfinished(
                task,
                handed_over=task.may_have_started or buried.get(task_id) == 0,
                cancelled=buried.get(task_id) == 1,
            )
            for task_id, task in new.items()
        ]

    def hand_over(self, task_ids: Iterable[str]) -> None:
        """Note that these, which must not start twice, may have started from now on."""
        with self._writing() as db:
            db.executemany("UPDATE tasks SET handed_over = 1 WHERE task_id = ?", [(key,) for key in task_ids])

    def take_back(self, task_ids: Iterable[str]) -> None:
        """These were handed over and have not started."""
        with self._writing() as db:
            db.executemany("UPDATE tasks SET handed_over = 0 WHERE task_id = ?", [(key,) for key in task_ids])

    def attempted(self, attempts: Iterable[Attempt]) -> None:
        """Write down what became of attempts to run a task."""
        with self._writing() as db:
            db.executemany(
                "UPDATE tasks SET attempts = attempts + ?, notes = coalesce(notes, '') || ? WHERE task_id = ?",
                [(each.counts, _note_line(each), each.task_id) for each in attempts],
            )

    def cancel(self, task_ids: Sequence[str]) -> None:
        """Remember that these must not start, also those still unknown; a power cut does not undo it."""
        now = time.time()
        with self._writing(durably=True) as db:
            db.executemany("INSERT OR REPLACE INTO tombstones VALUES (?, 1, ?)", [(key, now) for key in task_ids])

    def unfinished(self) -> tuple[Mapping[str, FunctionCode], list[Unfinished]]:
        """What is to be run again after a restart, in the order in which it came, and the functions it needs."""
        with self._lock:
            rows = self._db.execute(
                "SELECT task_id, function_id, payload, options, attempts, notes, handed_over, cancelled "
                f"FROM tasks LEFT JOIN tombstones USING (task_id) WHERE state = {HELD} ORDER BY id"
            ).fetchall()
            functions = self._db.execute(
                "SELECT function_id, code, python_version FROM functions "
                f"WHERE function_id IN (SELECT function_id FROM tasks WHERE state = {HELD})"
            ).fetchall()
        tasks = [
            Unfinished(
                BatchedTask(task_id, function_id, _text(payload), json.loads(options) if options else {}),
                attempts,
                tuple(Attempt(task_id, *json.loads(line)) for line in (notes or "").splitlines()),
                # Where the last words are missing, this may have been one of them.
                handed_over=bool(handed_over) or cancelled == 0 or self.doubt is not None,
                cancelled=cancelled == 1,
            )
            for task_id, function_id, payload, options, attempts, notes, handed_over, cancelled in rows
        ]
        return {function_id: FunctionCode(_text(code), version) for function_id, code, version in functions}, tasks

    def unfinished_ids(self) -> set[str]:
        with self._lock:
            return {task_id for (task_id,) in self._db.execute(f"SELECT task_id FROM tasks WHERE state = {HELD}")}

    def held(self) -> list[str]:
        """The tasks whose result has not been sent."""
        with self._lock:
            return list(self._held)

    # -- results ------------------------------------------------------------------------------------------------------

    def finish(self, results: Iterable[tuple[str, str]]) -> None:
        """Keep results (task id and JSON text) until they are sent. Of several for a task, the first counts."""
        with self._writing() as db:
            db.executemany(
                f"UPDATE tasks SET state = {FINISHED}, result = ?, payload = x'', options = NULL, checksum = ? "
                f"WHERE task_id = ? AND state = {HELD}",
                [(text, checksum(text), task_id) for task_id, text in results],
            )

    def unsent(self, *, most: int, most_bytes: int) -> list[tuple[str, str]]:
        """The oldest results that have not been sent, at least one if there is one."""
        taken: list[tuple[str, str]] = []
        size = 0
        with self._lock:
            rows = self._db.execute(
                f"SELECT task_id, result FROM tasks WHERE state = {FINISHED} ORDER BY id LIMIT ?", (most,)
            )
            for task_id, text in rows:
                size += len(text)
                if taken and size > most_bytes:
                    break
                taken.append((task_id, text))
            rows.close()
        return taken

    def sent(self, task_ids: Sequence[str]) -> None:
        """The broker has confirmed the results of these tasks."""
        now = time.time()
        with self._writing() as db:
            db.executemany(
                f"UPDATE tasks SET state = {SENT}, sent_at = ? WHERE task_id = ? AND state = {FINISHED}",
                [(now, task_id) for task_id in task_ids],
            )
        self._held.difference_update(task_ids)

    # -- housekeeping -------------------------------------------------------------------------------------------------

    def purge(
        self,
        *,
        keep_s: float = KEEP_SENT_S,
        keep_results: int = KEEP_SENT_RESULTS,
        keep_bytes: int = KEEP_SENT_BYTES,
    ) -> int:
        """Forget results that were sent long ago, or of late if they are many or large, and functions nobody needs."""
        removed = 0
        while rows := self._purge_some(time.time() - keep_s, keep_results, keep_bytes):
            removed += rows
        with self._writing() as db:
            db.execute(
                f"DELETE FROM functions WHERE function_id NOT IN (SELECT function_id FROM tasks WHERE state = {HELD})"
            )
        while self._purge_tombstones(time.time() - KEEP_TOMBSTONES_S):
            pass
        return removed

    def _purge_tombstones(self, before: float) -> int:
        with self._writing() as db:
            return db.execute(
                f"DELETE FROM tombstones WHERE rowid IN (SELECT rowid FROM tombstones WHERE at < ? LIMIT {PURGE_ROWS})",
                (before,),
            ).rowcount

    def _purge_some(self, sent_before: float, keep_results: int, keep_bytes: int) -> int:
        with self._writing() as db:
            kept, size = db.execute(
                f"SELECT count(*), total(length(result)) FROM tasks WHERE state = {SENT}"
            ).fetchone()
            doomed = []
            for row_id, sent_at, length in db.execute(
                f"SELECT id, sent_at, length(result) FROM tasks WHERE state = {SENT} "
                f"ORDER BY sent_at LIMIT {PURGE_ROWS}"
            ):
                if sent_at > sent_before and kept <= keep_results and size <= keep_bytes:
                    break
                kept -= 1
                size -= length
                doomed.append((row_id,))
            # Of what must not start twice, it is remembered for longer that it has.
            db.executemany(
                "INSERT OR IGNORE INTO tombstones SELECT task_id, 0, sent_at FROM tasks WHERE id = ? AND handed_over",
                doomed,
            )
            db.executemany("DELETE FROM tasks WHERE id = ?", doomed)
        return len(doomed)

    def try_writing(self) -> None:
        """Raises sqlite3.Error while nothing can be written."""
        with self._writing() as db:
            db.execute("UPDATE opened SET is_open = 1")

    def close(self) -> None:
        with self._lock:
            self._file.close()

    @contextmanager
    def _writing(self, *, durably: bool = False) -> Iterator[sqlite3.Connection]:
        with self._lock:
            # Within a transaction this cannot be changed.
            self._db.execute(f"PRAGMA synchronous = {'FULL' if durably else 'NORMAL'}")
            with self._db:
                yield self._db


def _function_row(item: tuple[str, FunctionCode]) -> tuple[str, bytes, str | None, int]:
    function_id, function = item
    code = _blob(function.code)
    return function_id, code, function.python_version, checksum(code)


def _task_row(task: BatchedTask) -> tuple[str, str, bytes, str | None, int, bool]:
    payload = _blob(task.payload)
    options = json.dumps(dict(task.options)) if task.options else None
    return task.task_id, task.function_id, payload, options, checksum(payload, options), task.may_have_started


def _note_line(attempt: Attempt) -> str:
    return json.dumps([attempt.at, attempt.note, attempt.counts]) + "\n"


def _blob(text: str) -> bytes:
    """A user's text may hold lone surrogates, which SQLite's TEXT cannot."""
    return text.encode("utf-8", "surrogatepass")


def _text(blob: bytes) -> str:
    return blob.decode("utf-8", "surrogatepass")
