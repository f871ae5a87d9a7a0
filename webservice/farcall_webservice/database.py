"""The database behind the ledger: SQLite in one file, or PostgreSQL.

SQLite lets one transaction write at a time; a second writer would sleep in steps of milliseconds until the first is
done. Inside one process writers therefore queue on a lock, which wakes them at once.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url

from farcall.errors import ConfigurationError


class Database:
    """Connections to the ledger's database, and its schema's version."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.is_sqlite = make_url(url).get_backend_name() == "sqlite"
        self._write_lock: contextlib.AbstractContextManager[Any] = (
            threading.RLock() if self.is_sqlite else contextlib.nullcontext()
        )
        try:
            self.engine: Engine = create_engine(
                url,
                json_serializer=lambda value: orjson.dumps(value).decode(),
                json_deserializer=orjson.loads,
                pool_size=20,
                max_overflow=20,
                pool_use_lifo=True,
                pool_pre_ping=not self.is_sqlite,
            )
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"this database needs the module {error.name}: pip install 'farcall-webservice[postgres]'"
            ) from error
        self._writer = self.engine.execution_options(farcall_writes=True)
        if self.is_sqlite:
            event.listen(self.engine, "connect", _prepare_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection for statements that only read."""
        with self.engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction: committed at the end of the block, rolled back if it raises."""
        with self._write_lock, self._writer.begin() as connection:
            yield connection

    def migrate(self) -> None:
        """Bring the schema to this version of the service. Doing it twice is no error."""
        configuration = _alembic_configuration(self.url)
        head = ScriptDirectory.from_config(configuration).get_current_head()
        with self.engine.connect() as connection:
            current = MigrationContext.configure(connection).get_current_revision()
        if current != head:
            with self.writing() as connection:
                configuration.attributes["connection"] = connection
                command.upgrade(configuration, "head")

    def ping(self) -> None:
        """Raise SQLAlchemy's error if the database cannot be used."""
        with self.reading() as connection:
            connection.execute(text("SELECT 1"))

    def close(self) -> None:
        self.engine.dispose()


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
    cursor.execute("PRAGMA cache_size = -65536")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that begins as a reader may be refused the step to writer, so a writer says so at once. A reader
    # needs none: each of its statements sees one consistent state.
    if connection.get_execution_options().get("farcall_writes", False):
        driver = connection.connection.dbapi_connection
        assert driver is not None
        driver.execute("BEGIN IMMEDIATE")
