"""The journal's file: made, brought up to date, and looked through before it is trusted.

What a fault may have done to it is one of two things. Either what is there is as it was at some earlier moment: then it
is used, with a word about it, for the service sends again what it knows to be missing. Or it is not: then it is
refused, with advice. A file that is simply empty is never taken for a journal in which nothing stands.
"""

from __future__ import annotations

import logging
import sqlite3
import struct
import zlib
from contextlib import closing, suppress
from pathlib import Path

from farcall.errors import FarcallError

log = logging.getLogger(__name__)

#: Raised with every change of the tables below; ``_STEPS`` leads from one to the next.
SCHEMA_VERSION = 2

#: The states of a row in ``tasks``.
HELD, FINISHED, SENT = 0, 1, 2

#: No database is smaller.
LEAST_BYTES = 512

#: What makes the tables of one version from those of the one before it.
_STEPS = (
    (
        f"""CREATE TABLE tasks (
            id INTEGER PRIMARY KEY,
            task_id TEXT NOT NULL UNIQUE,
            function_id TEXT NOT NULL,
            payload BLOB NOT NULL,
            options TEXT,
            attempts INTEGER NOT NULL DEFAULT 0,
            state INTEGER NOT NULL DEFAULT {HELD},
            result TEXT,
            sent_at REAL
        )""",
        f"CREATE INDEX held ON tasks (function_id) WHERE state = {HELD}",
        f"CREATE INDEX finished ON tasks (id) WHERE state = {FINISHED}",
        f"CREATE INDEX sent ON tasks (sent_at, length(result)) WHERE state = {SENT}",
        "CREATE TABLE functions (function_id TEXT PRIMARY KEY, code BLOB NOT NULL, python_version TEXT)",
    ),
    (
        # It may have started, and is one of those that must not start twice.
        "ALTER TABLE tasks ADD COLUMN handed_over INTEGER NOT NULL DEFAULT 0",
        # A line for each attempt, in JSON: nanoseconds since 1970, sentence, whether it counts.
        "ALTER TABLE tasks ADD COLUMN notes TEXT",
        # Of what is large in the row; NULL in rows of the first version.
        "ALTER TABLE tasks ADD COLUMN checksum INTEGER",
        "ALTER TABLE functions ADD COLUMN checksum INTEGER",
        # Tasks that must not start, whenever their message comes: cancelled, or ended here long ago.
        "CREATE TABLE tombstones (task_id TEXT PRIMARY KEY, cancelled INTEGER NOT NULL, at REAL NOT NULL)",
        "CREATE INDEX tombstones_by_age ON tombstones (at)",
        # One row: whether an agent has the file open, and since which start of which machine.
        "CREATE TABLE opened (is_open INTEGER NOT NULL, boot TEXT NOT NULL)",
        "INSERT INTO opened VALUES (0, '')",
    ),
)

_ADVICE = (
    "It held the tasks that were accepted and not finished, and results that were not sent. Move it away, with the "
    "files beside it whose names begin like its own, and start again: the service sends the tasks again of which it "
    "has no result; keep the files if you want somebody to look for results in them."
)

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class JournalError(FarcallError, RuntimeError):
    """The journal's file cannot be used; the message says what to do."""


class Opened:
    """A journal's database, and whether the last words of whoever wrote it may be missing."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it. Raises JournalError."""
        self.path = path
        #: Why something may be missing that was written last; None if nothing is.
        self.doubt: str | None = None
        beside = path.with_name(f"{path.name}-wal")
        try:
            if not path.exists():
                if beside.exists() and beside.stat().st_size:
                    raise self._damaged(f"there is a {beside.name} without it")
                _make(path)
            elif path.stat().st_size < LEAST_BYTES:
                # SQLite would take it for a new database, and write over it.
                raise self._damaged(f"only {path.stat().st_size} bytes of it are there")
            promised = _frames_promised(path)
            self.db = sqlite3.connect(path, check_same_thread=False)
            try:
                self._look_through(promised)
            except BaseException:
                self.db.close()
                raise
        except sqlite3.OperationalError as error:
            raise JournalError(f"the journal {path} cannot be opened: {error}") from error
        except sqlite3.DatabaseError as error:
            raise self._damaged(str(error)) from error

    def close(self) -> None:
        with suppress(sqlite3.Error), self.db:
            self.db.execute("UPDATE opened SET is_open = 0")
        self.db.close()

    def _look_through(self, promised: int) -> None:
        db = self.db
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA journal_size_limit = 67108864")
        (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(found)
        self._bring_up_to_date()
        _check_contents(db)
        self._compare_with_last_time(promised)

    def _bring_up_to_date(self) -> None:
        (version,) = self.db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            raise sqlite3.DatabaseError("it is a database of something else")
        if version > SCHEMA_VERSION:
            raise JournalError(
                f"the journal {self.path} was written by another version (its schema is {version}, ours is "
                f"{SCHEMA_VERSION}). Start that version once more to finish its tasks, or move the file away."
            )
        if version < SCHEMA_VERSION:
            _take_steps(self.db, version)
            log.info("the journal %s was brought from schema %d to %d", self.path, version, SCHEMA_VERSION)

    def _compare_with_last_time(self, promised: int) -> None:
        """Find out whether what was written last is all there, and note that we are here.

        While the file is open there is something in the -wal file, from the first moment on.
        """
        boot = _boot_id()
        _, frames, _ = self.db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        was_open, boot_then = self.db.execute("SELECT * FROM opened").fetchone()
        if was_open:
            if frames < max(promised, 1):
                self.doubt = f"of the last {max(promised, 1)} pages written, {frames} are in its -wal file"
            elif boot_then != boot:
                self.doubt = "the machine was started again, or is another, since it was written"
        if self.doubt is not None:
            log.warning(
                "the journal %s may lack what was written last: %s. The service sends again what is missing",
                self.path,
                self.doubt,
            )
        with self.db:
            self.db.execute("UPDATE opened SET is_open = 1, boot = ?", (boot,))
        self.db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def _damaged(self, what: str) -> JournalError:
        return JournalError(f"the journal {self.path} is damaged ({what}). {_ADVICE}")


def look_at(path: Path) -> tuple[int, int]:
    """How many tasks are unfinished in a journal, and how many results unsent. Changes nothing, raises JournalError."""
    try:
        if path.stat().st_size < LEAST_BYTES:
            raise sqlite3.DatabaseError(f"only {path.stat().st_size} bytes of it are there")
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise sqlite3.DatabaseError(found)
            counts = dict(db.execute("SELECT state, count(*) FROM tasks GROUP BY state"))
            if db.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION:
                _check_contents(db)
    except sqlite3.OperationalError as error:
        raise JournalError(f"the journal {path} cannot be read: {error}") from error
    except (OSError, sqlite3.DatabaseError) as error:
        raise JournalError(f"the journal {path} is damaged ({error}). {_ADVICE}") from error
    return counts.get(HELD, 0), counts.get(FINISHED, 0)


def checksum(*parts: bytes | str | None) -> int:
    """Of what is large in a row. SQLite notices a page that is missing, but not one that has become zeros."""
    total = 0
    for part in parts:
        total = zlib.crc32(part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part or b"", total)
    return total


def _make(path: Path) -> None:
    """All at once: a file of that name is never one that is only half made."""
    unfinished = path.with_name(f"{path.name}.new")
    unfinished.unlink(missing_ok=True)
    with closing(sqlite3.connect(unfinished)) as db:
        _take_steps(db, 0)
    unfinished.rename(path)


def _take_steps(db: sqlite3.Connection, version: int) -> None:
    db.execute("BEGIN IMMEDIATE")
    with db:
        for statement in (statement for step in _STEPS[version:] for statement in step):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _check_contents(db: sqlite3.Connection) -> None:
    for task_id, expected, *parts in db.execute("SELECT task_id, checksum, payload, options, result FROM tasks"):
        if expected is not None and checksum(*parts) != expected:
            raise sqlite3.DatabaseError(f"what stands there for task {task_id} is not what was written")
    for function_id, expected, code in db.execute("SELECT function_id, checksum, code FROM functions"):
        if expected is not None and checksum(code) != expected:
            raise sqlite3.DatabaseError(f"the code of function {function_id} is not what was written")


def _frames_promised(path: Path) -> int:
    """How many pages the -wal file should hold, as the -shm file says; see https://www.sqlite.org/walformat.html."""
    try:
        with path.with_name(f"{path.name}-shm").open("rb") as file:
            header = file.read(20)
    except FileNotFoundError:
        return 0
    return int(struct.unpack("=I", header[16:])[0]) if len(header) == 20 else 0


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
