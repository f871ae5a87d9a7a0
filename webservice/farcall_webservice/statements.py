"""The ledger's statements, made once: putting one together costs more than running it.

A bound name ``ids`` takes a list.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BindParameter, Table, bindparam, func, insert, or_, select, update

from farcall.wire import TaskState
from farcall_webservice.models import Submission, Task, TaskGroup

assert isinstance(Task.__table__, Table) and isinstance(TaskGroup.__table__, Table)
assert isinstance(Submission.__table__, Table)
TASKS, GROUPS, SUBMISSIONS = Task.__table__, TaskGroup.__table__, Submission.__table__
task, group, submission = TASKS.c, GROUPS.c, SUBMISSIONS.c

_IDS: BindParameter[Any] = bindparam("ids", expanding=True)
_UNFINISHED = task.completed_at.is_(None)

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
    task.history,
    task.result_seq,
    task.outcome,
    task.exception_object,
    task.details,
)

# -- submitting -------------------------------------------------------------------------------------------------------

ADD_GROUP, ADD_SUBMISSION, ADD_TASKS = insert(GROUPS), insert(SUBMISSIONS), insert(TASKS)

SUBMISSION_OF_KEY = select(submission.id, submission.digest, submission.task_group_id, submission.endpoint_id).where(
    submission.owner_id == bindparam("owner"), submission.idempotency_key == bindparam("key")
)
TASKS_OF_SUBMISSION = (
    select(task.id, task.function_id).where(task.submission_id == bindparam("submission")).order_by(task.seq)
)

# -- dispatching ------------------------------------------------------------------------------------------------------

UNDISPATCHED = (
    select(submission.id)
    .where(submission.dispatched_at.is_(None))
    .order_by(submission.created_at)
    .limit(bindparam("limit"))
)
#: For the only process that dispatches, which minds no claims: without those that are set aside, and claimed by nobody.
UNDISPATCHED_ALONE = UNDISPATCHED.where(
    or_(
        submission.claimed_by.is_not(None),
        submission.claimed_until.is_(None),
        submission.claimed_until < bindparam("now"),
    )
)
SET_ASIDE = update(SUBMISSIONS).where(submission.id.in_(_IDS)).values(claimed_by=None, claimed_until=bindparam("until"))
#: Those that are the claimant's own, or nobody's any more. Another process that looks at the same time takes others.
_claimable = (
    UNDISPATCHED.where(
        or_(
            submission.claimed_by == bindparam("claimant"),
            submission.claimed_until.is_(None),
            submission.claimed_until < bindparam("now"),
        )
    )
    .with_for_update(skip_locked=True)
    # As a subquery it might be run, and lock its rows, more than once.
    .cte("claimable")
)
CLAIM = (
    update(SUBMISSIONS)
    .where(submission.id.in_(select(_claimable.c.id)))
    .values(claimed_by=bindparam("claimant"), claimed_until=bindparam("until"))
    .returning(submission.id, submission.created_at)
)
MARK_SUBMISSIONS = update(SUBMISSIONS).where(submission.id.in_(_IDS)).values(dispatched_at=bindparam("now"))
_ON_QUEUE = {
    "state": TaskState.WAITING_FOR_EP.value,
    "changed_at": bindparam("now"),
    "history": task.history + bindparam("line"),
}
_RECEIVED = (task.submission_id.in_(_IDS), task.state == TaskState.RECEIVED.value)
MARK_TASKS = update(TASKS).where(*_RECEIVED).values(**_ON_QUEUE)
#: For databases in which several may write at a time; always in the same order, so that none waits in a circle.
LOCK_RECEIVED = select(task.id).where(*_RECEIVED).order_by(task.id).with_for_update()
SEND_AGAIN = update(TASKS).where(task.id.in_(_IDS), _UNFINISHED).values(**_ON_QUEUE)

_OUTGOING = (
    select(task.id, task.function_id, task.payload, task.submission_id, task.runner_id, submission.options)
    .join(SUBMISSIONS, submission.id == task.submission_id)
    .where(_UNFINISHED)
    .order_by(task.seq)
)
OUTGOING_BY_TASK = _OUTGOING.where(task.id.in_(_IDS))
OUTGOING_BY_SUBMISSION = _OUTGOING.where(task.submission_id.in_(_IDS))

UNCHANGED_SINCE = (
    select(task.id)
    .where(
        task.runner_id == bindparam("runner"),
        task.state == bindparam("state"),
        _UNFINISHED,
        task.changed_at < bindparam("before"),
    )
    .limit(bindparam("limit"))
)

# -- collecting -------------------------------------------------------------------------------------------------------

UNFINISHED = select(task.id, task.task_group_id, task.runner_id).where(task.id.in_(_IDS), _UNFINISHED)
#: Like LOCK_RECEIVED.
UNFINISHED_LOCKED = UNFINISHED.order_by(task.id).with_for_update()

NUMBER_RESULTS = (
    update(GROUPS)
    .where(group.id == bindparam("of"))
    .values(last_result_seq=group.last_result_seq + bindparam("more"))
    .returning(group.last_result_seq)
)
END_TASK = (
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
MOVE_TASK = (
    update(TASKS)
    .where(
        task.id == bindparam("of"),
        task.runner_id == bindparam("at"),
        _UNFINISHED,
        task.state != bindparam("to"),
    )
    .values(state=bindparam("to"), changed_at=bindparam("now"), history=task.history + bindparam("lines"))
)
_OF_RUNNER = (task.runner_id == bindparam("runner"), _UNFINISHED)
UNFINISHED_OF_RUNNER = select(task.id).where(*_OF_RUNNER).limit(bindparam("limit"))
SENT_TO_RUNNER = select(task.id, task.history).where(*_OF_RUNNER, task.state != TaskState.RECEIVED.value)
OWNERS_OF_RUNNER = select(task.owner_id).where(*_OF_RUNNER).distinct()
HAND_OVER = update(TASKS).where(*_OF_RUNNER, task.owner_id == bindparam("owner")).values(runner_id=bindparam("to"))
COUNT_UNFINISHED = select(func.count()).where(task.runner_id.in_(_IDS), _UNFINISHED)

# -- reading ----------------------------------------------------------------------------------------------------------

GROUP_OWNER = select(group.owner_id).where(group.id == bindparam("group"))
TASKS_BY_ID = select(*DOCUMENT_COLUMNS).where(task.id.in_(_IDS))
TASKS_OF_GROUP = select(task.id, task.created_at).where(task.task_group_id == bindparam("group")).order_by(task.seq)


#: The results of a group after a cursor: as many as are wanted, and no more than have so many characters together,
#: but always the first.
_characters = func.sum(task.outcome_size).over(order_by=task.result_seq)
_sized = (
    select(task.seq, task.result_seq, _characters.label("until"), (_characters - task.outcome_size).label("before"))
    .where(task.task_group_id == bindparam("group"), task.result_seq > bindparam("after"))
    .order_by(task.result_seq)
    .limit(bindparam("limit"))
    .subquery()
)
GROUP_RESULTS = (
    select(*DOCUMENT_COLUMNS)
    .join(_sized, _sized.c.seq == task.seq)
    .where(or_(_sized.c.before == 0, _sized.c.until <= bindparam("characters")))
    .order_by(_sized.c.result_seq)
)
