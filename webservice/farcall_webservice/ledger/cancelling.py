"""Cancelling: a task that has not ended ends at once, and its agent is told for as long as it has not said it knows.

Whoever locks a task's row first decides how it ends: the one who cancels, or the collector with its result. What the
agent has to be told stands in `cancellations`, written in the same transaction. It cannot be known whether a task has
reached its agent already, or is on its way; so every agent that can be told is told of every such task, but of those
that have been held back from the beginning.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, exists, insert, select

from farcall.wire import TaskState
from farcall_webservice import foreign
from farcall_webservice.ledger.book import in_parts
from farcall_webservice.ledger.ending import Ending, ending
from farcall_webservice.ledger.holding import Holding
from farcall_webservice.ledger.tables import CANCELLATIONS, IDS, cancellation, endpoint, group, task
from farcall_webservice.ledger.values import Cancelled

#: So many tasks are cancelled in one transaction: others wait for no more than that.
CANCELLED_AT_ONCE = 500
LOOKED_FOR_AT_ONCE = 50_000

CODE = "Cancelled"
REASON = "The task was cancelled by its owner"


class Cancelling(Holding, Ending):
    """See the module."""

    def cancel(self, task_ids: Sequence[str]) -> Cancelled:
        """End those of these tasks that have not ended as cancelled. Doing it twice is no error."""
        cancelled = Cancelled()
        for start in range(0, len(task_ids), CANCELLED_AT_ONCE):
            with self._database.writing() as connection:
                rows = self._unfinished(connection, task_ids[start : start + CANCELLED_AT_ONCE], None)
                self._end_from_here(connection, rows, TaskState.CANCELLED, REASON, CODE, cancelled)
        return cancelled

    def cancel_group(self, task_group_id: str) -> Iterator[Cancelled]:
        """Cancel all unfinished tasks of a group, some at a time; what is yielded is committed."""
        # More at a time than are cancelled at once: what has ended lies in the way of whoever looks for what has not.
        question = {"group": task_group_id, "limit": LOOKED_FOR_AT_ONCE}
        while True:
            with self._database.reading() as connection:
                task_ids = list(connection.execute(_UNFINISHED_OF_GROUP, question).scalars())
            if not task_ids:
                return
            for start in range(0, len(task_ids), CANCELLED_AT_ONCE):
                yield self.cancel(task_ids[start : start + CANCELLED_AT_ONCE])

    def _end_from_here(
        self,
        connection: Connection,
        rows: Sequence[Row[Any]],
        state: TaskState,
        reason: str,
        code: str,
        into: Cancelled,
    ) -> None:
        """End locked tasks that their agents may have, and leave word for those."""
        if not rows:
            return
        now = time.time()
        how = ending(state, now, reason, code=code)
        into.groups |= self._end_alike(connection, rows, how)
        into.task_ids += [row.id for row in rows]
        unsent = self._never_sent(connection, [row.id for row in rows])
        agents = _can_be_told(connection, {row.runner_id for row in rows if row.id not in unsent})
        into.agents |= agents
        words = [
            {"task_id": row.id, "runner_id": row.runner_id, "created_at": now}
            for row in rows
            if row.runner_id in agents and row.id not in unsent
        ]
        if words:
            connection.execute(_LEAVE_WORD, words)

    def results_of_group(self, task_group_id: str) -> int:
        """How many tasks of a group have ended, ever."""
        with self._database.reading() as connection:
            return int(connection.execute(_RESULTS_OF_GROUP, {"group": task_group_id}).scalar_one())

    def cancellations(self, runner_id: str, *, limit: int) -> list[str]:
        """The tasks of an agent that were cancelled, and that it has not confirmed; oldest first."""
        with self._database.reading() as connection:
            return list(connection.execute(_WORDS, {"runner": runner_id, "limit": limit}).scalars())

    def confirm_cancellations(self, runner_id: str, task_ids: Iterable[str]) -> int:
        """The agent knows that these tasks are cancelled. Returns how many it had not confirmed before."""
        confirmed = 0
        for some in in_parts(sorted(set(task_ids))):
            with self._database.writing() as connection:
                confirmed += connection.execute(_FORGET_WORDS, {"runner": runner_id, "ids": some}).rowcount
        return confirmed

    def has_unconfirmed(self, runner_id: str, *, older_than_s: float) -> bool:
        """Whether an agent has not confirmed what was cancelled so long ago."""
        question = {"runner": runner_id, "before": time.time() - older_than_s}
        with self._database.reading() as connection:
            return bool(connection.execute(_HAS_OLD_WORDS, question).scalar_one())


def _can_be_told(connection: Connection, runner_ids: Iterable[str]) -> set[str]:
    rows = connection.execute(_RUNNERS, {"ids": sorted(runner_ids)})
    return {row.id for row in rows if foreign.takes_batches(row.details)}


#: A task has a number among the results of its group exactly when it has ended.
_UNFINISHED_OF_GROUP = (
    select(task.id).where(task.task_group_id == bindparam("group"), task.result_seq.is_(None)).limit(bindparam("limit"))
)
_RUNNERS = select(endpoint.id, endpoint.details).where(endpoint.id.in_(IDS))
_LEAVE_WORD = insert(CANCELLATIONS)
_OF_RUNNER = cancellation.runner_id == bindparam("runner")
_WORDS = select(cancellation.task_id).where(_OF_RUNNER).order_by(cancellation.created_at).limit(bindparam("limit"))
_FORGET_WORDS = delete(CANCELLATIONS).where(_OF_RUNNER, cancellation.task_id.in_(IDS))
_HAS_OLD_WORDS = select(
    exists().where(_OF_RUNNER, cancellation.created_at < bindparam("before")).select_from(CANCELLATIONS)
)
_RESULTS_OF_GROUP = select(group.last_result_seq).where(group.id == bindparam("group"))
