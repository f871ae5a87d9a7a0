"""What all parts of the ledger have in common: the database, and how tasks are locked that are about to change."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, Row, select

from farcall_webservice.database import Database
from farcall_webservice.ledger.tables import IDS, IS_UNFINISHED, task

log = logging.getLogger(__name__)

#: How many ids go into one IN (...): SQLite takes 32,766 parameters, and long lists make long plans.
IDS_PER_QUERY = 900

#: A process has so long to publish what it has committed before others may do it in its stead.
CLAIM_S = 30.0

MAX_LOG_CHARACTERS = 256 * 1024


class Book:
    """One database, as one process sees it. What it writes, its dispatcher publishes."""

    def __init__(self, database: Database, *, max_log_characters: int = MAX_LOG_CHARACTERS) -> None:
        self._database = database
        #: Of each stream of a task the last so many characters are kept.
        self.max_log_characters = max_log_characters
        #: Under which name this process claims what it is to publish.
        self.claimant = str(uuid.uuid4())
        #: A group never changes hands, and is asked about with every submit and every wait.
        self._group_owners: dict[str, str] = {}

    def _claimed_until(self, now: float) -> float:
        return now + CLAIM_S

    def _unfinished(self, connection: Connection, task_ids: Iterable[str], runner_id: str | None) -> list[Row[Any]]:
        """Those of these tasks that have not ended, locked until the end of the transaction."""
        query = _UNFINISHED if self._database.is_sqlite else _UNFINISHED_LOCKED
        rows: list[Row[Any]] = []
        for some in in_parts(sorted(task_ids)):
            rows += connection.execute(query, {"ids": some})
        return rows if runner_id is None else [row for row in rows if row.runner_id == runner_id]


def in_parts(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), IDS_PER_QUERY):
        yield ids[start : start + IDS_PER_QUERY]


_UNFINISHED = select(task.id, task.task_group_id, task.runner_id, task.state).where(task.id.in_(IDS), IS_UNFINISHED)
#: For databases in which several may write at a time; always in the same order, so that none waits in a circle.
_UNFINISHED_LOCKED = _UNFINISHED.order_by(task.id).with_for_update()
