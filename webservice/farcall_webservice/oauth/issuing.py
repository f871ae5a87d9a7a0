"""Codes and tokens of clients: made, exchanged, renewed, revoked.

A login is one grant: the authorization code, and for each resource server an access token and, if the client asked for
it, a refresh token. A refresh token stays the same when it is used. Globus Compute's SDK and endpoint share one token
store between processes that each keep the refresh token in memory; with a new one at each use, the first process to
renew would log the others out. It dies when it is revoked, or when it has not been used for half a year.
"""

from __future__ import annotations

import math
import secrets
import time
import uuid
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, and_, insert, select, update

from farcall_webservice import auth
from farcall_webservice.database import Database
from farcall_webservice.models import AuthorizationCode, RefreshToken, Token, User
from farcall_webservice.oauth import clients, scopes
from farcall_webservice.oauth.clients import Client

REFRESH_PREFIX = "fcr_"
CODE_LIFETIME_S = 600.0
REFRESH_LIFETIME_S = 180 * 86_400.0


@dataclass(frozen=True)
class CodeRequest:
    """What a person agreed to."""

    client_id: str
    user_id: str
    redirect_uri: str
    scope: str
    nonce: str | None
    code_challenge: str | None
    by_token_id: str | None
    offline: bool


@dataclass(frozen=True)
class _Access:
    """Who may do what through whom."""

    user_id: str
    client: Client
    lifetime_s: int
    grant_id: str | None = None
    by_token_id: str | None = None
    #: At the latest.
    ends_at: float = math.inf


def keep_code(database: Database, code: str, asked: CodeRequest) -> None:
    now = time.time()
    row = {
        **vars(asked),
        "id": str(uuid.uuid4()),
        "digest": auth.digest(code),
        "created_at": now,
        "expires_at": now + CODE_LIFETIME_S,
    }
    with database.writing() as connection:
        connection.execute(insert(AuthorizationCode), row)


def find_code(database: Database, code: str, client: Client) -> Row[Any] | None:
    """The row of a code of this client that can still be used. A second use ends what the first one gave."""
    with database.reading() as connection:
        row = connection.execute(
            select(AuthorizationCode).where(
                AuthorizationCode.digest == auth.digest(code), AuthorizationCode.client_id == client.id
            )
        ).one_or_none()
    if row is not None and row.used_at is not None:
        _end_grant(database, row.id)
        return None
    return None if row is None or row.expires_at <= time.time() else row


def exchange_code(database: Database, client: Client, code: Row[Any], lifetime_s: int) -> dict[str, Any] | None:
    """The tokens for a code; None if somebody else has just used it, or what it came from has ended."""
    with database.writing() as connection:
        ends_at = _end_of(connection, client, code.by_token_id)
        used = connection.execute(
            update(AuthorizationCode)
            .where(AuthorizationCode.id == code.id, AuthorizationCode.used_at.is_(None))
            .values(used_at=time.time())
        )
        if used.rowcount == 1 and ends_at > time.time():
            access = _Access(code.user_id, client, lifetime_s, code.id, code.by_token_id, ends_at)
            return _issued(connection, access, scopes.split(code.scope), with_refresh=code.offline)
    _end_grant(database, code.id)
    return None


def tokens_of_client(database: Database, client: Client, scope: str, lifetime_s: int) -> dict[str, Any] | None:
    """Tokens with which a client acts on its own, as its user; None if it has just been revoked."""
    assert client.user_id is not None
    access = _Access(client.user_id, client, lifetime_s)
    with database.writing() as connection:
        return _issued(connection, access, scopes.split(scope)) if clients.hold(connection, client) else None


def find_refresh_token(database: Database, secret: str) -> Row[Any] | None:
    """The row of a refresh token, whatever its state."""
    with database.reading() as connection:
        return connection.execute(select(RefreshToken).where(RefreshToken.digest == auth.digest(secret))).one_or_none()


def renew(
    database: Database, client: Client, refresh_token: Row[Any], secret: str, scope: str, lifetime_s: int
) -> dict[str, Any] | None:
    """A new access token for a refresh token, with that scope or (if it is empty) all that it is good for.

    None if it has ended, or what it came from. It is answered again: Globus's SDK forgets one that an answer lacks.
    """
    with database.writing() as connection:
        ends_at = _end_of(connection, client, refresh_token.by_token_id)
        now = time.time()
        renewed = connection.execute(
            update(RefreshToken)
            .where(
                RefreshToken.id == refresh_token.id,
                RefreshToken.revoked_at.is_(None),
                RefreshToken.expires_at > now,
            )
            .values(expires_at=min(now + REFRESH_LIFETIME_S, ends_at))
        )
        if renewed.rowcount != 1 or ends_at <= now:
            return None
        access = _Access(
            refresh_token.user_id, client, lifetime_s, refresh_token.grant_id, refresh_token.by_token_id, ends_at
        )
        document = _issued(connection, access, {refresh_token.resource_server: scope or refresh_token.scope})
    return {**document, "refresh_token": secret}


def find_access_token(database: Database, secret: str) -> Row[Any] | None:
    """The row of an access token with its user's name, whatever its state."""
    with database.reading() as connection:
        found: Row[Any] | None = connection.execute(
            select(Token.__table__, User.name.label("user_name"))
            .join(User, User.id == Token.user_id)
            .where(Token.digest == auth.digest(secret))
        ).one_or_none()
    return found


def revoke_refresh_token(database: Database, refresh_token: Row[Any]) -> None:
    """And the access tokens that came of it."""
    grant_id, server = refresh_token.grant_id, refresh_token.resource_server
    with database.writing() as connection:
        auth.revoke(connection, lambda table: and_(table.grant_id == grant_id, table.resource_server == server))


def end_logins(database: Database, user_name: str) -> None:
    """Refuse every token that a client was given for the user; those of `token create` stay good."""
    user_id = auth.known_user_id(database, user_name)
    with database.writing() as connection:
        connection.execute(
            update(AuthorizationCode)
            .where(AuthorizationCode.user_id == user_id, AuthorizationCode.used_at.is_(None))
            .values(used_at=time.time())
        )
        auth.revoke(connection, lambda table: and_(table.user_id == user_id, table.client_id.is_not(None)))


def _end_of(connection: Connection, client: Client, by_token_id: str | None) -> float:
    """When a login through that client ends at the latest: with the token it was done with; 0 if that is so already.

    Neither of the two can be revoked before this transaction has ended.
    """
    if not clients.hold(connection, client):
        return 0.0
    if by_token_id is None:
        return math.inf
    query = select(Token.revoked_at, Token.expires_at).where(Token.id == by_token_id).with_for_update(read=True)
    token = connection.execute(query).one_or_none()
    if token is None or auth.has_ended(token):
        return 0.0
    return math.inf if token.expires_at is None else float(token.expires_at)


def _issued(
    connection: Connection, access: _Access, parts: dict[str, str], *, with_refresh: bool = False
) -> dict[str, Any]:
    """Make a token a resource server. The first is the answer itself; the others are in its `other_tokens`."""
    first, *others = [
        _token(connection, access, server, scope, with_refresh=with_refresh) for server, scope in parts.items()
    ]
    return {**first, "other_tokens": others}


def _token(
    connection: Connection, access: _Access, resource_server: str, scope: str, *, with_refresh: bool
) -> dict[str, Any]:
    now, secret = time.time(), auth.TOKEN_PREFIX + secrets.token_urlsafe(32)
    common = {
        "user_id": access.user_id,
        "client_id": access.client.id,
        "grant_id": access.grant_id,
        "by_token_id": access.by_token_id,
        "scope": scope,
        "resource_server": resource_server,
        "created_at": now,
    }
    row = {"id": str(uuid.uuid4()), "digest": auth.digest(secret), "label": access.client.name, **common}
    expires_at = min(now + access.lifetime_s, access.ends_at)
    connection.execute(insert(Token), {**row, "expires_at": expires_at})
    document = {
        "access_token": secret,
        "token_type": "Bearer",
        "expires_in": round(expires_at - now),
        "scope": scope,
        "resource_server": resource_server,
    }
    if with_refresh:
        document["refresh_token"] = refresh = REFRESH_PREFIX + secrets.token_urlsafe(32)
        row = {"id": str(uuid.uuid4()), "digest": auth.digest(refresh), **common}
        connection.execute(insert(RefreshToken), {**row, "expires_at": min(now + REFRESH_LIFETIME_S, access.ends_at)})
    return document


def _end_grant(database: Database, grant_id: str) -> None:
    with database.writing() as connection:
        auth.revoke(connection, lambda table: table.grant_id == grant_id)
