"""Recording what became of tasks: results, and what agents say of tasks that have not ended."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import bindparam, select, update

from farcall.wire import EXECUTION_START, ErrorDetails, Result, TaskState, Transition
from farcall_webservice import notices
from farcall_webservice.fields import uuid_text
from farcall_webservice.ledger.book import Book
from farcall_webservice.ledger.history import line
from farcall_webservice.ledger.tables import GROUPS, IS_UNFINISHED, OF_RUNNER, TASKS, group, task
from farcall_webservice.ledger.values import REPORTABLE_STATES


class Collecting(Book):
    """See the module."""

    def record_results(self, runner_id: str | None, results: Sequence[Result]) -> set[str]:
        """Write how tasks ended; the first result of a task wins. Returns the groups that have news.

        ``runner_id`` is who sent them: a result of another one's task is refused, and logged. None = the service
        itself.
        """
        first = {known: result for result in reversed(results) if (known := uuid_text(result.task_id)) is not None}
        with self._database.writing() as connection:
            rows = self._unfinished(connection, first, runner_id)
            if not rows:
                return set()
            by_group: dict[str, list[str]] = defaultdict(list)
            for row in rows:
                by_group[row.task_group_id].append(row.id)
            now = time.time()
            updates = []
            # Always in the same order, so that two collectors cannot wait for each other.
            for group_id in sorted(by_group):
                task_ids = by_group[group_id]
                numbering = {"of": group_id, "more": len(task_ids)}
                last = connection.execute(_NUMBER_RESULTS, numbering).scalar_one()
                numbered = enumerate(task_ids, last - len(task_ids) + 1)
                updates += [{"of": task_id, **_ended(first[task_id], number, now)} for number, task_id in numbered]
            connection.execute(_END_TASK, updates)
            if not self._database.is_sqlite:
                notices.announce(connection, by_group)
        return set(by_group)

    def record_states(self, runner_id: str, statuses: Mapping[str, Sequence[Transition]]) -> None:
        """Write what an agent says of its tasks: the latest transition of each that has not ended."""
        now = time.time()
        updates = []
        for said_id, transitions in sorted(statuses.items()):
            task_id = uuid_text(said_id)
            known = [t for t in transitions if t.state in REPORTABLE_STATES]
            if known and task_id is not None:
                lines = "".join(line(t.state, t.timestamp / 1e9) for t in known)
                updates.append({"of": task_id, "at": runner_id, "to": known[-1].state, "lines": lines, "now": now})
        if not updates:
            return
        with self._database.writing() as connection:
            connection.execute(_MOVE_TASK, updates)

    def fail_tasks_of_runner(self, runner_id: str, reason: str, *, code: str) -> set[str]:
        """End every unfinished task of a runner as failed. Returns the groups that have news."""
        groups: set[str] = set()
        while True:
            with self._database.reading() as connection:
                question = {"runner": runner_id, "limit": 1000}
                ids = connection.execute(_UNFINISHED_OF_RUNNER, question).scalars()
                failures = [Result(task_id, reason, error_details=ErrorDetails(code, reason)) for task_id in ids]
            if not failures:
                return groups
            groups |= self.record_results(None, failures)


def _ended(result: Result, number: int, now: float) -> dict[str, Any]:
    error = result.error_details
    state = TaskState.SUCCESS if error is None else TaskState.FAILED
    started = [t for t in result.task_statuses if t.state == EXECUTION_START]
    lines = "".join(line(TaskState.RUNNING, t.timestamp / 1e9) for t in started) + line(state, now)
    details = dict(result.details) if result.details is not None else None
    if details is not None and result.task_statuses:
        details["task_transitions"] = {t.state: t.timestamp / 1e9 for t in result.task_statuses}
    return {
        "to": state.value,
        "lines": lines,
        "now": now,
        "number": number,
        "data": storable(result.data),
        "size": len(result.data) + len(result.exception_object or ""),
        "error": storable(error.code)[:100] if error is not None else None,
        "exception": None if result.exception_object is None else storable(result.exception_object),
        "worker": details,
    }


def storable(text: str) -> str:
    """What no database takes, lone surrogates and NUL, in the way in which Python writes it."""
    if text.isascii() and "\0" not in text:
        return text
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


_NUMBER_RESULTS = (
    update(GROUPS)
    .where(group.id == bindparam("of"))
    .values(last_result_seq=group.last_result_seq + bindparam("more"))
    .returning(group.last_result_seq)
)
_END_TASK = (
    update(TASKS)
    .where(task.id == bindparam("of"))
    .values(
        state=bindparam("to"),
        history=task.history + bindparam("lines"),
        changed_at=bindparam("now"),
        completed_at=bindparam("now"),
        result_seq=bindparam("number"),
        # Nobody asks for the arguments of a task that has ended.
        payload="",
        outcome=bindparam("data"),
        outcome_size=bindparam("size"),
        error_code=bindparam("error"),
        exception_object=bindparam("exception"),
        details=bindparam("worker", type_=task.details.type),
    )
)
_MOVE_TASK = (
    update(TASKS)
    .where(
        task.id == bindparam("of"),
        task.runner_id == bindparam("at"),
        IS_UNFINISHED,
        task.state != bindparam("to"),
    )
    .values(state=bindparam("to"), changed_at=bindparam("now"), history=task.history + bindparam("lines"))
)
_UNFINISHED_OF_RUNNER = select(task.id).where(*OF_RUNNER).limit(bindparam("limit"))
