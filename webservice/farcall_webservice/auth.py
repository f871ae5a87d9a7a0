"""Who is calling: users, groups, and the bearer tokens that stand for them."""

from __future__ import annotations

import hashlib
import secrets
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, bindparam, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from farcall.errors import ConfigurationError
from farcall_webservice.database import Database
from farcall_webservice.errors import ApiError
from farcall_webservice.fields import iso, uuid_text
from farcall_webservice.models import Group, Membership, RefreshToken, Token, User

#: What a token of a client has to be good for to open this interface; the name is that of Globus Compute.
COMPUTE_SCOPE = "https://auth.globus.org/scopes/facd7ccc-c5f4-42aa-916b-a0e270e2c2a9/all"

#: Tells people and secret scanners what they have found.
TOKEN_PREFIX = "fc_"
SECONDS_PER_DAY = 86_400.0


@dataclass(frozen=True)
class Caller:
    """The user behind a request."""

    id: str
    name: str
    #: The ids of the groups that the user is in.
    groups: frozenset[str]


def check(database: Database, authorization: str | None, scope: str = COMPUTE_SCOPE) -> Caller:
    """The user that an ``Authorization`` header stands for. Raises :class:`ApiError` (401).

    A token that was given to a client opens only what its scope names (else 403); one of `token create` opens all.
    """
    scheme, _, secret = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise _unauthenticated(
            "USER_UNAUTHENTICATED",
            "This needs a token: send it in the header Authorization: Bearer <token>",
            error=None,
        )
    with database.reading() as connection:
        rows = connection.execute(_OWNER_OF_TOKEN, {"digest": digest(secret.strip())}).all()
    if not rows:
        raise _unauthenticated("INVALID_AUTH_TOKEN", "The service does not know this token: log in again")
    first = rows[0]
    if has_ended(first):
        how = (
            f"expired at {iso(first.expires_at)}"
            if first.revoked_at is None
            else f"was revoked at {iso(first.revoked_at)}"
        )
        raise _unauthenticated("INVALID_AUTH_TOKEN", f"This token {how}: log in again")
    if first.scope is not None and scope not in first.scope.split():
        raise ApiError(
            403,
            "INSUFFICIENT_AUTH_SCOPE",
            f"This token is good for the scope {first.scope}; this needs {scope}: ask for that one when you log in",
            {"WWW-Authenticate": f'Bearer realm="farcall", error="insufficient_scope", scope="{scope}"'},
        )
    return Caller(first.id, first.name, frozenset(row.group_id for row in rows if row.group_id is not None))


#: Made once: every request runs it, and putting it together costs more than running it.
_OWNER_OF_TOKEN = (
    select(User.id, User.name, Token.expires_at, Token.revoked_at, Token.scope, Membership.group_id)
    .join(Token, Token.user_id == User.id)
    .outerjoin(Membership, Membership.user_id == User.id)
    .where(Token.digest == bindparam("digest"))
)


def create_user(database: Database, name: str) -> str:
    """Add a user and return the id. Raises :class:`ConfigurationError` if the name is taken."""
    return _add_named(database, User, name, "user")


def user_id_of(database: Database, name: str) -> str | None:
    """The id of the user of that name, if there is one."""
    # PostgreSQL would stumble over the character NUL.
    if not name.isprintable():
        return None
    with database.reading() as connection:
        return connection.execute(select(User.id).where(User.name == name)).scalar_one_or_none()


def known_user_id(database: Database, name: str) -> str:
    """As :func:`user_id_of`. Raises :class:`ConfigurationError` if there is no such user."""
    user_id = user_id_of(database, name)
    if user_id is None:
        raise ConfigurationError(f"there is no user {name!r}")
    return user_id


def create_token(
    database: Database, user_name: str, *, expires_days: float | None = None, label: str = ""
) -> tuple[str, str]:
    """A new token of a user: its id and the secret, which is not kept and cannot be shown again."""
    if expires_days is not None and not 0 < expires_days <= 36_500:
        raise ConfigurationError(
            f"a token cannot expire after {expires_days:g} days: name more than 0, and at most 36500"
        )
    now = time.time()
    token_id, secret = str(uuid.uuid4()), TOKEN_PREFIX + secrets.token_urlsafe(32)
    with database.writing() as connection:
        user_id = _id_of(connection.execute(select(User.id).where(User.name == user_name)).first(), "user", user_name)
        connection.execute(
            insert(Token),
            {
                "id": token_id,
                "user_id": user_id,
                "digest": digest(secret),
                "label": label[:255],
                "created_at": now,
                "expires_at": None if expires_days is None else now + expires_days * SECONDS_PER_DAY,
            },
        )
    return token_id, secret


def revoke_token(database: Database, token_id: str) -> None:
    """From now on the token is refused, and whatever a login by it gave. Doing it twice is no error."""
    with database.writing() as connection:
        # PostgreSQL would stumble over a text that is no UUID at all.
        wanted = uuid_text(token_id)
        # Locked first: a login by it that is under way ends before this, or hears of it.
        known = wanted and connection.execute(select(Token.id).where(Token.id == wanted).with_for_update()).first()
        _id_of(known or None, "token", token_id)
        revoke(connection, lambda table: or_(table.id == wanted, table.by_token_id == wanted))


def revoke(connection: Connection, which: Callable[[type[Token] | type[RefreshToken]], ColumnElement[bool]]) -> None:
    """Refuse these refresh and access tokens from now on.

    Refresh tokens first: whoever is about to use one has locked its row, and what came of it is there to be seen when
    the access tokens are looked for.
    """
    now = time.time()
    for table in (RefreshToken, Token):
        connection.execute(update(table).where(which(table), table.revoked_at.is_(None)).values(revoked_at=now))


def has_ended(token: Any) -> bool:
    """Whether the row of an access or refresh token says that it was revoked or has expired."""
    return token.revoked_at is not None or (token.expires_at is not None and token.expires_at <= time.time())


def create_group(database: Database, name: str) -> str:
    """Add a group and return the id. Raises :class:`ConfigurationError` if the name is taken."""
    return _add_named(database, Group, name, "group")


def add_to_group(database: Database, group_name: str, user_name: str) -> None:
    """Make a user a member of a group. Doing it twice is no error."""
    with database.writing() as connection:
        group = connection.execute(select(Group.id).where(Group.name == group_name)).first()
        user = connection.execute(select(User.id).where(User.name == user_name)).first()
        member = {"group_id": _id_of(group, "group", group_name), "user_id": _id_of(user, "user", user_name)}
        known = connection.execute(select(Membership.user_id).filter_by(**member)).first()
        if known is None:
            connection.execute(insert(Membership), member)


def users(database: Database) -> list[Row[Any]]:
    """``id``, ``name`` and ``created_at`` of every user, by name."""
    with database.reading() as connection:
        return list(connection.execute(select(User.id, User.name, User.created_at).order_by(User.name)))


def tokens(database: Database) -> list[Row[Any]]:
    """Every token of `token create` with its user's name, oldest first."""
    with database.reading() as connection:
        return list(
            connection.execute(
                select(Token.id, User.name, Token.label, Token.created_at, Token.expires_at, Token.revoked_at)
                .join(User, User.id == Token.user_id)
                .where(Token.client_id.is_(None))
                .order_by(Token.created_at)
            )
        )


def groups_of(database: Database, caller: Caller) -> list[Row[Any]]:
    """``id`` and ``name`` of the groups that the caller is in, by name."""
    with database.reading() as connection:
        return list(
            connection.execute(select(Group.id, Group.name).where(Group.id.in_(caller.groups)).order_by(Group.name))
        )


def check_name(name: str, what: str) -> None:
    """Raise :class:`ConfigurationError` if this cannot be a name."""
    # With blanks around it nobody could log in by it: the login page takes them for slips.
    if not 1 <= len(name) <= 255 or not name.isprintable() or name != name.strip():
        raise ConfigurationError(
            f"{name!r} cannot name a {what}: 1 to 255 printable characters are needed, without blanks around them"
        )


def digest(secret: str) -> str:
    """What is kept of a random secret."""
    # A slow hash protects passwords, which can be guessed. 256 random bits cannot, so one fast round is enough.
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _add_named(database: Database, table: type[User] | type[Group], name: str, what: str) -> str:
    check_name(name, what)
    new_id = str(uuid.uuid4())
    try:
        with database.writing() as connection:
            connection.execute(insert(table), {"id": new_id, "name": name, "created_at": time.time()})
    except IntegrityError as error:
        raise ConfigurationError(f"there is a {what} {name!r} already") from error
    return new_id


def _id_of(row: Row[Any] | None, what: str, name: str) -> str:
    if row is None:
        raise ConfigurationError(f"there is no {what} {name!r}")
    return str(row.id)


def _unauthenticated(code: str, message: str, error: str | None = "invalid_token") -> ApiError:
    challenge = 'Bearer realm="farcall"' + (f', error="{error}"' if error else "")
    return ApiError(401, code, message, {"WWW-Authenticate": challenge})
