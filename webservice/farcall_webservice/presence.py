"""Which processes of a service live: each holds a lock of PostgreSQL's, which is gone with its connection.

A process that is killed leaves what it was about to publish. Others need not wait until its claim is over if they can
see that it has gone.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, text

#: A connection that breaks is made anew: so long a process may live that does not show it.
MAY_BE_UNSEEN_S = 3.0

_SHOW = "SELECT pg_advisory_lock_shared(%s)"
_SHOWN = text(
    "SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 "
    "AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


def show(driver: Any, claimant: str) -> None:
    """Show, for as long as this connection (psycopg's) is there, that who claims under this name lives."""
    driver.execute(_SHOW, [_key(claimant)])


def absent(connection: Connection, claimants: Collection[str]) -> list[str]:
    """Those of these that do not show that they live."""
    if not claimants:
        return []
    shown = set(connection.execute(_SHOWN).scalars())
    return [each for each in claimants if _key(each) not in shown]


def _key(claimant: str) -> int:
    """Positive, and the same in every process."""
    return uuid.UUID(claimant).int >> 65
