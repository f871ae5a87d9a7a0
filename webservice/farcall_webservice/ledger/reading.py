"""Asking about tasks and groups. Nothing here changes anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from sqlalchemy import Row, Select, bindparam, func, or_, select

from farcall.wire import TaskState
from farcall_webservice.ledger.book import Book, in_parts
from farcall_webservice.ledger.tables import IDS, IS_UNFINISHED, group, submission, task
from farcall_webservice.ledger.values import REPORTABLE_STATES, Page, TaskFilter

#: So many groups' owners are remembered.
GROUPS_REMEMBERED = 10_000
#: A listing looks through so many tasks at most, and so many are counted one by one: it takes milliseconds.
LOOKED_THROUGH = 2500
COUNTED = 20_000


class Reading(Book):
    """See the module."""

    def task_group_owner(self, task_group_id: str) -> str | None:
        owner_id = self._group_owners.get(task_group_id)
        if owner_id is None:
            with self._database.reading() as connection:
                owner_id = connection.execute(_GROUP_OWNER, {"group": task_group_id}).scalar_one_or_none()
            if owner_id is not None:
                if len(self._group_owners) >= GROUPS_REMEMBERED:
                    self._group_owners.clear()
                self._group_owners[task_group_id] = owner_id
        return owner_id

    def tasks(self, task_ids: Sequence[str]) -> list[Row[Any]]:
        """Whole rows of these tasks (without payload), in no particular order; unknown ids are left out."""
        rows: list[Row[Any]] = []
        with self._database.reading() as connection:
            for some in in_parts(task_ids):
                rows += connection.execute(_TASKS_BY_ID, {"ids": some})
        return rows

    def task_summaries(self, task_ids: Sequence[str]) -> list[Row[Any]]:
        """As :meth:`tasks`, without outcomes and history, and with the ``runner_id``."""
        rows: list[Row[Any]] = []
        with self._database.reading() as connection:
            for some in in_parts(task_ids):
                rows += connection.execute(_SUMMARIES_BY_ID, {"ids": some})
        return rows

    def task_group(self, task_group_id: str) -> list[Row[Any]]:
        """``id`` and ``created_at`` of a group's tasks, oldest first."""
        with self._database.reading() as connection:
            return list(connection.execute(_TASKS_OF_GROUP, {"group": task_group_id}))

    def group_results(self, task_group_id: str, *, after: int, limit: int, max_characters: int) -> list[Row[Any]]:
        """Whole rows of a group's ended tasks whose ``result_seq`` is above ``after``, in that order.

        At most ``limit`` of them, and of several no more than ``max_characters`` of outcomes together.
        """
        question = {"group": task_group_id, "after": after, "limit": limit, "characters": max_characters}
        with self._database.reading() as connection:
            return list(connection.execute(_GROUP_RESULTS, question))

    def list_tasks(self, owner_id: str, wanted: TaskFilter, *, before: int | None, limit: int) -> Page:
        """An owner's tasks, newest first, without outcomes; ``before`` is the ``next`` of the page before.

        Whatever is asked for, no more than :data:`LOOKED_THROUGH` tasks are looked through, so that a page may hold
        fewer than ``limit`` although there are more.
        """
        seen = select(task.seq).where(task.owner_id == owner_id).order_by(task.seq.desc())
        if before is not None:
            seen = seen.where(task.seq < before)
        with self._database.reading() as connection:
            last = None
            if wanted != TaskFilter():
                # Where to stop: the row of that place, if there are so many.
                last = connection.execute(seen.offset(LOOKED_THROUGH - 1).limit(1)).scalar_one_or_none()
            rows = list(connection.execute(self._listing(owner_id, wanted, before, last, limit)))
        return Page(rows, rows[-1].seq if len(rows) == limit else last)

    def _listing(
        self, owner_id: str, wanted: TaskFilter, before: int | None, last: int | None, limit: int
    ) -> Select[Any]:
        query = select(*SUMMARY_COLUMNS).where(task.owner_id == owner_id).order_by(task.seq.desc()).limit(limit)
        conditions = (
            (before, task.seq < (before or 0)),
            (last, task.seq >= (last or 0)),
            (wanted.state, task.state == wanted.state),
            (wanted.endpoint_id, task.endpoint_id == wanted.endpoint_id),
            (wanted.function_id, task.function_id == wanted.function_id),
            (wanted.task_group_id, task.task_group_id == wanted.task_group_id),
            (wanted.created_after, task.created_at > (wanted.created_after or 0)),
            (wanted.created_before, task.created_at < (wanted.created_before or 0)),
        )
        for value, condition in conditions:
            if value is not None:
                query = query.where(condition)
        return query

    #: How far tasks are counted that are before another one.
    MOST_COUNTED: ClassVar[int] = 10_000

    def count_before(self, row: Row[Any], states: Sequence[TaskState]) -> int:
        """How many tasks of the same runner in these states are older; beyond ``MOST_COUNTED`` they are not counted."""
        question = {"runner": row.runner_id, "seq": row.seq, "limit": self.MOST_COUNTED + 1}
        with self._database.reading() as connection:
            return sum(
                connection.execute(_COUNT_BEFORE, {**question, "state": state.value}).scalar_one() for state in states
            )

    def count_unfinished(self, *runner_ids: str) -> int:
        """How many tasks these have yet to end, together.

        Those that are held back are counted as they were submitted where they are more than :data:`COUNTED`, and the
        others up to so many.
        """
        question = {"ids": runner_ids, "most": COUNTED}
        with self._database.reading() as connection:
            held = int(connection.execute(_COUNT_HELD, question).scalar_one() or 0)
            if held > COUNTED:
                return held + int(connection.execute(_COUNT_SENT, question).scalar_one())
            return int(connection.execute(_COUNT_UNFINISHED, question).scalar_one())


SUMMARY_COLUMNS = (
    task.seq,
    task.id,
    task.owner_id,
    task.task_group_id,
    task.endpoint_id,
    task.function_id,
    task.state,
    task.created_at,
    task.changed_at,
    task.completed_at,
    task.error_code,
)
DOCUMENT_COLUMNS = (
    *SUMMARY_COLUMNS,
    task.runner_id,
    task.history,
    task.result_seq,
    task.outcome,
    task.exception_object,
    task.details,
)

_GROUP_OWNER = select(group.owner_id).where(group.id == bindparam("group"))
_TASKS_BY_ID = select(*DOCUMENT_COLUMNS).where(task.id.in_(IDS))
_SUMMARIES_BY_ID = select(*SUMMARY_COLUMNS, task.runner_id).where(task.id.in_(IDS))
_TASKS_OF_GROUP = select(task.id, task.created_at).where(task.task_group_id == bindparam("group")).order_by(task.seq)


#: The results of a group after a cursor: as many as are wanted, and no more than have so many characters together,
#: but always the first.
_next = (
    select(task.seq, task.result_seq, task.outcome_size)
    .where(task.task_group_id == bindparam("group"), task.result_seq > bindparam("after"))
    .order_by(task.result_seq)
    .limit(bindparam("limit"))
    .subquery()
)
_characters = func.sum(_next.c.outcome_size).over(order_by=_next.c.result_seq)
_sized = select(
    _next.c.seq, _next.c.result_seq, _characters.label("until"), (_characters - _next.c.outcome_size).label("before")
).subquery()
_GROUP_RESULTS = (
    select(*DOCUMENT_COLUMNS)
    .join(_sized, _sized.c.seq == task.seq)
    .where(or_(_sized.c.before == 0, _sized.c.until <= bindparam("characters")))
    .order_by(_sized.c.result_seq)
)
_before = (
    select(task.seq)
    .where(
        task.runner_id == bindparam("runner"),
        task.state == bindparam("state"),
        IS_UNFINISHED,
        task.seq < bindparam("seq"),
    )
    .limit(bindparam("limit"))
    .subquery()
)
_COUNT_BEFORE = select(func.count()).select_from(_before)
_SENT_STATES = (TaskState.WAITING_FOR_EP.value, *(state.value for state in REPORTABLE_STATES))
_unfinished = select(task.seq).where(task.runner_id.in_(IDS), IS_UNFINISHED).limit(bindparam("most"))
_COUNT_UNFINISHED = select(func.count()).select_from(_unfinished.subquery())
#: With the states in its text, as a plan that is made without them reads all that waits.
_sent = _unfinished.where(task.state.in_(bindparam("sent", _SENT_STATES, expanding=True, literal_execute=True)))
_COUNT_SENT = select(func.count()).select_from(_sent.subquery())
_COUNT_HELD = select(func.sum(submission.task_count)).where(
    submission.endpoint_id.in_(IDS), submission.held_at.is_not(None)
)
