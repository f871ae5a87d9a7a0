"""Passwords of users, and how often one may guess.

The login page takes a password or one of the user's own tokens. A token cannot be guessed, so only passwords are
limited: after some failures each further one makes the next wait twice as long. That is kept in the database, because
several web processes answer; and an attempt is counted before it is checked, so that many at once gain nothing.
"""

from __future__ import annotations

import functools
import hashlib
import threading
import time
from dataclasses import dataclass

from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from werkzeug.security import check_password_hash, generate_password_hash

from farcall.errors import ConfigurationError
from farcall_webservice import auth
from farcall_webservice.database import Database
from farcall_webservice.models import LoginFailure, User
from farcall_webservice.oauth import issuing

#: So many attempts cost no waiting.
FREE_ATTEMPTS = 5
FIRST_WAIT_S, LONGEST_WAIT_S = 2.0, 900.0
#: Without another failure for so long, the count begins anew.
FORGOTTEN_AFTER_S = 24 * 3600.0
SHORTEST, LONGEST = 8, 1024

# Checking one takes 32 MB and a tenth of a second on purpose; many at once would take the machine.
_few_at_once = threading.BoundedSemaphore(2)


@dataclass(frozen=True)
class Person:
    """Who logged in."""

    user_id: str
    #: The token that it was done with, where it was no password.
    token_id: str | None = None


class TooManyFailures(Exception):
    """The password cannot be tried for so many seconds."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"too many failed attempts: wait {wait_s:.0f} s")
        self.wait_s = wait_s


def set_password(database: Database, user_name: str, password: str) -> None:
    """From now on the user logs in with this password; only a slow hash of it is kept."""
    if not SHORTEST <= len(password) <= LONGEST:
        raise ConfigurationError(f"a password has {SHORTEST} to {LONGEST} characters; this one has {len(password)}")
    user_id = auth.known_user_id(database, user_name)
    hashed = generate_password_hash(password)
    with database.writing() as connection:
        connection.execute(update(User).where(User.id == user_id).values(password_hash=hashed))
    _forget(database, _subject(user_name))


def log_in(database: Database, user_name: str, secret: str) -> Person | None:
    """The user whose password, or whose token of `token create`, this is. None if it is not.

    Raises :class:`TooManyFailures`.
    """
    user_id = auth.user_id_of(database, user_name)
    token_id = user_id and _token_of(database, user_id, secret)
    if user_id is not None and token_id is not None:
        return Person(user_id, token_id)
    subject = _subject(user_name)
    wait_s = _count_attempt(database, subject)
    if wait_s > 0:
        raise TooManyFailures(wait_s)
    with database.reading() as connection:
        known = connection.execute(select(User.password_hash).where(User.id == user_id)).scalar() if user_id else None
    with _few_at_once:
        is_right = check_password_hash(known or _nobodys_hash(), secret[: LONGEST + 1])
    if not is_right or known is None or user_id is None:
        return None
    _forget(database, subject)
    return Person(user_id)


def wait_after(failures: int) -> float:
    """How long a password cannot be tried after so many failures."""
    beyond = failures - FREE_ATTEMPTS
    # The exponent is bounded, because somebody may go on for years.
    return 0.0 if beyond < 0 else min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(beyond, 20))


def _token_of(database: Database, user_id: str, secret: str) -> str | None:
    """The id of the token, if it is one. A token that a client was given would let the client go on for ever."""
    row = issuing.find_access_token(database, secret.strip())
    usable = row is not None and row.user_id == user_id and row.client_id is None and not auth.has_ended(row)
    return row.id if row is not None and usable else None


def _count_attempt(database: Database, subject: str) -> float:
    """Seconds to wait before the next attempt; 0 = this one may go ahead, and counts as failed until it succeeds."""
    try:
        return _try_to_count(database, subject)
    except IntegrityError:
        # Another process made the row at the same moment.
        return _try_to_count(database, subject)


def _try_to_count(database: Database, subject: str) -> float:
    of_subject = LoginFailure.subject == subject
    with database.writing() as connection:
        row = connection.execute(select(LoginFailure).where(of_subject).with_for_update()).one_or_none()
        # Now, and not before the wait for the row.
        now = time.time()
        if row is not None and row.blocked_until > now:
            return float(row.blocked_until - now)
        failures = 1 if row is None or row.last_at < now - FORGOTTEN_AFTER_S else row.failures + 1
        wait_s = wait_after(failures)
        values = {"failures": failures, "last_at": now, "blocked_until": wait_s and now + wait_s}
        if row is None:
            connection.execute(insert(LoginFailure), {"subject": subject, **values})
        else:
            connection.execute(update(LoginFailure).where(of_subject).values(values))
    return 0.0


def _forget(database: Database, subject: str) -> None:
    with database.writing() as connection:
        connection.execute(delete(LoginFailure).where(LoginFailure.subject == subject))


@functools.cache
def _nobodys_hash() -> str:
    """Checked against for a user without a password, so that the time taken does not tell who has one."""
    return generate_password_hash("")


def _subject(user_name: str) -> str:
    return hashlib.sha256(user_name.encode("utf-8", "surrogatepass")).hexdigest()
