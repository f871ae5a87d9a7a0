"""Holding back what is submitted to an endpoint on whose queue enough waits, and letting it go in its order.

A submission that is held back is no different from any other, but that nobody publishes it. What is submitted for the
same endpoint afterwards is held back too, until nothing is.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import replace

from sqlalchemy import Connection, bindparam, exists, func, select, update

from farcall.wire import TaskState
from farcall_webservice.ledger.book import in_parts
from farcall_webservice.ledger.dispatching import Dispatching, outgoing
from farcall_webservice.ledger.tables import IDS, IS_UNFINISHED, SUBMISSIONS, TASKS, endpoint, submission, task
from farcall_webservice.ledger.values import Load, Outgoing

#: So many submissions are let go at a time, even if they have hardly any tasks.
SUBMISSIONS_AT_ONCE = 200


class Holding(Dispatching):
    """See the module."""

    def hold_back(self, submission_ids: Sequence[str]) -> None:
        """Let nobody publish these submissions until they are let go."""
        with self._database.writing() as connection:
            for some in in_parts(submission_ids):
                connection.execute(_HOLD, {"ids": some, "now": time.time()})

    def held_for(self, endpoint_ids: Collection[str] | None = None) -> set[str]:
        """Those of these endpoints for which something is held back; without any given, of all."""
        with self._database.reading() as connection:
            if endpoint_ids is None:
                return set(connection.execute(_HELD_FOR_ANY).scalars())
            found: set[str] = set()
            for some in in_parts(list(endpoint_ids)):
                found.update(connection.execute(_HELD_FOR, {"ids": some}).scalars())
            return found

    def held_since(self, task_id: str) -> float | None:
        """Since when a task is held back (seconds since 1970); None if it is not."""
        with self._database.reading() as connection:
            return connection.execute(_HELD_SINCE, {"of": task_id}).scalar_one_or_none()

    def on_queue(self, runner_id: str, *, at_most: int) -> Load:
        """What a runner has been sent and has not spoken of, counted up to so many tasks."""
        with self._database.reading() as connection:
            row = connection.execute(_ON_QUEUE, {"runner": runner_id, "limit": at_most}).one()
        return Load(int(row.tasks), int(row.size or 0))

    def _never_sent(self, connection: Connection, task_ids: Sequence[str]) -> set[str]:
        """Those of these tasks that were held back from the beginning, and are until the end of the transaction.

        What is held back later may be on the queue: published by a process that has not lived to note it.
        """
        found: set[str] = set()
        for some in in_parts(task_ids):
            found.update(connection.execute(_HELD_FROM_THE_BEGINNING, {"ids": some}).scalars())
        return found

    def let_go(self, endpoint_id: str, room: Load) -> list[Outgoing] | None:
        """The oldest held submissions that fill the room on the endpoint's queue; they are this process's to publish.

        None while any process has others to publish: those come first.
        """
        until = self._claimed_until(time.time())
        with self._database.writing() as connection:
            # One process at a time, so that what comes later does not go out earlier.
            connection.execute(_LOCK_ENDPOINT, {"endpoint": endpoint_id})
            if connection.execute(_ON_THEIR_WAY, {"endpoint": endpoint_id}).scalar_one():
                return None
            question = {"endpoint": endpoint_id, "limit": SUBMISSIONS_AT_ONCE}
            held = list(connection.execute(_OLDEST_HELD, question).scalars())
            taken = _as_many_as_fit(connection, held, room)
            for some in in_parts([batch.submission_id for batch in taken]):
                connection.execute(_LET_GO, {"ids": some, "claimant": self.claimant, "until": until})
        return [replace(batch, claimed_until=until, is_new=False) for batch in taken]


def _as_many_as_fit(connection: Connection, submission_ids: Sequence[str], room: Load) -> list[Outgoing]:
    """The first of these submissions, with their tasks: about as many as there is room for."""
    taken: list[Outgoing] = []
    tasks, size = room.tasks, room.size
    while tasks > 0 and size > 0 and len(taken) < len(submission_ids):
        sent = room.tasks - tasks
        # As many as there is room for if they are like those before; those without any task are let go too.
        step = max(1, tasks * len(taken) // sent) if sent else 1 + len(taken)
        ids = submission_ids[len(taken) : len(taken) + step]
        found = {batch.submission_id: batch for batch in outgoing(connection, ids, of_submissions=True)}
        more = [found.get(each) or Outgoing(each, "", []) for each in ids]
        taken += more
        tasks -= sum(len(batch.tasks) for batch in more)
        size -= sum(batch.characters for batch in more)
    return taken


_IS_HELD = submission.held_at.is_not(None)
_HOLD = update(SUBMISSIONS).where(submission.id.in_(IDS)).values(held_at=bindparam("now"))
_LET_GO = (
    update(SUBMISSIONS)
    .where(submission.id.in_(IDS))
    .values(held_at=None, claimed_by=bindparam("claimant"), claimed_until=bindparam("until"))
)
_HELD_FOR_ANY = select(endpoint.id).where(exists().where(_IS_HELD, submission.endpoint_id == endpoint.id))
_HELD_FOR = _HELD_FOR_ANY.where(endpoint.id.in_(IDS))
_HELD_SINCE = (
    select(submission.held_at).join(TASKS, task.submission_id == submission.id).where(task.id == bindparam("of"))
)
_HELD_FROM_THE_BEGINNING = (
    select(task.id)
    .join(SUBMISSIONS, submission.id == task.submission_id)
    .where(task.id.in_(IDS), submission.held_at == submission.created_at)
    .with_for_update(of=SUBMISSIONS, read=True)
)
#: Locked before their tasks are read, so that none is sent that is being cancelled as one that was not.
_OLDEST_HELD = (
    select(submission.id)
    .where(_IS_HELD, submission.endpoint_id == bindparam("endpoint"))
    .order_by(submission.created_at, submission.id)
    .limit(bindparam("limit"))
    .with_for_update()
)
#: Without those that were set aside. What a process leaves when it dies is published by another.
_ON_THEIR_WAY = select(
    exists()
    .where(
        submission.dispatched_at.is_(None),
        submission.held_at.is_(None),
        submission.endpoint_id == bindparam("endpoint"),
        submission.claimed_by.is_not(None),
    )
    .select_from(SUBMISSIONS)
)
_LOCK_ENDPOINT = select(endpoint.id).where(endpoint.id == bindparam("endpoint")).with_for_update()
_waiting = (
    select(task.payload_size.label("size"))
    .where(task.runner_id == bindparam("runner"), IS_UNFINISHED, task.state == TaskState.WAITING_FOR_EP.value)
    .limit(bindparam("limit"))
    .subquery()
)
_ON_QUEUE = select(func.count().label("tasks"), func.sum(_waiting.c.size).label("size")).select_from(_waiting)
