"""The ledger: what was asked, what became of it. The only module that changes a task's state.

Everything comes and goes in batches; a single task is a batch of one. Nothing here talks to the broker: `dispatch`
carries tasks out after their rows are committed, `collector` brings results in.
"""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Executable, Row, select
from sqlalchemy.exc import IntegrityError

from farcall.wire import EXECUTION_START, BatchedTask, ErrorDetails, Result, TaskState, Transition
from farcall_webservice import notices
from farcall_webservice import statements as sql
from farcall_webservice.database import Database
from farcall_webservice.fields import uuid_text

log = logging.getLogger(__name__)

#: How many ids go into one IN (...): SQLite takes 32,766 parameters, and long lists make long plans.
IDS_PER_QUERY = 900

#: A process has so long to publish what it has committed before others may do it in its stead.
CLAIM_S = 30.0

#: So many groups' owners are remembered.
GROUPS_REMEMBERED = 10_000

#: What an agent may say of a task that has not ended. All else is the ledger's own to say.
REPORTABLE_STATES = frozenset({TaskState.WAITING_FOR_NODES, TaskState.WAITING_FOR_LAUNCH, TaskState.RUNNING})


class KeyReused(Exception):
    """An idempotency key came again with a different request."""


class GroupExists(Exception):
    """A group that was to be made has been made meanwhile, by whoever is its owner."""


@dataclass(frozen=True)
class Outgoing:
    """Committed tasks of one submission, to be sent to whoever runs them."""

    submission_id: str
    runner_id: str
    tasks: Sequence[BatchedTask]
    #: Until when no other process publishes it (seconds since 1970).
    claimed_until: float = math.inf

    @property
    def characters(self) -> int:
        return sum(len(task.payload) for task in self.tasks)


@dataclass(frozen=True)
class Receipt:
    """What a submitter is told; ``outgoing`` is empty where the request had been answered before."""

    request_id: str
    task_group_id: str
    endpoint_id: str
    #: Function id -> task ids, in the order of the request's payloads.
    tasks: Mapping[str, list[str]]
    outgoing: Sequence[Outgoing] = ()


@dataclass(frozen=True)
class Request:
    """Tasks for one endpoint, all of one submission.

    ``payloads`` maps a function id to packed arguments, one text a task; ``runner_id`` is who runs them: the endpoint
    itself, or a user endpoint of its.
    """

    owner_id: str
    endpoint_id: str
    runner_id: str
    payloads: Mapping[str, Sequence[str]]
    options: Mapping[str, Any] = field(default_factory=dict)
    idempotency_key: str | None = None
    digest: str | None = None


@dataclass(frozen=True)
class TaskFilter:
    """Which tasks of one owner to list; None = any. Times are seconds since 1970."""

    state: TaskState | None = None
    endpoint_id: str | None = None
    function_id: str | None = None
    task_group_id: str | None = None
    created_after: float | None = None
    created_before: float | None = None


@dataclass
class Unaccounted:
    """Tasks of an endpoint that its agent does not hold, although the ledger has not seen them end."""

    #: Sent, never reported as taken: on the queue, unless the queue lost them.
    sent: list[str] = field(default_factory=list)
    #: Reported as taken earlier.
    taken: list[str] = field(default_factory=list)


class Ledger:
    """Tasks and their groups, over one database. Each process has one; what it writes, its dispatcher publishes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._claimant = str(uuid.uuid4())
        #: A group never changes hands, and is asked about with every submit and every wait.
        self._group_owners: dict[str, str] = {}

    # -- submitting ---------------------------------------------------------------------------------------------------

    def submit(
        self,
        *,
        owner_id: str,
        endpoint_id: str,
        runner_id: str | None = None,
        payloads: Mapping[str, Sequence[str]],
        task_group_id: str | None = None,
        new_group_id: str | None = None,
        options: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        digest: str | None = None,
    ) -> Receipt:
        """Write a request's tasks; when this returns they are committed.

        See :class:`Request`. A ``task_group_id`` must be one of :meth:`task_group_owner`'s; without one a group is
        made, under ``new_group_id`` if that is given. Raises :class:`KeyReused`.
        """
        request = Request(
            owner_id, endpoint_id, runner_id or endpoint_id, payloads, options or {}, idempotency_key, digest
        )
        new_group_id = new_group_id or str(uuid.uuid4())
        try:
            return self._submit([request], task_group_id, new_group_id)[0]
        except IntegrityError:
            # The same key came twice at once, and the other one was first.
            if idempotency_key is None:
                raise
            return self._submit([request], task_group_id, new_group_id)[0]

    def submit_together(self, requests: Sequence[Request], task_group_id: str, *, is_new: bool) -> list[Receipt]:
        """Write several endpoints' tasks, all or none, in one group; ``is_new`` says that it has to be made.

        Raises :class:`GroupExists`.
        """
        try:
            return self._submit(requests, None if is_new else task_group_id, task_group_id)
        except IntegrityError as error:
            if is_new and self.task_group_owner(task_group_id) is not None:
                raise GroupExists(task_group_id) from error
            raise

    def _submit(self, requests: Sequence[Request], task_group_id: str | None, new_group_id: str) -> list[Receipt]:
        now = time.time()
        receipts = []
        with self._database.writing() as connection:
            for request in requests:
                if request.idempotency_key is not None:
                    earlier = _earlier_receipt(connection, request.owner_id, request.idempotency_key, request.digest)
                    if earlier is not None:
                        receipts.append(earlier)
                        continue
                if task_group_id is None:
                    task_group_id = new_group_id
                    connection.execute(
                        sql.ADD_GROUP,
                        {"id": task_group_id, "owner_id": request.owner_id, "created_at": now, "last_result_seq": 0},
                    )
                receipts.append(self._add(connection, request, task_group_id, now))
        return receipts

    def _add(self, connection: Connection, request: Request, task_group_id: str, now: float) -> Receipt:
        submission_id = str(uuid.uuid4())
        connection.execute(
            sql.ADD_SUBMISSION,
            {
                "id": submission_id,
                "owner_id": request.owner_id,
                "endpoint_id": request.endpoint_id,
                "task_group_id": task_group_id,
                "idempotency_key": request.idempotency_key,
                "digest": request.digest,
                "options": dict(request.options) if request.options else None,
                "created_at": now,
                "claimed_by": self._claimant,
                "claimed_until": now + CLAIM_S,
            },
        )
        shared = {
            "owner_id": request.owner_id,
            "submission_id": submission_id,
            "task_group_id": task_group_id,
            "endpoint_id": request.endpoint_id,
            "runner_id": request.runner_id,
            "state": TaskState.RECEIVED.value,
            "history": _line(TaskState.RECEIVED, now),
            "created_at": now,
            "changed_at": now,
        }
        ids: dict[str, list[str]] = {}
        rows: list[dict[str, Any]] = []
        for function_id, texts in request.payloads.items():
            ids[function_id] = [str(uuid.uuid4()) for _ in texts]
            rows.extend(
                {"id": task_id, "function_id": function_id, "payload": payload, **shared}
                for task_id, payload in zip(ids[function_id], texts, strict=True)
            )
        if rows:
            connection.execute(sql.ADD_TASKS, rows)
        tasks = [BatchedTask(row["id"], row["function_id"], row["payload"], request.options) for row in rows]
        outgoing = [Outgoing(submission_id, request.runner_id, tasks, now + CLAIM_S)]
        return Receipt(submission_id, task_group_id, request.endpoint_id, ids, outgoing)

    # -- dispatching --------------------------------------------------------------------------------------------------

    def undispatched(self, *, alone: bool, limit: int = 20) -> list[Outgoing]:
        """The oldest submissions whose message no broker has confirmed yet.

        ``alone`` says that no other process publishes. Otherwise those that another one may still be about to publish
        are left out, and the others are this process's own for :data:`CLAIM_S` seconds.
        """
        with self._database.reading() if alone else self._database.writing() as connection:
            submission_ids = self._undispatched_ids(connection, alone=alone, limit=limit)
            batches = {
                batch.submission_id: batch for batch in _outgoing(connection, submission_ids, of_submissions=True)
            }
        # A submission whose tasks have all ended has nothing to send, yet wants to be marked.
        return [batches.get(each) or Outgoing(each, "", []) for each in submission_ids]

    def _undispatched_ids(self, connection: Connection, *, alone: bool, limit: int) -> list[str]:
        if alone:
            return list(connection.execute(sql.UNDISPATCHED_ALONE, {"limit": limit, "now": time.time()}).scalars())
        now = time.time()
        claim = {"claimant": self._claimant, "now": now, "until": now + CLAIM_S, "limit": limit}
        return [row.id for row in sorted(connection.execute(sql.CLAIM, claim), key=lambda row: row.created_at)]

    def mark_dispatched(self, submission_ids: Sequence[str]) -> None:
        """The broker has these submissions now."""
        now = time.time()
        values = {"now": now, "line": _line(TaskState.WAITING_FOR_EP, now)}
        with self._database.writing() as connection:
            for some in _in_parts(submission_ids):
                connection.execute(sql.MARK_SUBMISSIONS, {"ids": some, "now": now})
                if not self._database.is_sqlite:
                    connection.execute(sql.LOCK_RECEIVED, {"ids": some})
                connection.execute(sql.MARK_TASKS, {"ids": some, **values})

    def set_aside(self, submission_ids: Sequence[str], for_s: float) -> None:
        """Keep these submissions, which could not be published, from all who publish for a while."""
        with self._database.writing() as connection:
            for some in _in_parts(submission_ids):
                connection.execute(sql.SET_ASIDE, {"ids": some, "until": time.time() + for_s})

    def unaccounted(self, runner_id: str, holds: Iterable[str], *, grace_s: float, limit: int = 5000) -> Unaccounted:
        """Compare what an agent holds with what the ledger believes it has.

        Tasks whose state changed in the last ``grace_s`` seconds are left out: their messages may be on their way.
        """
        held = set(holds)
        found = Unaccounted()
        question = {"runner": runner_id, "before": time.time() - grace_s, "limit": limit}
        with self._database.reading() as connection:
            for state in (TaskState.WAITING_FOR_EP, *sorted(REPORTABLE_STATES)):
                into = found.sent if state == TaskState.WAITING_FOR_EP else found.taken
                ids = connection.execute(sql.UNCHANGED_SINCE, {**question, "state": state.value}).scalars()
                into.extend(task_id for task_id in ids if task_id not in held)
        return found

    def sent(self, runner_id: str) -> dict[str, int]:
        """The tasks that a runner was sent and has not answered, and how often each was sent."""
        sending = f"{TaskState.WAITING_FOR_EP} "
        with self._database.reading() as connection:
            rows = connection.execute(sql.SENT_TO_RUNNER, {"runner": runner_id})
            return {row.id: row.history.count(sending) for row in rows}

    def hand_over(self, from_runner_id: str, to_runner_id: str, owner_id: str) -> int:
        """Let another runner run what this one was to run for an owner. It is sent as what that one has lost is."""
        moved = {"runner": from_runner_id, "to": to_runner_id, "owner": owner_id}
        with self._database.writing() as connection:
            return connection.execute(sql.HAND_OVER, moved).rowcount

    def owners(self, runner_id: str) -> list[str]:
        """Whose unfinished tasks a runner has."""
        with self._database.reading() as connection:
            return list(connection.execute(sql.OWNERS_OF_RUNNER, {"runner": runner_id}).scalars())

    def resend(self, task_ids: Sequence[str], *, as_lost: bool = True) -> list[Outgoing]:
        """Return tasks that go out once more; those that have ended meanwhile are left out.

        ``as_lost`` notes it in their history, so that what is lost again and again can be told.
        """
        now = time.time()
        with self._database.writing() as connection:
            unfinished = [row.id for row in self._unfinished(connection, task_ids, None)]
            for some in _in_parts(unfinished if as_lost else ()):
                connection.execute(
                    sql.SEND_AGAIN, {"ids": some, "now": now, "line": _line(TaskState.WAITING_FOR_EP, now)}
                )
            return _outgoing(connection, unfinished, of_submissions=False)

    # -- collecting ---------------------------------------------------------------------------------------------------

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
                last = connection.execute(sql.NUMBER_RESULTS, numbering).scalar_one()
                numbered = enumerate(task_ids, last - len(task_ids) + 1)
                updates += [{"of": task_id, **_ended(first[task_id], number, now)} for number, task_id in numbered]
            connection.execute(sql.END_TASK, updates)
            if not self._database.is_sqlite:
                notices.announce(connection, by_group)
        return set(by_group)

    def _unfinished(self, connection: Connection, task_ids: Iterable[str], runner_id: str | None) -> list[Row[Any]]:
        """Those of these tasks that have not ended, locked until the end of the transaction."""
        query = sql.UNFINISHED if self._database.is_sqlite else sql.UNFINISHED_LOCKED
        rows: list[Row[Any]] = []
        for some in _in_parts(sorted(task_ids)):
            rows += connection.execute(query, {"ids": some})
        if runner_id is None:
            return rows
        for row in rows:
            if row.runner_id != runner_id:
                log.warning("endpoint %s sent a result of task %s, which is not its task", runner_id, row.id)
        return [row for row in rows if row.runner_id == runner_id]

    def record_states(self, runner_id: str, statuses: Mapping[str, Sequence[Transition]]) -> None:
        """Write what an agent says of its tasks: the latest transition of each that has not ended."""
        now = time.time()
        updates = []
        for said_id, transitions in sorted(statuses.items()):
            task_id = uuid_text(said_id)
            known = [t for t in transitions if t.state in REPORTABLE_STATES]
            if known and task_id is not None:
                lines = "".join(_line(t.state, t.timestamp / 1e9) for t in known)
                updates.append({"of": task_id, "at": runner_id, "to": known[-1].state, "lines": lines, "now": now})
        if not updates:
            return
        with self._database.writing() as connection:
            connection.execute(sql.MOVE_TASK, updates)

    def fail_tasks_of_runner(self, runner_id: str, reason: str, *, code: str) -> set[str]:
        """End every unfinished task of a runner as failed. Returns the groups that have news."""
        groups: set[str] = set()
        while True:
            with self._database.reading() as connection:
                question = {"runner": runner_id, "limit": 1000}
                ids = connection.execute(sql.UNFINISHED_OF_RUNNER, question).scalars()
                failures = [Result(task_id, reason, error_details=ErrorDetails(code, reason)) for task_id in ids]
            if not failures:
                return groups
            groups |= self.record_results(None, failures)

    # -- reading ------------------------------------------------------------------------------------------------------

    def task_group_owner(self, task_group_id: str) -> str | None:
        owner_id = self._group_owners.get(task_group_id)
        if owner_id is None:
            with self._database.reading() as connection:
                owner_id = connection.execute(sql.GROUP_OWNER, {"group": task_group_id}).scalar_one_or_none()
            if owner_id is not None:
                if len(self._group_owners) >= GROUPS_REMEMBERED:
                    self._group_owners.clear()
                self._group_owners[task_group_id] = owner_id
        return owner_id

    def tasks(self, task_ids: Sequence[str]) -> list[Row[Any]]:
        """Whole rows of these tasks (without payload), in no particular order; unknown ids are left out."""
        rows: list[Row[Any]] = []
        with self._database.reading() as connection:
            for some in _in_parts(task_ids):
                rows += connection.execute(sql.TASKS_BY_ID, {"ids": some})
        return rows

    def task_group(self, task_group_id: str) -> list[Row[Any]]:
        """``id`` and ``created_at`` of a group's tasks, oldest first."""
        with self._database.reading() as connection:
            return list(connection.execute(sql.TASKS_OF_GROUP, {"group": task_group_id}))

    def group_results(self, task_group_id: str, *, after: int, limit: int, max_characters: int) -> list[Row[Any]]:
        """Whole rows of a group's ended tasks whose ``result_seq`` is above ``after``, in that order.

        At most ``limit`` of them, and of several no more than ``max_characters`` of outcomes together.
        """
        question = {"group": task_group_id, "after": after, "limit": limit, "characters": max_characters}
        with self._database.reading() as connection:
            return list(connection.execute(sql.GROUP_RESULTS, question))

    def list_tasks(self, owner_id: str, wanted: TaskFilter, *, before: int | None, limit: int) -> list[Row[Any]]:
        """An owner's tasks, newest first, without outcomes; ``before`` is the ``seq`` of the last one already seen."""
        task = sql.task
        query = select(*sql.SUMMARY_COLUMNS).where(task.owner_id == owner_id).order_by(task.seq.desc()).limit(limit)
        conditions = (
            (before, task.seq < before if before is not None else None),
            (wanted.state, task.state == wanted.state),
            (wanted.endpoint_id, task.endpoint_id == wanted.endpoint_id),
            (wanted.function_id, task.function_id == wanted.function_id),
            (wanted.task_group_id, task.task_group_id == wanted.task_group_id),
            (wanted.created_after, task.created_at > (wanted.created_after or 0)),
            (wanted.created_before, task.created_at < (wanted.created_before or 0)),
        )
        for value, condition in conditions:
            if value is not None and condition is not None:
                query = query.where(condition)
        with self._database.reading() as connection:
            return list(connection.execute(query))

    def count_unfinished(self, *runner_ids: str) -> int:
        """How many tasks these have yet to end, together."""
        with self._database.reading() as connection:
            return int(connection.execute(sql.COUNT_UNFINISHED, {"ids": runner_ids}).scalar_one())


def _ended(result: Result, number: int, now: float) -> dict[str, Any]:
    error = result.error_details
    state = TaskState.SUCCESS if error is None else TaskState.FAILED
    started = [t for t in result.task_statuses if t.state == EXECUTION_START]
    lines = "".join(_line(TaskState.RUNNING, t.timestamp / 1e9) for t in started) + _line(state, now)
    details = dict(result.details) if result.details is not None else None
    if details is not None and result.task_statuses:
        details["task_transitions"] = {t.state: t.timestamp / 1e9 for t in result.task_statuses}
    return {
        "to": state.value,
        "lines": lines,
        "now": now,
        "number": number,
        "data": _storable(result.data),
        "size": len(result.data) + len(result.exception_object or ""),
        "error": _storable(error.code)[:100] if error is not None else None,
        "exception": None if result.exception_object is None else _storable(result.exception_object),
        "worker": details,
    }


def _outgoing(connection: Connection, ids: Sequence[str], *, of_submissions: bool) -> list[Outgoing]:
    """The unfinished ones of these tasks, or of the tasks of these submissions, by submission; oldest first."""
    query: Executable = sql.OUTGOING_BY_SUBMISSION if of_submissions else sql.OUTGOING_BY_TASK
    batches: dict[str, Outgoing] = {}
    tasks: dict[str, list[BatchedTask]] = defaultdict(list)
    for some in _in_parts(ids):
        for row in connection.execute(query, {"ids": some}):
            tasks[row.submission_id].append(BatchedTask(row.id, row.function_id, row.payload, row.options or {}))
            batches[row.submission_id] = Outgoing(row.submission_id, row.runner_id, tasks[row.submission_id])
    return list(batches.values())


def _earlier_receipt(connection: Connection, owner_id: str, key: str, digest: str | None) -> Receipt | None:
    earlier = connection.execute(sql.SUBMISSION_OF_KEY, {"owner": owner_id, "key": key}).one_or_none()
    if earlier is None:
        return None
    if earlier.digest != digest:
        raise KeyReused(key)
    ids: dict[str, list[str]] = defaultdict(list)
    for row in connection.execute(sql.TASKS_OF_SUBMISSION, {"submission": earlier.id}):
        ids[row.function_id].append(row.id)
    return Receipt(earlier.id, earlier.task_group_id, earlier.endpoint_id, ids)


def _storable(text: str) -> str:
    """What no database takes, lone surrogates and NUL, in the way in which Python writes it."""
    if text.isascii() and "\0" not in text:
        return text
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def _line(state: str, at: float) -> str:
    return f"{state} {at:.6f}\n"


def _in_parts(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), IDS_PER_QUERY):
        yield ids[start : start + IDS_PER_QUERY]
