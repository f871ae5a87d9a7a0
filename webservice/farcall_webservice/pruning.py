"""Forgets queues of results that the broker has forgotten too, so that looking for results to forward stays cheap."""

from __future__ import annotations

import time

from sqlalchemy import delete, exists, or_, select

from farcall_webservice.database import Database
from farcall_webservice.models import ResultQueue, Task
from farcall_webservice.queues import GROUP_QUEUE_EXPIRES_S

#: Rows that are deleted in one transaction, so that it holds nobody up; more than are made between two of them.
AT_ONCE = 100
PAUSE_S = 60.0


class Pruning:
    """Prunes when queues are made, and at most once a minute: without new ones nothing gathers."""

    def __init__(self) -> None:
        self._next = 0.0

    def now_and_then(self, database: Database) -> None:
        now = time.monotonic()
        # Two threads at the same moment may both prune, which does no harm.
        if now >= self._next:
            self._next = now + PAUSE_S
            prune_result_queues(database)


def prune_result_queues(database: Database) -> int:
    """Delete some of the rows whose groups have had neither tasks to end nor results for as long as a queue is kept.

    Who asks for such a group's queue gets one again.
    """
    since = time.time() - GROUP_QUEUE_EXPIRES_S
    is_used = exists().where(
        Task.task_group_id == ResultQueue.task_group_id, or_(Task.completed_at.is_(None), Task.completed_at > since)
    )
    unused = (
        select(ResultQueue.task_group_id)
        .where(ResultQueue.created_at < since, ~is_used)
        .order_by(ResultQueue.created_at)
        .limit(AT_ONCE)
        .with_for_update(skip_locked=True)
    )
    with database.writing() as connection:
        return connection.execute(delete(ResultQueue).where(ResultQueue.task_group_id.in_(unused))).rowcount
