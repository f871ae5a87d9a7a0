"""Deletes tokens, codes and failures that are long over, a few at a time."""

from __future__ import annotations

import logging
import time

from sqlalchemy import delete, select
from sqlalchemy.exc import SQLAlchemyError

from farcall_webservice.database import Database, cause_of
from farcall_webservice.models import AuthorizationCode, LoginFailure, RefreshToken, Token
from farcall_webservice.oauth.guessing import OF_NAME

log = logging.getLogger(__name__)

#: What has expired is kept so long: a late user hears that it expired, and a second use of a code is noticed.
KEPT_AFTER_EXPIRY_S = 86_400.0
#: Rows that are taken from a table in one transaction, so that it holds nobody up, and how often that is repeated: more
#: than can gather in the pause.
AT_ONCE, ROUNDS = 100, 50
PAUSE_S = 60.0


class Sweeper:
    """Sweeps when somebody gets a token or fails to log in, and at most once a minute: without them nothing gathers."""

    def __init__(self) -> None:
        self._next = 0.0

    def now_and_then(self, database: Database) -> None:
        now = time.monotonic()
        # Two threads at the same moment may both sweep, which does no harm.
        if now >= self._next:
            self._next = now + PAUSE_S
            try:
                sweep(database)
            except SQLAlchemyError as error:
                # Whoever asked for something else has got it, and there will be another sweep.
                log.warning("what is long over could not be deleted: %s", cause_of(error))


def sweep(database: Database) -> None:
    """Delete some of what is over. The tokens of `token create` are not touched."""
    now = time.time()
    over = now - KEPT_AFTER_EXPIRY_S
    for key, *conditions in (
        (Token.id, Token.client_id.is_not(None), Token.expires_at < over),
        (RefreshToken.id, RefreshToken.expires_at < over),
        (AuthorizationCode.id, AuthorizationCode.expires_at < over),
        (LoginFailure.subject, LoginFailure.last_at < now - OF_NAME.forgotten_after_s),
    ):
        # Two processes that sweep at the same time take different rows.
        some = select(key).where(*conditions).limit(AT_ONCE).with_for_update(skip_locked=True)
        for _ in range(ROUNDS):
            with database.writing() as connection:
                deleted = connection.execute(delete(key.class_).where(key.in_(some)))
            if deleted.rowcount < AT_ONCE:
                break
