"""The database behind the ledger: SQLite in one file, or PostgreSQL.

SQLite lets one transaction write at a time; a second writer would sleep in steps of milliseconds until the first is
done. Inside one process writers therefore queue on a lock, which wakes them at once. In PostgreSQL many write at a
time; whoever locks several rows locks them in the order of their ids, so that none waits in a circle.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DisconnectionError, InterfaceError, OperationalError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from farcall.errors import ConfigurationError

#: The database cannot be used now; what was asked of it was not done, and can be asked again.
UNAVAILABLE = (OperationalError, InterfaceError, PoolTimeoutError)

#: Of one process; many of its threads wait for results, which takes no connection.
SQLITE_POOL = {"pool_size": 20, "max_overflow": 20}
POSTGRES_POOL = {"pool_size": 10, "max_overflow": 5, "pool_recycle": 1800}
#: How soon a server that has gone without a word is noticed, in libpq's terms; the URL may say otherwise.
POSTGRES_CONNECTION = {
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
    "application_name": "farcall",
}
#: That something could be written is true for so long.
TRIED_FOR_S = 5.0
#: As much as a submission of some tasks: a little fits where that does not.
HEALTH_BYTES = 64 * 1024
#: PostgreSQL's code for a disk without room.
POSTGRES_DISK_FULL = "53100"
#: The lock under which one process at a time changes the schema. Any number, as long as it stays the same.
MIGRATION_LOCK = 0x0FA2CA11

_NOTE_HEALTH = text("UPDATE secrets SET value = :value WHERE name = :name")
_FIRST_HEALTH = text("INSERT INTO secrets (name, value) VALUES (:name, :value) ON CONFLICT DO NOTHING")


class Database:
    """Connections to the ledger's database, and its schema's version."""

    def __init__(self, url: str) -> None:
        self.url = url
        parsed = make_url(url)
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        #: For messages, without a password.
        self.name = parsed.database or ""
        if not self.is_sqlite:
            self.name = f"{parsed.host or 'localhost'}:{parsed.port or 5432}/{self.name}"
        self._write_lock: contextlib.AbstractContextManager[Any] = (
            threading.RLock() if self.is_sqlite else contextlib.nullcontext()
        )
        try:
            self.engine: Engine = create_engine(
                url,
                json_serializer=lambda value: orjson.dumps(value).decode(),
                json_deserializer=orjson.loads,
                pool_use_lifo=True,
                **(SQLITE_POOL if self.is_sqlite else POSTGRES_POOL),
                connect_args={} if self.is_sqlite else _unless_given(POSTGRES_CONNECTION, parsed.query),
            )
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"this database needs the module {error.name}: pip install 'farcall-webservice[postgres]'"
            ) from error
        self._tried_until = 0.0
        self._writer = self.engine.execution_options(farcall_writes=True)
        self._reader = self.engine
        if self.is_sqlite:
            event.listen(self.engine, "connect", _prepare_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        else:
            # Each statement sees what was committed before it, within a transaction or not; without one, two round
            # trips are saved.
            self._reader = self.engine.execution_options(isolation_level="AUTOCOMMIT")
            event.listen(self.engine, "checkout", _refuse_disconnected)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection for statements that only read."""
        with self._reader.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction: committed at the end of the block, rolled back if it raises."""
        with self._write_lock, self._writer.begin() as connection:
            yield connection

    def migrate(self) -> None:
        """Bring the schema to this version of the service. Doing it twice is no error."""
        if not self.is_current():
            configuration = _alembic_configuration(self.url)
            with self.writing() as connection:
                if not self.is_sqlite:
                    # Whoever comes second waits here, and then finds nothing to do.
                    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
                configuration.attributes["connection"] = connection
                command.upgrade(configuration, "head")

    def is_current(self) -> bool:
        """Whether the schema is that of this version. Raises :class:`ConfigurationError` if it is a later one's."""
        scripts = ScriptDirectory.from_config(_alembic_configuration(self.url))
        with self.reading() as connection:
            current = MigrationContext.configure(connection).get_current_revision()
        try:
            scripts.get_revision(current or "base")
        except CommandError as error:
            raise ConfigurationError(
                f"the database was made by a later version of farcall-webservice (its revision is {current}): "
                "install that version, or name another database"
            ) from error
        return current == scripts.get_current_head()

    def require_current(self) -> None:
        """Raise :class:`ConfigurationError`, which says what to do, unless the schema is that of this version."""
        if not self.is_current():
            raise ConfigurationError(
                f"the tables of the database {self.name} are not those of this version: "
                "run `farcall-webservice db upgrade` first"
            )

    def ping(self) -> None:
        """Raise SQLAlchemy's error if the database cannot be used."""
        with self.reading() as connection:
            connection.execute(text("SELECT 1"))

    def try_writing(self) -> None:
        """Raise SQLAlchemy's error if nothing can be written, as on a full disk. Tried anew only now and then."""
        if time.monotonic() < self._tried_until:
            return
        row = {"name": "written-for-health", "value": os.urandom(HEALTH_BYTES // 2).hex()}
        with self.writing() as connection:
            if not connection.execute(_NOTE_HEALTH, row).rowcount:
                connection.execute(_FIRST_HEALTH, row)
        self._tried_until = time.monotonic() + TRIED_FOR_S

    def checkpoint(self) -> None:
        """Let a SQLite file hold all that was committed, also without the log of changes beside it."""
        if self.is_sqlite:
            with self.reading() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        self.engine.dispose()


def is_full(error: Exception) -> bool:
    """Whether it is for want of room on its disk that the database cannot be used."""
    cause = cause_of(error)
    return getattr(cause, "sqlstate", None) == POSTGRES_DISK_FULL or "disk is full" in str(cause)


def cause_of(error: Exception) -> BaseException:
    """What the driver said, without SQLAlchemy's account of the statement and its parameters."""
    return error.orig if isinstance(error, StatementError) and error.orig is not None else error


def _unless_given(defaults: Mapping[str, str], given: Mapping[str, Any]) -> dict[str, str]:
    return {name: value for name, value in defaults.items() if name not in given}


def _alembic_configuration(url: str) -> Config:
    configuration = Config()
    configuration.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    configuration.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return configuration


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # Transactions are begun by _begin_sqlite, not by the driver's guess at the first INSERT.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    # An answered submit must survive a power cut, so each commit reaches the disk.
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA busy_timeout = 30000")
    # Of each connection. What is written stands together at the ends of the tables, and the system keeps the rest.
    cursor.execute("PRAGMA cache_size = -8192")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that begins as a reader may be refused the step to writer, so a writer says so at once. A reader
    # needs none: each of its statements sees one consistent state.
    if connection.get_execution_options().get("farcall_writes", False):
        driver = connection.connection.dbapi_connection
        assert driver is not None
        driver.execute("BEGIN IMMEDIATE")


def _refuse_disconnected(connection: Any, _record: Any, _proxy: Any) -> None:
    """Let the pool replace a connection that its server has closed.

    Between transactions nothing is to be read from a connection but its end. Asking the kernel costs microseconds,
    where the pool's own check asks the server.
    """
    poll = select.poll()
    poll.register(connection.pgconn.socket, select.POLLIN)
    if poll.poll(0):
        raise DisconnectionError("the server has closed this connection")
