"""Passwords of users, and who logs in.

The login page takes a password or one of the user's own tokens. A token cannot be guessed, so only attempts with
passwords are counted.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import select, update
from werkzeug.security import check_password_hash, generate_password_hash

from farcall.errors import ConfigurationError
from farcall_webservice import auth
from farcall_webservice.database import Database
from farcall_webservice.models import User
from farcall_webservice.oauth import guessing, issuing

SHORTEST, LONGEST = 8, 1024

# Checking one takes 32 MB and a tenth of a second on purpose; many at once would take the machine.
_few_at_once = threading.BoundedSemaphore(2)
_in_line = threading.BoundedSemaphore(20)
#: How long one waits for one's turn.
PATIENCE_S = 2.0


@dataclass(frozen=True)
class Person:
    """Who logged in."""

    user_id: str
    #: The token that it was done with, where it was no password.
    token_id: str | None = None


class Busy(Exception):
    """More passwords are being checked than this machine can: try again."""


def set_password(database: Database, user_name: str, password: str) -> None:
    """From now on the user logs in with this password; only a slow hash of it is kept."""
    if not SHORTEST <= len(password) <= LONGEST:
        raise ConfigurationError(f"a password has {SHORTEST} to {LONGEST} characters; this one has {len(password)}")
    user_id = auth.known_user_id(database, user_name)
    hashed = generate_password_hash(password)
    with database.writing() as connection:
        connection.execute(update(User).where(User.id == user_id).values(password_hash=hashed))
    guessing.forget(database, user_name)


def log_in(database: Database, user_name: str, secret: str, address: str) -> Person | None:
    """The user whose password, or whose token of `token create`, this is. None if it is not.

    Raises :class:`Busy` and :class:`TooManyFailures`.
    """
    user_id = auth.user_id_of(database, user_name)
    token_id = user_id and _token_of(database, user_id, secret)
    if user_id is not None and token_id is not None:
        return Person(user_id, token_id)
    with _turn():
        guessing.count_attempt(database, user_name, address)
        if not _is_password_of(database, user_id, secret) or user_id is None:
            return None
    guessing.clear(database, user_name, address)
    return Person(user_id)


@contextlib.contextmanager
def _turn() -> Iterator[None]:
    """Wait for one's turn, but not for long: the threads that wait are those that answer everything else."""
    if not _in_line.acquire(blocking=False):
        raise Busy
    try:
        if not _few_at_once.acquire(timeout=PATIENCE_S):
            raise Busy
        try:
            yield
        finally:
            _few_at_once.release()
    finally:
        _in_line.release()


def _is_password_of(database: Database, user_id: str | None, secret: str) -> bool:
    with database.reading() as connection:
        known = connection.execute(select(User.password_hash).where(User.id == user_id)).scalar() if user_id else None
    return check_password_hash(known or _nobodys_hash(), secret[: LONGEST + 1]) and known is not None


def _token_of(database: Database, user_id: str, secret: str) -> str | None:
    """The id of the token, if it is one. A token that a client was given would let the client go on for ever."""
    row = issuing.find_access_token(database, secret.strip())
    usable = row is not None and row.user_id == user_id and row.client_id is None and not auth.has_ended(row)
    return row.id if row is not None and usable else None


@functools.cache
def _nobodys_hash() -> str:
    """Checked against for a user without a password, so that the time taken does not tell who has one."""
    return generate_password_hash("")
