"""The agent's memory on disk: tasks accepted, results not sent yet, and for a while those that were.

A task is acknowledged to the broker when it stands here, and leaves when its result has been sent; in between the agent
may be killed at any moment. Everything comes in batches, one transaction each. ``synchronous=NORMAL`` keeps what a
killed process wrote; what a power cut takes of the last moments, the service's ledger sends again.
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

from farcall.errors import FarcallError
from farcall.wire import BatchedTask, FunctionCode, TaskBatch

#: Raised with every change of the tables below.
SCHEMA_VERSION = 1

#: How long a result that was sent is kept, and how much of them: a task delivered twice is answered from here.
KEEP_SENT_S = 600.0
KEEP_SENT_BYTES = 64 * 1024 * 1024

#: Rows removed in one transaction, so that nobody waits long for it.
PURGE_ROWS = 5000

_HELD, _FINISHED, _SENT = 0, 1, 2

_SCHEMA = f"""
CREATE TABLE tasks (
    id INTEGER PRIMARY KEY,
    task_id TEXT NOT NULL UNIQUE,
    function_id TEXT NOT NULL,
    payload BLOB NOT NULL,
    options TEXT,
    attempts INTEGER NOT NULL DEFAULT 0,
    state INTEGER NOT NULL DEFAULT {_HELD},
    result TEXT,
    sent_at REAL
);
CREATE INDEX held ON tasks (function_id) WHERE state = {_HELD};
CREATE INDEX finished ON tasks (id) WHERE state = {_FINISHED};
CREATE INDEX sent ON tasks (sent_at, length(result)) WHERE state = {_SENT};
CREATE TABLE functions (function_id TEXT PRIMARY KEY, code BLOB NOT NULL, python_version TEXT);
PRAGMA user_version = {SCHEMA_VERSION};
"""


class JournalError(FarcallError, RuntimeError):
    """The journal's file cannot be used; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A task that stands in the journal without a result, and how many workers it has lost."""

    task: BatchedTask
    attempts: int = 0


class Journal:
    """One endpoint's journal. Its methods may be called from any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._db = self._open()
        rows = self._db.execute("SELECT task_id FROM tasks WHERE state != ?", (_SENT,))
        self._held: set[str] = {task_id for (task_id,) in rows}

    # -- tasks --------------------------------------------------------------------------------------------------------

    def accept(self, batch: TaskBatch) -> list[BatchedTask]:
        """Write a batch down and return those of its tasks that are new.

        Of the others, those still held need nothing; those whose result was sent will have it sent again.
        """
        with self._writing() as db:
            ids = json.dumps([task.task_id for task in batch.tasks])
            known = dict(
                db.execute("SELECT task_id, state FROM tasks WHERE task_id IN (SELECT value FROM json_each(?))", (ids,))
            )
            new = {task.task_id: task for task in batch.tasks if task.task_id not in known}
            again = [task_id for task_id, state in known.items() if state == _SENT]
            db.executemany(
                "INSERT OR IGNORE INTO functions VALUES (?, ?, ?)",
                [(key, _blob(function.code), function.python_version) for key, function in batch.functions.items()],
            )
            db.executemany(
                "INSERT INTO tasks (task_id, function_id, payload, options) VALUES (?, ?, ?, ?)",
                [(task.task_id, task.function_id, _blob(task.payload), _options_text(task)) for task in new.values()],
            )
            db.executemany(f"UPDATE tasks SET state = {_FINISHED} WHERE task_id = ?", [(key,) for key in again])
            self._held.update(new, again)
        return list(new.values())

    def lost(self, task_ids: Iterable[str]) -> None:
        """Count one more worker that each of these tasks has lost."""
        with self._writing() as db:
            db.executemany("UPDATE tasks SET attempts = attempts + 1 WHERE task_id = ?", [(key,) for key in task_ids])

    def unfinished(self) -> tuple[Mapping[str, FunctionCode], list[Unfinished]]:
        """What is to be run again after a restart, in the order in which it came, and the functions it needs."""
        with self._lock:
            rows = self._db.execute(
                f"SELECT task_id, function_id, payload, options, attempts FROM tasks WHERE state = {_HELD} ORDER BY id"
            ).fetchall()
            functions = self._db.execute(
                f"SELECT * FROM functions WHERE function_id IN (SELECT function_id FROM tasks WHERE state = {_HELD})"
            ).fetchall()
        tasks = [
            Unfinished(
                BatchedTask(task_id, function_id, _text(payload), json.loads(options) if options else {}), attempts
            )
            for task_id, function_id, payload, options, attempts in rows
        ]
        return {function_id: FunctionCode(_text(code), version) for function_id, code, version in functions}, tasks

    def unfinished_ids(self) -> set[str]:
        with self._lock:
            return {task_id for (task_id,) in self._db.execute(f"SELECT task_id FROM tasks WHERE state = {_HELD}")}

    def held(self) -> list[str]:
        """The tasks whose result has not been sent."""
        with self._lock:
            return list(self._held)

    # -- results ------------------------------------------------------------------------------------------------------

    def finish(self, results: Iterable[tuple[str, str]]) -> None:
        """Keep results (task id and JSON text) until they are sent. Of several for a task, the first counts."""
        with self._writing() as db:
            db.executemany(
                f"UPDATE tasks SET state = {_FINISHED}, result = ?, payload = x'' "
                f"WHERE task_id = ? AND state = {_HELD}",
                [(text, task_id) for task_id, text in results],
            )

    def unsent(self, *, most: int, most_bytes: int) -> list[tuple[str, str]]:
        """The oldest results that have not been sent, at least one if there is one."""
        taken: list[tuple[str, str]] = []
        size = 0
        with self._lock:
            rows = self._db.execute(
                f"SELECT task_id, result FROM tasks WHERE state = {_FINISHED} ORDER BY id LIMIT ?", (most,)
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
                f"UPDATE tasks SET state = {_SENT}, sent_at = ? WHERE task_id = ? AND state = {_FINISHED}",
                [(now, task_id) for task_id in task_ids],
            )
            self._held.difference_update(task_ids)

    # -- housekeeping -------------------------------------------------------------------------------------------------

    def purge(self, *, keep_s: float = KEEP_SENT_S, keep_bytes: int = KEEP_SENT_BYTES) -> int:
        """Forget results that were sent long ago, or more recently if they are large, and functions nobody needs."""
        removed = 0
        while rows := self._purge_some(time.time() - keep_s, keep_bytes):
            removed += rows
        with self._writing() as db:
            db.execute(
                f"DELETE FROM functions WHERE function_id NOT IN (SELECT function_id FROM tasks WHERE state = {_HELD})"
            )
        return removed

    def _purge_some(self, sent_before: float, keep_bytes: int) -> int:
        with self._writing() as db:
            (size,) = db.execute(f"SELECT total(length(result)) FROM tasks WHERE state = {_SENT}").fetchone()
            excess = size - keep_bytes
            doomed = []
            for row_id, sent_at, length in db.execute(
                f"SELECT id, sent_at, length(result) FROM tasks WHERE state = {_SENT} "
                f"ORDER BY sent_at LIMIT {PURGE_ROWS}"
            ):
                if sent_at > sent_before and excess <= 0:
                    break
                excess -= length
                doomed.append((row_id,))
            db.executemany("DELETE FROM tasks WHERE id = ?", doomed)
        return len(doomed)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._db:
            yield self._db

    def _open(self) -> sqlite3.Connection:
        try:
            db = sqlite3.connect(self.path, check_same_thread=False)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("PRAGMA journal_size_limit = 67108864")
            (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise sqlite3.DatabaseError(found)
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version == 0:
                db.executescript(_SCHEMA)
                version = SCHEMA_VERSION
        except sqlite3.OperationalError as error:
            raise JournalError(f"the journal {self.path} cannot be opened: {error}") from error
        except sqlite3.DatabaseError as error:
            raise JournalError(
                f"the journal {self.path} is damaged ({error}). It held the tasks that were accepted and not finished, "
                "and results that were not sent. Move the file away and start again: the service sends the tasks again "
                "of which it has no result; keep the file if you want somebody to look for results in it."
            ) from error
        if version != SCHEMA_VERSION:
            db.close()
            raise JournalError(
                f"the journal {self.path} was written by another version (its schema is {version}, ours is "
                f"{SCHEMA_VERSION}). Start that version once more to finish its tasks, or move the file away."
            )
        return db


def _options_text(task: BatchedTask) -> str | None:
    return json.dumps(dict(task.options)) if task.options else None


def _blob(text: str) -> bytes:
    """A user's text may hold lone surrogates, which SQLite's TEXT cannot."""
    return text.encode("utf-8", "surrogatepass")


def _text(blob: bytes) -> str:
    return blob.decode("utf-8", "surrogatepass")
