"""The command `farcall-webservice`.

What a command needs is imported when it runs, so that `--help` does not wait for SQLAlchemy and Flask.
"""

from __future__ import annotations

from typing import Annotated

import typer

from farcall_webservice.cli_common import BrokerUrl, DatabaseUrl, Home, clear_errors, configuration, open_database
from farcall_webservice.cli_dead_letters import dead_letters
from farcall_webservice.cli_people import client, group, token, user

app = typer.Typer(
    help="The service of Farcall: registers functions and endpoints, queues tasks, keeps results.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
db = typer.Typer(help="The ledger's database.", no_args_is_help=True)
app.add_typer(db, name="db")
app.add_typer(user, name="user")
app.add_typer(token, name="token")
app.add_typer(client, name="client")
app.add_typer(group, name="group")
app.add_typer(dead_letters, name="dead-letters")

Host = Annotated[str | None, typer.Option(help="The address to listen on [FARCALL_HOST, else 127.0.0.1].")]
Port = Annotated[int | None, typer.Option(help="The port to listen on; 0 = any free one [FARCALL_PORT, else 5000].")]
BrokerAdminUrl = Annotated[
    str | None,
    typer.Option(
        help="[FARCALL_BROKER_ADMIN_URL] RabbitMQ's management API, http://user:password@host:15672: "
        "each endpoint and user then has an account of their own."
    ),
]
QueueType = Annotated[
    str | None,
    typer.Option(help="Of the queues of tasks and results on RabbitMQ: classic or quorum [FARCALL_QUEUE_TYPE]."),
]


@app.command()
def serve(
    host: Host = None,
    port: Port = None,
    home: Home = None,
    database_url: DatabaseUrl = None,
    broker_url: BrokerUrl = None,
    broker_admin_url: BrokerAdminUrl = None,
    queue_type: QueueType = None,
) -> None:
    """Run the whole service, with a database and a broker of its own unless told otherwise, until Ctrl-C."""
    with clear_errors():
        config = configuration(
            host=host,
            port=port,
            home=home,
            database_url=database_url,
            broker_url=broker_url,
            broker_admin_url=broker_admin_url,
            queue_type=queue_type,
        )

        from farcall_webservice import embedded

        embedded.serve(config)


@app.command()
def web(
    host: Host = None,
    port: Port = None,
    workers: Annotated[int | None, typer.Option(help="Processes [FARCALL_WORKERS, else 2].")] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of each; a waiting request keeps one [FARCALL_THREADS, else 200].")
    ] = None,
    database_url: DatabaseUrl = None,
    broker_url: BrokerUrl = None,
    broker_admin_url: BrokerAdminUrl = None,
    queue_type: QueueType = None,
) -> None:
    """Answer requests, beside other processes that do: needs PostgreSQL, a broker and `collect`."""
    with clear_errors():
        config = configuration(
            host=host,
            port=port,
            workers=workers,
            threads=threads,
            database_url=database_url,
            broker_url=broker_url,
            broker_admin_url=broker_admin_url,
            queue_type=queue_type,
        )

        from farcall_webservice import web

        web.serve(config)


@app.command()
def collect(
    database_url: DatabaseUrl = None,
    broker_url: BrokerUrl = None,
    broker_admin_url: BrokerAdminUrl = None,
    queue_type: QueueType = None,
) -> None:
    """Bring results in, beside other processes that do: needs PostgreSQL and a broker."""
    with clear_errors():
        config = configuration(
            database_url=database_url,
            broker_url=broker_url,
            broker_admin_url=broker_admin_url,
            queue_type=queue_type,
        )

        from farcall_webservice import collect

        collect.collect(config)


@db.command("upgrade")
def upgrade(home: Home = None, database_url: DatabaseUrl = None) -> None:
    """Bring the database to this version of the service."""
    with open_database(home, database_url, migrates=True):
        typer.echo("The database is up to date.")


@app.command()
def version() -> None:
    """Print the version."""
    from importlib import metadata

    typer.echo(metadata.version("farcall-webservice"))
