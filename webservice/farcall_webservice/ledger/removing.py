"""What is over: tasks that nothing was heard of, results that were kept for long enough, and what belonged to them.

Each call does a bounded part in one transaction and says how much it was, so that whoever sweeps can let others through
in between. Several may sweep at once: in PostgreSQL each takes what no other one holds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from sqlalchemy import Connection, bindparam, delete, exists, or_, select
from sqlalchemy.sql import Executable

from farcall.wire import TaskState
from farcall_webservice.ledger.cancelling import Cancelling
from farcall_webservice.ledger.tables import (
    CANCELLATIONS,
    ENDPOINTS,
    GROUPS,
    IDS,
    IS_UNFINISHED,
    OUTPUT,
    SUBMISSIONS,
    TASKS,
    cancellation,
    endpoint,
    group,
    output,
    submission,
    task,
)
from farcall_webservice.ledger.values import Cancelled

#: So many rows are looked at in one transaction.
AT_ONCE = 500

EXPIRED = "TASK_EXPIRED"


class Removing(Cancelling):
    """See the module."""

    def expire(self, lifetime_s: float, *, now: float | None = None) -> Cancelled:
        """Fail some of the tasks that nothing was heard of for so long. Their agents are told not to run them.

        A running task counts as heard of for as long as its endpoint is.
        """
        expired = Cancelled()
        reason = (
            f"Nothing has been heard of this task for {days(lifetime_s)}, so it was given up: see whether its endpoint "
            "is online, and submit it again"
        )
        with self._database.writing() as connection:
            before = (time.time() if now is None else now) - lifetime_s
            rows = connection.execute(_INACTIVE, {"before": before, "limit": AT_ONCE}).all()
            self._end_from_here(connection, rows, TaskState.FAILED, reason, EXPIRED, expired)
        return expired

    def remove_tasks(self, ended_before: float) -> int:
        """Remove some of the tasks that ended before a time, with their results and what they printed."""
        with self._database.writing() as connection:
            question = {"before": ended_before, "limit": AT_ONCE}
            task_ids = list(connection.execute(_ENDED_BEFORE, question).scalars())
            if task_ids:
                for query in (_REMOVE_OUTPUT, _REMOVE_TASKS):
                    connection.execute(query, {"ids": task_ids})
        return len(task_ids)

    def remove_cancellations(self) -> int:
        """Remove some of those that were left for agents whose endpoints are deleted.

        All others stay until they are confirmed: nobody knows how long a task waits on its queue for an agent that is
        away, which asks here before it takes any.
        """
        with self._database.writing() as connection:
            task_ids = list(connection.execute(_CANCELLATIONS_FOR_NOBODY, {"limit": AT_ONCE}).scalars())
            if task_ids:
                connection.execute(_REMOVE_CANCELLATIONS, {"ids": task_ids})
        return len(task_ids)

    def remove_submissions(self, made_before: float, after: tuple[float, str]) -> tuple[float, str] | None:
        """Remove those of the next old submissions that have no tasks any more. See :meth:`remove_groups`."""
        with self._database.writing() as connection:
            return _remove_empty(connection, _OLD_SUBMISSIONS, _REMOVE_SUBMISSIONS, made_before, after)

    def remove_groups(self, made_before: float, after: tuple[float, str]) -> tuple[float, str] | None:
        """Remove those of the next old groups that have no tasks any more.

        ``after`` is ``(0, "")`` at first and then what the call before returned, until that is None.
        """
        with self._database.writing() as connection:
            return _remove_empty(connection, _OLD_GROUPS, _REMOVE_GROUPS, made_before, after)


def days(seconds: float) -> str:
    """
    >>> days(30 * 86400), days(86400), days(90)
    ('30 days', '1 day', '90 seconds')
    """
    number, unit = (seconds / 86400, "day") if seconds >= 86400 else (seconds, "second")
    return f"{number:g} {unit}{'' if number == 1 else 's'}"


def _remove_empty(
    connection: Connection, old: Executable, remove: Executable, made_before: float, after: tuple[float, str]
) -> tuple[float, str] | None:
    # First locked, then looked at again: a submission to a group locks it too, and may just have added tasks.
    question = {"before": made_before, "limit": AT_ONCE, "at": after[0], "last": after[1]}
    rows: Sequence[tuple[str, float]] = [(row.id, row.created_at) for row in connection.execute(old, question)]
    if not rows:
        return None
    connection.execute(remove, {"ids": [row_id for row_id, _ in rows]})
    last_id, last_at = rows[-1]
    return last_at, last_id


_is_heard_of = exists().where(endpoint.id == task.runner_id, endpoint.last_heartbeat_at > bindparam("before"))
_INACTIVE = (
    select(task.id, task.task_group_id, task.runner_id)
    .where(
        IS_UNFINISHED,
        task.changed_at < bindparam("before"),
        or_(task.state != TaskState.RUNNING.value, ~_is_heard_of.correlate(TASKS)),
    )
    .order_by(task.changed_at)
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True)
)
_ENDED_BEFORE = (
    select(task.id)
    .where(task.completed_at < bindparam("before"))
    .order_by(task.completed_at)
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True)
)
_REMOVE_TASKS = delete(TASKS).where(task.id.in_(IDS))
_REMOVE_OUTPUT = delete(OUTPUT).where(output.task_id.in_(IDS))
_REMOVE_CANCELLATIONS = delete(CANCELLATIONS).where(cancellation.task_id.in_(IDS))
_CANCELLATIONS_FOR_NOBODY = (
    select(cancellation.task_id)
    .join(ENDPOINTS, endpoint.id == cancellation.runner_id)
    .where(endpoint.deleted_at.is_not(None))
    .limit(bindparam("limit"))
    .with_for_update(of=CANCELLATIONS, skip_locked=True)
)
_OLD_SUBMISSIONS = (
    select(submission.id, submission.created_at)
    .where(
        submission.created_at < bindparam("before"),
        submission.created_at >= bindparam("at"),
        or_(submission.created_at > bindparam("at"), submission.id > bindparam("last")),
    )
    .order_by(submission.created_at, submission.id)
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True)
)
_REMOVE_SUBMISSIONS = delete(SUBMISSIONS).where(
    submission.id.in_(IDS), ~exists().where(task.submission_id == submission.id).correlate(SUBMISSIONS)
)
_OLD_GROUPS = (
    select(group.id, group.created_at)
    .where(
        group.created_at < bindparam("before"),
        group.created_at >= bindparam("at"),
        or_(group.created_at > bindparam("at"), group.id > bindparam("last")),
    )
    .order_by(group.created_at, group.id)
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True)
)
_REMOVE_GROUPS = delete(GROUPS).where(
    group.id.in_(IDS), ~exists().where(task.task_group_id == group.id).correlate(GROUPS)
)
