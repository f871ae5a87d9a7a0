"""Deletes tokens, codes and failures that are long over, a few at a time."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import Connection, delete, select

from farcall_webservice.database import Database
from farcall_webservice.models import AuthorizationCode, LoginFailure, RefreshToken, Token
from farcall_webservice.oauth.passwords import FORGOTTEN_AFTER_S

#: What has expired is kept so long: a late user hears that it expired, and a second use of a code is noticed.
KEPT_AFTER_EXPIRY_S = 86_400.0
#: Rows that one sweep takes from a table, so that it holds nobody up.
AT_ONCE = 100
PAUSE_S = 60.0


class Sweeper:
    """Sweeps when somebody gets a token, and at most once a minute: without new tokens nothing gathers."""

    def __init__(self) -> None:
        self._next = 0.0

    def now_and_then(self, database: Database) -> None:
        now = time.monotonic()
        # Two threads at the same moment may both sweep, which does no harm.
        if now >= self._next:
            self._next = now + PAUSE_S
            sweep(database)


def sweep(database: Database) -> None:
    """Delete some of what is over. The tokens of `token create` are not touched."""
    now = time.time()
    over = now - KEPT_AFTER_EXPIRY_S
    with database.writing() as connection:
        _delete_some(connection, Token.id, Token.client_id.is_not(None), Token.expires_at < over)
        _delete_some(connection, RefreshToken.id, RefreshToken.expires_at < over)
        _delete_some(connection, AuthorizationCode.id, AuthorizationCode.expires_at < over)
        _delete_some(connection, LoginFailure.subject, LoginFailure.last_at < now - FORGOTTEN_AFTER_S)


def _delete_some(connection: Connection, key: Any, *conditions: Any) -> None:
    # Two processes that sweep at the same time take different rows.
    some = select(key).where(*conditions).limit(AT_ONCE).with_for_update(skip_locked=True)
    connection.execute(delete(key.class_).where(key.in_(some)))
