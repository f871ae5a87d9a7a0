"""Ending tasks: the one place where a task gets its last state, and its number among its group's results."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, select, update

from farcall.wire import TaskState
from farcall_webservice import notices
from farcall_webservice.ledger.book import IDS_PER_QUERY, Book, in_parts
from farcall_webservice.ledger.history import line, storable
from farcall_webservice.ledger.tables import GROUPS, IDS, TASKS, group, task


class Ending(Book):
    """See the module."""

    def _end(
        self, connection: Connection, rows: Sequence[Row[Any]], ending_of: Callable[[Row[Any]], dict[str, Any]]
    ) -> set[str]:
        """End these tasks, which this transaction has locked. Returns the groups that have news.

        ``ending_of`` makes what :func:`ending` returns from a task's row.
        """
        by_group: dict[str, list[Row[Any]]] = defaultdict(list)
        for row in rows:
            by_group[row.task_group_id].append(row)
        updates = []
        # Always in the same order, so that two collectors cannot wait for each other.
        for group_id in sorted(by_group):
            of_group = by_group[group_id]
            numbering = {"of": group_id, "more": len(of_group)}
            last = connection.execute(_NUMBER_RESULTS, numbering).scalar_one()
            numbered = enumerate(of_group, last - len(of_group) + 1)
            updates += [{"of": row.id, "number": number, **ending_of(row)} for number, row in numbered]
        if updates:
            connection.execute(_END_TASK, updates)
        self._announce(connection, by_group)
        return set(by_group)

    def _end_alike(self, connection: Connection, rows: Sequence[Row[Any]], how: dict[str, Any]) -> set[str]:
        """Like :meth:`_end` for tasks that end in the same way: a statement for each group of them."""
        by_group: dict[str, list[str]] = defaultdict(list)
        for row in rows:
            by_group[row.task_group_id].append(row.id)
        for group_id in sorted(by_group):
            ids = by_group[group_id]
            last = connection.execute(_NUMBER_RESULTS, {"of": group_id, "more": len(ids)}).scalar_one()
            for done, some in enumerate(in_parts(ids)):
                before = last - len(ids) + done * IDS_PER_QUERY
                connection.execute(_END_ALIKE, {"ids": some, "number_before": before, **how})
        self._announce(connection, by_group)
        return set(by_group)

    def _announce(self, connection: Connection, task_group_ids: Collection[str]) -> None:
        if task_group_ids and not self._database.is_sqlite:
            notices.announce(connection, task_group_ids)


def ending(
    state: TaskState,
    now: float,
    text: str,
    *,
    earlier: str = "",
    code: str | None = None,
    exception_object: str | None = None,
    details: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """How a task ended: ``text`` is its value or what went wrong, ``earlier`` lines of history not yet written."""
    return {
        "to": state.value,
        "lines": earlier + line(state, now),
        "now": now,
        "data": storable(text),
        "size": len(text) + len(exception_object or ""),
        "error": storable(code)[:100] if code is not None else None,
        "exception": None if exception_object is None else storable(exception_object),
        "worker": details,
    }


_NUMBER_RESULTS = (
    update(GROUPS)
    .where(group.id == bindparam("of"))
    .values(last_result_seq=group.last_result_seq + bindparam("more"))
    .returning(group.last_result_seq)
)
_ENDING = {
    "state": bindparam("to"),
    "history": task.history + bindparam("lines"),
    "changed_at": bindparam("now"),
    "completed_at": bindparam("now"),
    # Nobody asks for the arguments of a task that has ended.
    "payload": "",
    "outcome": bindparam("data"),
    "outcome_size": bindparam("size"),
    "error_code": bindparam("error"),
    "exception_object": bindparam("exception"),
    "details": bindparam("worker", type_=task.details.type),
}
_END_TASK = update(TASKS).where(task.id == bindparam("of")).values(result_seq=bindparam("number"), **_ENDING)
_those = TASKS.alias("those").c
_numbered = (
    select(_those.seq, func.row_number().over(order_by=_those.id).label("place"))
    .where(_those.id.in_(IDS))
    .subquery("numbered")
)
_END_ALIKE = (
    update(TASKS)
    .where(task.seq == _numbered.c.seq)
    .values(result_seq=bindparam("number_before", type_=task.result_seq.type) + _numbered.c.place, **_ENDING)
)
