"""What tasks have printed and the service does not have yet: on disk, and never more than a certain amount of it.

It is worth less than results. Where there is too much, the oldest goes; where the disk is full or the file damaged,
what cannot be kept is lost.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from farcall.wire import Output

log = logging.getLogger(__name__)

#: Bytes that are kept of one task and of all together.
MOST_OF_A_TASK = 1024 * 1024
MOST_BYTES = 64 * 1024 * 1024

#: How often the log says that output is lost.
SAY_AGAIN_S = 60.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS pieces (
    id INTEGER PRIMARY KEY, task_id TEXT NOT NULL, stream TEXT NOT NULL, start INTEGER NOT NULL, text BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS pieces_of_tasks ON pieces (task_id, length(text));
"""


class OutputStore:
    """Pieces that wait to be sent. Its methods may be called from any thread and raise nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._sizes: Counter[str] = Counter()
        self._size = 0
        self._say_next = 0.0
        try:
            self._db = self._open()
        except sqlite3.Error as error:
            log.warning("what was printed and not sent is lost, as %s cannot be used: %s", path, error)
            self._db = self._open_anew()

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return self._size > 0

    def add(self, pieces: Sequence[Output]) -> None:
        rows = [(piece.task_id, piece.stream, piece.start, _blob(piece.text)) for piece in pieces if piece.text]
        with self._changing() as db:
            db.executemany("INSERT INTO pieces (task_id, stream, start, text) VALUES (?, ?, ?, ?)", rows)
            for task_id, _, _, text in rows:
                self._count(task_id, len(text))
            for task_id in {task_id for task_id, *_ in rows}:
                if self._sizes[task_id] > MOST_OF_A_TASK:
                    self._drop_oldest("WHERE task_id = ?", (task_id,), self._sizes[task_id] - MOST_OF_A_TASK)
            if self._size > MOST_BYTES:
                self._drop_oldest("", (), self._size - MOST_BYTES)

    def take(self, *, most_bytes: int, of: Sequence[str] | None = None) -> dict[int, Output]:
        """The oldest pieces, of all tasks or of these, each by a number to tell that it was sent."""
        taken: dict[int, Output] = {}
        size = 0
        with self._changing() as db:
            for row_id, task_id, stream, start, text in self._rows(db, of):
                size += len(text)
                if taken and size > most_bytes:
                    break
                taken[row_id] = Output(task_id, stream, start, text.decode("utf-8", "surrogatepass"))
        return taken

    def sent(self, numbers: Sequence[int]) -> None:
        with self._changing() as db:
            for number in numbers:
                row = db.execute("SELECT task_id, length(text) FROM pieces WHERE id = ?", (number,)).fetchone()
                # Where there was too much, it has gone already.
                if row is not None:
                    db.execute("DELETE FROM pieces WHERE id = ?", (number,))
                    self._count(row[0], -row[1])

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _rows(self, db: sqlite3.Connection, of: Sequence[str] | None) -> Iterator[tuple[int, str, str, int, bytes]]:
        columns = "SELECT id, task_id, stream, start, text FROM pieces"
        if of is None:
            yield from db.execute(f"{columns} ORDER BY id")
            return
        for task_id in of:
            if self._sizes[task_id]:
                yield from db.execute(f"{columns} WHERE task_id = ? ORDER BY id", (task_id,))

    def _drop_oldest(self, where: str, arguments: Sequence[str], excess: int) -> None:
        doomed = []
        for row_id, task_id, size in self._db.execute(
            f"SELECT id, task_id, length(text) FROM pieces {where} ORDER BY id", arguments
        ):
            if excess <= 0:
                break
            excess -= size
            self._count(task_id, -size)
            doomed.append((row_id,))
        self._db.executemany("DELETE FROM pieces WHERE id = ?", doomed)

    def _count(self, task_id: str, change: int) -> None:
        self._size += change
        self._sizes[task_id] += change
        if not self._sizes[task_id]:
            del self._sizes[task_id]

    def _recount(self) -> None:
        rows = self._db.execute("SELECT task_id, sum(length(text)) FROM pieces GROUP BY task_id")
        self._sizes = Counter(dict(rows))
        self._size = self._sizes.total()

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                with self._db:
                    yield self._db
            except sqlite3.Error as error:
                if time.monotonic() >= self._say_next:
                    self._say_next = time.monotonic() + SAY_AGAIN_S
                    log.warning("output of tasks is lost, as it cannot be written to %s: %s", self._path, error)
                with suppress(sqlite3.Error):
                    self._recount()

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = OFF")
            db.execute("PRAGMA journal_size_limit = 4194304")
            db.executescript(_SCHEMA)
            self._db = db
            self._recount()
        except sqlite3.Error:
            db.close()
            raise
        return db

    def _open_anew(self) -> sqlite3.Connection:
        for path in self._path.parent.glob(f"{self._path.name}*"):
            path.unlink()
        try:
            return self._open()
        except sqlite3.Error as error:
            log.warning("output of tasks is kept in memory, as %s cannot be written: %s", self._path, error)
            self._path = Path(":memory:")
            return self._open()


def _blob(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
