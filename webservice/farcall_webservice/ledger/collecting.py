"""Recording what became of tasks: results, and what agents say of tasks that have not ended."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, bindparam, select, update

from farcall.wire import EXECUTION_START, ErrorDetails, Result, TaskState, Transition
from farcall_webservice.fields import uuid_text
from farcall_webservice.ledger.book import in_parts
from farcall_webservice.ledger.ending import Ending, ending
from farcall_webservice.ledger.history import MAX_CHARACTERS, line, lines_of, read
from farcall_webservice.ledger.tables import IDS, IS_UNFINISHED, OF_RUNNER, TASKS, task
from farcall_webservice.ledger.values import REPORTABLE_STATES


class Collecting(Ending):
    """See the module."""

    def record_results(
        self, runner_id: str | None, results: Sequence[Result], *, refused: dict[str, str] | None = None
    ) -> set[str]:
        """Write how tasks ended; the first result of a task wins. Returns the groups that have news.

        ``runner_id`` is who sent them: of results of what is no task of its, ``refused`` is told why they are not
        written, by the task's id as it was sent. None = the service itself.
        """
        first = {known: result for result in reversed(results) if (known := uuid_text(result.task_id)) is not None}
        with self._database.writing() as connection:
            rows = self._unfinished(connection, first, runner_id)
            if refused is not None:
                unwritten = {result.task_id for result in results}.difference(row.id for row in rows)
                refused.update(_strange(connection, unwritten, runner_id))
            now = time.time()
            return self._end(connection, rows, lambda row: _ending(first[row.id], row.state, now))

    def record_states(self, runner_id: str, statuses: Mapping[str, Sequence[Transition]]) -> None:
        """Write what an agent says of its tasks: the latest transition of each that has not ended."""
        said: dict[str, list[Transition]] = {}
        for said_id, transitions in statuses.items():
            task_id = uuid_text(said_id)
            known = sorted((t for t in transitions if t.state in REPORTABLE_STATES), key=lambda t: t.timestamp)
            if known and task_id is not None:
                said[task_id] = known
        now = time.time()
        query = _TOLD if self._database.is_sqlite else _TOLD_LOCKED
        for some in in_parts(sorted(said)):
            with self._database.writing() as connection:
                rows = connection.execute(query, {"ids": some, "runner": runner_id})
                moves = [_move(row, said[row.id], now) for row in rows]
                changes = [move for move in moves if move is not None]
                if changes:
                    connection.execute(_MOVE_TASK, changes)

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


def _strange(connection: Connection, said_ids: Collection[str], runner_id: str | None) -> dict[str, str]:
    """Why these, some of which may have ended long ago, are no tasks of a runner."""
    runners: dict[str, str] = {}
    known = {said_id: task_id for said_id in said_ids if (task_id := uuid_text(said_id)) is not None}
    for some in in_parts(sorted(known.values())):
        runners.update({row.id: row.runner_id for row in connection.execute(_RUNNERS, {"ids": some})})
    strange = {}
    for said_id in said_ids:
        its_runner = runners.get(known.get(said_id, ""))
        if its_runner is None:
            strange[said_id] = f"there is no task {said_id}"
        elif runner_id not in (its_runner, None):
            strange[said_id] = f"task {said_id} is not a task of this endpoint"
    return strange


def _move(row: Row[Any], transitions: Sequence[Transition], now: float) -> dict[str, Any] | None:
    """The change that follows from what an agent says of a task, in order of time; None if it is known already."""
    known = set(row.history.splitlines(keepends=True))
    new = [each for each in lines_of(transitions) if each not in known]
    if not new:
        return None
    latest = transitions[-1]
    # A report may come after a later one. What the ledger itself has noted goes by another clock.
    is_late = row.state in REPORTABLE_STATES and any(
        change[0] in REPORTABLE_STATES and float(change[1]) > latest.timestamp / 1e9 for change in read(row.history)
    )
    has_room = len(row.history) < MAX_CHARACTERS
    to = row.state if is_late else latest.state
    return {"of": row.id, "to": to, "lines": "".join(new) if has_room else "", "now": now}


def _ending(result: Result, state: str, now: float) -> dict[str, Any]:
    error = result.error_details
    earlier = lines_of(result.task_statuses)
    if TaskState.RUNNING not in {state, *(t.state for t in result.task_statuses)}:
        starts = [t.timestamp / 1e9 for t in result.task_statuses if t.state == EXECUTION_START]
        earlier += [line(TaskState.RUNNING, at) for at in starts]
    details = dict(result.details) if result.details is not None else None
    if details is not None and result.task_statuses:
        details["task_transitions"] = {
            t.state: t.timestamp / 1e9 for t in result.task_statuses if t.state not in REPORTABLE_STATES
        }
    return ending(
        TaskState.SUCCESS if error is None else TaskState.FAILED,
        now,
        result.data,
        earlier="".join(earlier),
        code=None if error is None else error.code,
        exception_object=result.exception_object,
        details=details,
    )


_RUNNERS = select(task.id, task.runner_id).where(task.id.in_(IDS))
_TOLD = select(task.id, task.state, task.history).where(task.id.in_(IDS), *OF_RUNNER)
#: Like _UNFINISHED_LOCKED.
_TOLD_LOCKED = _TOLD.order_by(task.id).with_for_update()
_MOVE_TASK = (
    update(TASKS)
    .where(task.id == bindparam("of"), IS_UNFINISHED)
    .values(state=bindparam("to"), changed_at=bindparam("now"), history=task.history + bindparam("lines"))
)
_UNFINISHED_OF_RUNNER = select(task.id).where(*OF_RUNNER).limit(bindparam("limit"))
