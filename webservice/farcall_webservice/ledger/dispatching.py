"""Sending what was written: what has to go out, and what has to go out again."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence

from sqlalchemy import Connection, Executable, and_, bindparam, func, or_, select, update

from farcall.wire import BatchedTask, TaskState
from farcall_webservice import presence
from farcall_webservice.ledger.book import Book, in_parts
from farcall_webservice.ledger.history import line
from farcall_webservice.ledger.tables import IDS, IS_UNFINISHED, OF_RUNNER, SUBMISSIONS, TASKS, submission, task
from farcall_webservice.ledger.values import REPORTABLE_STATES, Outgoing, Unaccounted

#: What was sent so often, and each time lost before it had ended, is not sent again.
MOST_SENDS = 10
NEVER_ARRIVED = (
    f"This task was sent to its endpoint {MOST_SENDS} times, and lost each time before it had ended: its agent, or the "
    "broker, loses what it is sent. Look into the agent's log, and submit the task again"
)
NOT_TWICE = (
    "The endpoint has lost this task when it may have been started already, and with max_retries 0 it is not started "
    "twice"
)
#: An agent that says this of a task has handed it to its engine. Each is where a line of the history begins.
_MAY_HAVE_STARTED = (f"\n{TaskState.WAITING_FOR_LAUNCH} ", f"\n{TaskState.RUNNING} ")


class Dispatching(Book):
    """See the module."""

    def undispatched(self, *, alone: bool, limit: int = 20) -> list[Outgoing]:
        """The oldest submissions whose message no broker has confirmed yet.

        ``alone`` says that no other process publishes. Otherwise those that another one may still be about to publish
        are left out, unless that one has gone, and the others are this process's own for ``CLAIM_S`` seconds.
        """
        with self._database.reading() if alone else self._database.writing() as connection:
            submission_ids = self._undispatched_ids(connection, alone=alone, limit=limit)
            batches = {
                batch.submission_id: batch for batch in outgoing(connection, submission_ids, of_submissions=True)
            }
        # A submission whose tasks have all ended has nothing to send, yet wants to be marked.
        return [batches.get(each) or Outgoing(each, "", []) for each in submission_ids]

    def _undispatched_ids(self, connection: Connection, *, alone: bool, limit: int) -> list[str]:
        if alone:
            return list(connection.execute(_UNDISPATCHED_ALONE, {"limit": limit, "now": time.time()}).scalars())
        now = time.time()
        until = self._claimed_until(now)
        claim = {"claimant": self.claimant, "now": now, "until": until, "limit": limit}
        claim |= {"settled": until - presence.MAY_BE_UNSEEN_S, "absent": []}
        if not self._database.is_sqlite:
            claim["absent"] = presence.absent(connection, connection.execute(_OTHERS, claim).scalars().all())
        return [row.id for row in sorted(connection.execute(_CLAIM, claim), key=lambda row: row.created_at)]

    def mark_dispatched(self, submission_ids: Sequence[str]) -> None:
        """The broker has these submissions now."""
        now = time.time()
        values = {"now": now, "line": line(TaskState.WAITING_FOR_EP, now)}
        with self._database.writing() as connection:
            for some in in_parts(submission_ids):
                # Tasks before their submissions, as who cancels locks them.
                if not self._database.is_sqlite:
                    connection.execute(_LOCK_RECEIVED, {"ids": some})
                connection.execute(_MARK_TASKS, {"ids": some, **values})
                connection.execute(_MARK_SUBMISSIONS, {"ids": some, "now": now})

    def set_aside(self, submission_ids: Sequence[str], for_s: float) -> None:
        """Keep these submissions, which could not be published, from all who publish for a while."""
        with self._database.writing() as connection:
            for some in in_parts(submission_ids):
                connection.execute(_SET_ASIDE, {"ids": some, "until": time.time() + for_s})

    def unaccounted(self, runner_id: str, holds: Iterable[str], *, grace_s: float, limit: int = 5000) -> Unaccounted:
        """Compare what an agent holds with what the ledger believes it has.

        Tasks whose state changed in the last ``grace_s`` seconds are left out: their messages may be on their way.
        """
        held = set(holds)
        found = Unaccounted()
        question = {"runner": runner_id, "before": time.time() - grace_s}
        # What is held may come first, and must not hide the rest.
        question["limit"] = limit + len(held)
        with self._database.reading() as connection:
            for state in (TaskState.WAITING_FOR_EP, *sorted(REPORTABLE_STATES)):
                into = found.sent if state == TaskState.WAITING_FOR_EP else found.taken
                ids = connection.execute(_UNCHANGED_SINCE, {**question, "state": state.value}).scalars()
                into.extend(task_id for task_id in ids if task_id not in held)
        return found

    def sent(self, runner_id: str) -> dict[str, int]:
        """The tasks that a runner was sent and has not answered, and how often each was sent."""
        sending = f"{TaskState.WAITING_FOR_EP} "
        with self._database.reading() as connection:
            rows = connection.execute(_SENT_TO_RUNNER, {"runner": runner_id})
            return {row.id: row.history.count(sending) for row in rows}

    def hand_over(self, from_runner_id: str, to_runner_id: str, owner_id: str) -> int:
        """Let another runner run what this one was to run for an owner. It is sent as what that one has lost is."""
        moved = {"runner": from_runner_id, "to": to_runner_id, "owner": owner_id}
        with self._database.writing() as connection:
            return connection.execute(_HAND_OVER, moved).rowcount

    def owners(self, runner_id: str) -> list[str]:
        """Whose unfinished tasks a runner has."""
        with self._database.reading() as connection:
            return list(connection.execute(_OWNERS_OF_RUNNER, {"runner": runner_id}).scalars())

    def hopeless(self, task_ids: Iterable[str], *, were_taken: bool) -> dict[str, str]:
        """Those of these lost tasks that must not be sent again, and why.

        ``were_taken`` says that whoever had them may have started every one of them, and keeps no account of them: our
        own agents do, and know what is to become of a task that comes again.
        """
        reasons: dict[str, str] = {}
        with self._database.reading() as connection:
            for some in in_parts(sorted(task_ids)):
                for row in connection.execute(_LOST, {"ids": some}):
                    if were_taken and (row.options or {}).get("max_retries") == 0:
                        reasons[row.id] = NOT_TWICE
                    elif row.history.count(f"{TaskState.WAITING_FOR_EP} ") >= MOST_SENDS:
                        reasons[row.id] = NEVER_ARRIVED
        return reasons

    def resend(self, task_ids: Sequence[str], *, as_lost: bool = True, at_most: int | None = None) -> list[Outgoing]:
        """Return tasks that go out once more; those that have ended meanwhile are left out.

        ``as_lost`` notes it in their history, so that what is lost again and again can be told, and has them say
        whether they may have started. Of more than ``at_most`` characters of arguments the first tasks are returned;
        one task is not too many for any room.
        """
        if at_most is not None and at_most <= 0:
            return []
        now = time.time()
        with self._database.writing() as connection:
            unfinished = [row.id for row in self._unfinished(connection, task_ids, None)]
            if at_most is not None:
                unfinished = _first_that_fit(connection, unfinished, at_most)
            for some in in_parts(unfinished if as_lost else ()):
                connection.execute(_SEND_AGAIN, {"ids": some, "now": now, "line": line(TaskState.WAITING_FOR_EP, now)})
            return outgoing(connection, unfinished, of_submissions=False, as_lost=as_lost)


def _first_that_fit(connection: Connection, task_ids: Sequence[str], characters: int) -> list[str]:
    fitting: list[str] = []
    for some in in_parts(task_ids):
        sizes = {row.id: row.size for row in connection.execute(_SIZES, {"ids": some})}
        for task_id in some:
            characters -= sizes[task_id]
            if characters < 0 and fitting:
                return fitting
            fitting.append(task_id)
    return fitting


def outgoing(
    connection: Connection, ids: Sequence[str], *, of_submissions: bool, as_lost: bool = False
) -> list[Outgoing]:
    """The unfinished ones of these tasks, or of the tasks of these submissions, by submission; oldest first."""
    query: Executable = _OUTGOING_BY_SUBMISSION if of_submissions else _OUTGOING_BY_TASK
    batches: dict[str, Outgoing] = {}
    tasks: dict[str, list[BatchedTask]] = defaultdict(list)
    for some in in_parts(ids):
        for row in connection.execute(query, {"ids": some}):
            started = as_lost and any(each in row.history for each in _MAY_HAVE_STARTED)
            sent = BatchedTask(row.id, row.function_id, row.payload, row.options or {}, started)
            tasks[row.submission_id].append(sent)
            batches[row.submission_id] = Outgoing(
                row.submission_id, row.runner_id, tasks[row.submission_id], is_new=of_submissions
            )
    return list(batches.values())


_LOST = (
    select(task.id, task.history, submission.options)
    .join(SUBMISSIONS, submission.id == task.submission_id)
    .where(task.id.in_(IDS), IS_UNFINISHED)
)
_UNDISPATCHED = (
    select(submission.id)
    .where(submission.dispatched_at.is_(None), submission.held_at.is_(None))
    .order_by(submission.created_at)
    .limit(bindparam("limit"))
)
#: For the only process that dispatches, which minds no claims: without those that are set aside, and claimed by nobody.
_UNDISPATCHED_ALONE = _UNDISPATCHED.where(
    or_(
        submission.claimed_by.is_not(None),
        submission.claimed_until.is_(None),
        submission.claimed_until < bindparam("now"),
    )
)
_SET_ASIDE = update(SUBMISSIONS).where(submission.id.in_(IDS)).values(claimed_by=None, claimed_until=bindparam("until"))
#: Those that are the claimant's own, or nobody's any more, or somebody's who has gone. Another process that looks at
#: the same time takes others.
_claimable = (
    _UNDISPATCHED.where(
        or_(
            submission.claimed_by == bindparam("claimant"),
            submission.claimed_until.is_(None),
            submission.claimed_until < bindparam("now"),
            and_(
                submission.claimed_by.in_(bindparam("absent", expanding=True)),
                submission.claimed_until < bindparam("settled"),
            ),
        )
    )
    .with_for_update(skip_locked=True)
    # As a subquery it might be run, and lock its rows, more than once.
    .cte("claimable")
)
#: Who has claimed something, and not only just now.
_OTHERS = (
    select(submission.claimed_by)
    .where(
        submission.dispatched_at.is_(None),
        submission.held_at.is_(None),
        submission.claimed_by != bindparam("claimant"),
        submission.claimed_until.between(bindparam("now"), bindparam("settled")),
    )
    .distinct()
)
_CLAIM = (
    update(SUBMISSIONS)
    .where(submission.id.in_(select(_claimable.c.id)))
    .values(claimed_by=bindparam("claimant"), claimed_until=bindparam("until"))
    .returning(submission.id, submission.created_at)
)
_MARK_SUBMISSIONS = update(SUBMISSIONS).where(submission.id.in_(IDS)).values(dispatched_at=bindparam("now"))
_ON_QUEUE = {
    "state": TaskState.WAITING_FOR_EP.value,
    "changed_at": bindparam("now"),
    "history": task.history + bindparam("line"),
}
_RECEIVED = (task.submission_id.in_(IDS), task.state == TaskState.RECEIVED.value)
_MARK_TASKS = update(TASKS).where(*_RECEIVED).values(**_ON_QUEUE)
#: For databases in which several may write at a time; always in the same order, so that none waits in a circle.
_LOCK_RECEIVED = select(task.id).where(*_RECEIVED).order_by(task.id).with_for_update()
_SIZES = select(task.id, func.length(task.payload).label("size")).where(task.id.in_(IDS))
_SEND_AGAIN = update(TASKS).where(task.id.in_(IDS), IS_UNFINISHED).values(**_ON_QUEUE)

_OUTGOING = (
    select(task.id, task.function_id, task.payload, task.submission_id, task.runner_id, submission.options)
    .join(SUBMISSIONS, submission.id == task.submission_id)
    .where(IS_UNFINISHED)
    .order_by(task.seq)
)
_OUTGOING_BY_TASK = _OUTGOING.add_columns(task.history).where(task.id.in_(IDS))
_OUTGOING_BY_SUBMISSION = _OUTGOING.where(task.submission_id.in_(IDS))

_UNCHANGED_SINCE = (
    select(task.id)
    .where(
        task.runner_id == bindparam("runner"),
        task.state == bindparam("state"),
        IS_UNFINISHED,
        task.changed_at < bindparam("before"),
    )
    .limit(bindparam("limit"))
)
_SENT_TO_RUNNER = select(task.id, task.history).where(*OF_RUNNER, task.state != TaskState.RECEIVED.value)
_OWNERS_OF_RUNNER = select(task.owner_id).where(*OF_RUNNER).distinct()
_HAND_OVER = update(TASKS).where(*OF_RUNNER, task.owner_id == bindparam("owner")).values(runner_id=bindparam("to"))
