"""How often passwords may be guessed.

There are two limits: for a name from an address, and, looser, for an address whatever the names. So nobody keeps a user
out by guessing from elsewhere. After some failures each further one makes the next wait twice as long. That is kept in
the database, because several web processes answer; and an attempt is counted before the password is checked, so that
many at once gain nothing.
"""

from __future__ import annotations

import hashlib
import ipaddress
import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, update
from sqlalchemy.dialects import postgresql, sqlite

from farcall_webservice.database import Database
from farcall_webservice.models import LoginFailure

FIRST_WAIT_S = 2.0


@dataclass(frozen=True)
class Limit:
    """When failures cost time."""

    #: So many attempts cost no waiting.
    free_attempts: int
    longest_wait_s: float
    #: Without another failure for so long, the count begins anew.
    forgotten_after_s: float

    def wait_after(self, failures: int) -> float:
        """How long a password cannot be tried after so many failures."""
        beyond = failures - self.free_attempts
        # The exponent is bounded, because somebody may go on for years.
        return 0.0 if beyond < 0 else min(self.longest_wait_s, FIRST_WAIT_S * 2.0 ** min(beyond, 20))


OF_NAME = Limit(5, 900.0, 24 * 3600.0)
#: Many people may share an address, and their slips should not keep the others waiting for long.
OF_ADDRESS = Limit(50, 30.0, 3600.0)


class TooManyFailures(Exception):
    """The password cannot be tried for so many seconds."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"too many failed attempts: wait {wait_s:.0f} s")
        self.wait_s = wait_s


def count_attempt(database: Database, name: str, address: str) -> None:
    """Count an attempt as failed until it succeeds. Raises :class:`TooManyFailures` if it cannot be made now."""
    with database.writing() as connection:
        # Everybody locks the two rows in this order.
        counts = [
            (limit, _locked(database, connection, subject))
            for limit, subject in ((OF_ADDRESS, _subject(None, address)), (OF_NAME, _subject(name, address)))
        ]
        # Now, and not before the wait for the rows.
        now = time.time()
        wait_s = max(row.blocked_until for _, row in counts) - now
        if wait_s > 0:
            raise TooManyFailures(wait_s)
        for limit, row in counts:
            failures = 1 if row.last_at < now - limit.forgotten_after_s else row.failures + 1
            next_wait_s = limit.wait_after(failures)
            values = {"failures": failures, "last_at": now, "blocked_until": next_wait_s and now + next_wait_s}
            connection.execute(update(LoginFailure).where(LoginFailure.subject == row.subject).values(values))


def clear(database: Database, name: str, address: str) -> None:
    """The attempt has succeeded: forget the failures of the name from there, and this one of the address.

    Its others stay: otherwise whoever has a password here could guess those of others between logins of their own.
    """
    with database.writing() as connection:
        connection.execute(
            update(LoginFailure)
            .where(LoginFailure.subject == _subject(None, address), LoginFailure.failures > 0)
            .values(failures=LoginFailure.failures - 1, blocked_until=0.0)
        )
        connection.execute(delete(LoginFailure).where(LoginFailure.subject == _subject(name, address)))


def forget(database: Database, name: str) -> None:
    """Forget the failures of a name from everywhere."""
    with database.writing() as connection:
        connection.execute(delete(LoginFailure).where(LoginFailure.subject.startswith(_half(name))))


def _locked(database: Database, connection: Connection, subject: str) -> Row[Any]:
    """The subject's row, made if there is none. Nobody else changes it before this transaction has ended."""
    insert = sqlite.insert if database.is_sqlite else postgresql.insert
    statement = insert(LoginFailure).values(subject=subject, failures=0, last_at=0.0, blocked_until=0.0)
    # An update that changes nothing locks the row that is there, and answers it.
    upsert = statement.on_conflict_do_update(index_elements=["subject"], set_={"subject": subject})
    return connection.execute(upsert.returning(LoginFailure.__table__)).one()


def _subject(name: str | None, address: str) -> str:
    return ("" if name is None else _half(name)) + _half(_network(address))


def _half(text: str) -> str:
    """Half of what a subject can hold; 128 bits tell any two apart."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _network(address: str) -> str:
    """The address, or of IPv6 its network, because one machine can have all addresses of that.

    >>> [_network(each) for each in ("192.0.2.7", "::ffff:192.0.2.7", "2001:db8::7", "2001:db8::8", "a socket")]
    ['192.0.2.7', '192.0.2.7', '2001:db8::/64', '2001:db8::/64', 'a socket']
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return str(parsed)
    return str(parsed.ipv4_mapped or ipaddress.IPv6Network((int(parsed), 64), strict=False))
