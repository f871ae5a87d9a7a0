"""The command `farcall-webservice`.

What a command needs is imported when it runs, so that `--help` does not wait for SQLAlchemy and Flask.
"""

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

app = typer.Typer(
    help="The service of Farcall: registers functions and endpoints, queues tasks, keeps results.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
db = typer.Typer(help="The ledger's database.", no_args_is_help=True)
user = typer.Typer(help="Who may hold tokens.", no_args_is_help=True)
token = typer.Typer(help="Bearer tokens.", no_args_is_help=True)
group = typer.Typer(help="People who share functions with one another.", no_args_is_help=True)
client = typer.Typer(help="Programs that log in by themselves, or log people in (OAuth 2).", no_args_is_help=True)
app.add_typer(db, name="db")
app.add_typer(user, name="user")
app.add_typer(token, name="token")
app.add_typer(client, name="client")
app.add_typer(group, name="group")

Home = Annotated[Path | None, typer.Option(help="Where everything is kept [FARCALL_HOME, else ~/.farcall].")]
Host = Annotated[str | None, typer.Option(help="The address to listen on [FARCALL_HOST, else 127.0.0.1].")]
Port = Annotated[int | None, typer.Option(help="The port to listen on; 0 = any free one [FARCALL_PORT, else 5000].")]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(help="[FARCALL_DATABASE_URL, else a SQLite file in the home] sqlite:///... or postgresql://..."),
]
BrokerUrl = Annotated[
    str | None, typer.Option(help="[FARCALL_BROKER_URL, else a broker of its own] redis://... or amqp://...")
]
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
    with _clear_errors():
        config = _config(
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
    with _clear_errors():
        config = _config(
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
    with _clear_errors():
        config = _config(
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
    with _database(home, database_url, migrates=True):
        typer.echo("The database is up to date.")


@user.command("add")
def add_user(name: str, home: Home = None, database_url: DatabaseUrl = None) -> None:
    """Add a user; `token create` then makes a token for them."""
    with _database(home, database_url) as database:
        from farcall_webservice import auth

        typer.echo(auth.create_user(database, name))


@user.command("list")
def list_users(home: Home = None, database_url: DatabaseUrl = None) -> None:
    """Every user: id, since when, name."""
    with _database(home, database_url) as database:
        from farcall_webservice import auth

        for row in auth.users(database):
            typer.echo(f"{row.id}  {_day(row.created_at)}  {row.name}")


@user.command("password")
def set_password(
    name: str,
    stdin: Annotated[bool, typer.Option("--stdin", help="Read the first line of the standard input, unasked.")] = False,
    home: Home = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Set a user's password for the login page. Only a slow hash of it is kept."""
    with _database(home, database_url) as database:
        from farcall_webservice import auth
        from farcall_webservice.oauth import passwords

        auth.known_user_id(database, name)
        if stdin:
            password = sys.stdin.readline().rstrip("\r\n")
        else:
            password = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
        passwords.set_password(database, name, password)
        typer.echo(f"{name} can log in with this password. `user logout {name}` ends the logins there are.")


@user.command("logout")
def log_user_out(name: str, home: Home = None, database_url: DatabaseUrl = None) -> None:
    """End every login of a user. Tokens of `token create`, and what registered clients ask for anew, stay good."""
    with _database(home, database_url) as database:
        from farcall_webservice.oauth import issuing

        issuing.end_logins(database, name)
        typer.echo(f"{name} is logged out everywhere.")


@client.command("create")
def create_client(
    user_name: Annotated[str, typer.Argument(metavar="USER", help="Whom it acts as; made if there is none.")],
    name: Annotated[str, typer.Option(help="What people see at a login [USER].")] = "",
    redirect_uri: Annotated[
        list[str] | None, typer.Option(help="It may also log people in, and leads them here after it; repeatable.")
    ] = None,
    home: Home = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Print the id and the secret of a new client. The secret is not kept: whoever loses it needs a new client."""
    with _database(home, database_url) as database:
        from farcall_webservice import auth
        from farcall_webservice.oauth import clients

        is_new = auth.user_id_of(database, user_name) is None
        client_id, secret = clients.create(database, user_name, name=name, redirect_uris=redirect_uri or ())
        if is_new:
            typer.echo(f"There was no user {user_name}; there is one now.", err=True)
        typer.echo(f"FARCALL_CLIENT_ID={client_id}")
        typer.echo(f"FARCALL_CLIENT_SECRET={secret}")


@client.command("list")
def list_clients(home: Home = None, database_url: DatabaseUrl = None) -> None:
    """Every client, without its secret: id, since when, state, user, name."""
    with _database(home, database_url) as database:
        from farcall_webservice.oauth import clients

        for row in clients.listed(database):
            state = "active" if row.revoked_at is None else f"revoked {_day(row.revoked_at)}"
            typer.echo(f"{row.id}  {_day(row.created_at)}  {state}  {row.user_name}  {row.name}")


@client.command("revoke")
def revoke_client(
    client_id: Annotated[str, typer.Argument(metavar="ID", help="As `client list` shows it.")],
    home: Home = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Refuse a client, and every token that it was given, from now on."""
    with _database(home, database_url) as database:
        from farcall_webservice.oauth import clients

        clients.revoke(database, client_id)
        typer.echo(f"Client {client_id} is revoked, with all its tokens.")


@token.command("create")
def create_token(
    user_name: Annotated[str, typer.Argument(metavar="USER")],
    expires: Annotated[float | None, typer.Option(help="After so many days; left out: never.")] = None,
    label: Annotated[str, typer.Option(help="What it is for.")] = "",
    home: Home = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Print a new token of a user. It is not kept: whoever loses it needs a new one."""
    with _database(home, database_url) as database:
        from farcall_webservice import auth

        _, secret = auth.create_token(database, user_name, expires_days=expires, label=label)
        typer.echo(secret)


@token.command("list")
def list_tokens(home: Home = None, database_url: DatabaseUrl = None) -> None:
    """Every token, without its secret: id, since when, state, user, label."""
    with _database(home, database_url) as database:
        from farcall_webservice import auth

        for row in auth.tokens(database):
            typer.echo(f"{row.id}  {_day(row.created_at)}  {_token_state(row)}  {row.name}  {row.label}".rstrip())


@token.command("revoke")
def revoke_token(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="As `token list` shows it.")],
    home: Home = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Refuse a token from now on."""
    with _database(home, database_url) as database:
        from farcall_webservice import auth

        auth.revoke_token(database, token_id)
        typer.echo(f"Token {token_id} is revoked.")


@group.command("create")
def create_group(name: str, home: Home = None, database_url: DatabaseUrl = None) -> None:
    """Add a group and print its id, which `register_function(..., group=ID)` takes."""
    with _database(home, database_url) as database:
        from farcall_webservice import auth

        typer.echo(auth.create_group(database, name))


@group.command("add")
def add_to_group(
    group_name: Annotated[str, typer.Argument(metavar="GROUP")],
    user_name: Annotated[str, typer.Argument(metavar="USER")],
    home: Home = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Make a user a member of a group."""
    with _database(home, database_url) as database:
        from farcall_webservice import auth

        auth.add_to_group(database, group_name, user_name)
        typer.echo(f"{user_name} is in {group_name}.")


@app.command()
def version() -> None:
    """Print the version."""
    from importlib import metadata

    typer.echo(metadata.version("farcall-webservice"))


def _config(**options: Any) -> ServiceConfig:
    from farcall_webservice.config import ServiceConfig

    return ServiceConfig.from_environment(**options)


@contextmanager
def _database(home: Path | None, database_url: str | None, *, migrates: bool = False) -> Iterator[Database]:
    """The ledger's database, at this version's schema.

    SQLite's is brought there, so that a user can be added before the first `serve`. Processes of another version may
    be at work on PostgreSQL's: it is changed only where that was asked for.
    """
    with _clear_errors():
        config = _config(home=home, database_url=database_url)

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
def _clear_errors() -> Iterator[None]:
    """What the user can mend is a sentence, not a traceback."""
    try:
        yield
    except (ConfigurationError, OSError) as error:
        _end(str(error))


def _end(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    sys.exit(1)


def _token_state(row: Any) -> str:
    if row.revoked_at is not None:
        return f"revoked {_day(row.revoked_at)}"
    return "never expires" if row.expires_at is None else f"expires {_day(row.expires_at)}"


def _day(seconds: float) -> str:
    from farcall_webservice.fields import iso

    return iso(seconds)[:10]
