"""Whether somebody who sends heartbeats is there: the one rule for endpoints and what is started through them."""

from __future__ import annotations

#: Online is whose last heartbeat is younger than this many of its periods.
MISSED_HEARTBEATS = 3.0


def is_recent(last_heartbeat_at: float | None, period: float | None, now: float) -> bool:
    """Whether the last heartbeat is young enough. A period of 0 was a goodbye.

    >>> is_recent(100.0, 30.0, now=189.0), is_recent(100.0, 30.0, now=190.0)
    (True, False)
    >>> is_recent(100.0, 0.0, now=101.0), is_recent(None, 30.0, now=101.0)
    (False, False)
    """
    if last_heartbeat_at is None or period is None or period <= 0:
        return False
    return now - last_heartbeat_at < MISSED_HEARTBEATS * period
