"""The commands of `farcall-webservice` that say who is let in: user, token, client, group."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from farcall_webservice.cli_common import DatabaseUrl, Home, open_database

user = typer.Typer(help="Who may hold tokens.", no_args_is_help=True)
token = typer.Typer(help="Bearer tokens.", no_args_is_help=True)
group = typer.Typer(help="People who share functions with one another.", no_args_is_help=True)
client = typer.Typer(help="Programs that log in by themselves, or log people in (OAuth 2).", no_args_is_help=True)


@user.command("add")
def add_user(name: str, home: Home = None, database_url: DatabaseUrl = None) -> None:
    """Add a user; `token create` then makes a token for them."""
    with open_database(home, database_url) as database:
        from farcall_webservice import auth

        typer.echo(auth.create_user(database, name))


@user.command("list")
def list_users(home: Home = None, database_url: DatabaseUrl = None) -> None:
    """Every user: id, since when, name."""
    with open_database(home, database_url) as database:
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
    with open_database(home, database_url) as database:
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
    with open_database(home, database_url) as database:
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
    with open_database(home, database_url) as database:
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
    with open_database(home, database_url) as database:
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
    with open_database(home, database_url) as database:
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
    with open_database(home, database_url) as database:
        from farcall_webservice import auth

        _, secret = auth.create_token(database, user_name, expires_days=expires, label=label)
        typer.echo(secret)


@token.command("list")
def list_tokens(home: Home = None, database_url: DatabaseUrl = None) -> None:
    """Every token, without its secret: id, since when, state, user, label."""
    with open_database(home, database_url) as database:
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
    with open_database(home, database_url) as database:
        from farcall_webservice import auth

        auth.revoke_token(database, token_id)
        typer.echo(f"Token {token_id} is revoked.")


@group.command("create")
def create_group(name: str, home: Home = None, database_url: DatabaseUrl = None) -> None:
    """Add a group and print its id, which `register_function(..., group=ID)` takes."""
    with open_database(home, database_url) as database:
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
    with open_database(home, database_url) as database:
        from farcall_webservice import auth

        auth.add_to_group(database, group_name, user_name)
        typer.echo(f"{user_name} is in {group_name}.")


def _token_state(row: Any) -> str:
    if row.revoked_at is not None:
        return f"revoked {_day(row.revoked_at)}"
    return "never expires" if row.expires_at is None else f"expires {_day(row.expires_at)}"


def _day(seconds: float) -> str:
    from farcall_webservice.fields import iso

    return iso(seconds)[:10]
