"""What every command of `farcall-webservice` needs: its settings, the database, errors as sentences."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from farcall.errors import ConfigurationError

if TYPE_CHECKING:
    from farcall_webservice.config import ServiceConfig
    from farcall_webservice.database import Database

Home = Annotated[Path | None, typer.Option(help="Where everything is kept [FARCALL_HOME, else ~/.farcall].")]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(help="[FARCALL_DATABASE_URL, else a SQLite file in the home] sqlite:///... or postgresql://..."),
]
BrokerUrl = Annotated[
    str | None, typer.Option(help="[FARCALL_BROKER_URL, else a broker of its own] redis://... or amqp://...")
]


def configuration(**options: Any) -> ServiceConfig:
    from farcall_webservice.config import ServiceConfig

    return ServiceConfig.from_environment(**options)


@contextmanager
def open_database(home: Path | None, database_url: str | None, *, migrates: bool = False) -> Iterator[Database]:
    """The ledger's database, at this version's schema.

    SQLite's is brought there, so that a user can be added before the first `serve`. Processes of another version may
    be at work on PostgreSQL's: it is changed only where that was asked for.
    """
    with clear_errors():
        config = configuration(home=home, database_url=database_url)

        from farcall_webservice.database import UNAVAILABLE, Database, cause_of

        if config.database_url.startswith("sqlite"):
            config.service_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        database = Database(config.database_url)
        is_new = database.is_sqlite and not Path(database.name).exists()
        try:
            if migrates or database.is_sqlite:
                database.migrate()
            else:
                database.require_current()
            made = "; it is new. Another one is named by --database-url or FARCALL_DATABASE_URL" if is_new else ""
            typer.echo(f"The database is {database.name}{made}", err=True)
            yield database
        except UNAVAILABLE as error:
            _end(f"the database cannot be used: {cause_of(error)}")
        finally:
            database.close()


@contextmanager
def clear_errors() -> Iterator[None]:
    """What the user can mend is a sentence, not a traceback."""
    try:
        yield
    except (ConfigurationError, OSError) as error:
        _end(str(error))


def _end(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    sys.exit(1)
