"""The tables that the ledger's statements are about, and what many of them share.

Statements stand at the end of the module that runs them, made once: putting one together costs more than running it.
A bound name ``ids`` takes a list.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BindParameter, Table, bindparam

from farcall_webservice.models import Cancellation, Endpoint, Submission, Task, TaskGroup, TaskOutput

assert isinstance(Task.__table__, Table) and isinstance(TaskGroup.__table__, Table)
assert isinstance(Submission.__table__, Table) and isinstance(Endpoint.__table__, Table)
assert isinstance(Cancellation.__table__, Table) and isinstance(TaskOutput.__table__, Table)
TASKS, GROUPS, SUBMISSIONS = Task.__table__, TaskGroup.__table__, Submission.__table__
CANCELLATIONS, OUTPUT, ENDPOINTS = Cancellation.__table__, TaskOutput.__table__, Endpoint.__table__
task, group, submission, endpoint = TASKS.c, GROUPS.c, SUBMISSIONS.c, ENDPOINTS.c
cancellation, output = CANCELLATIONS.c, OUTPUT.c

IDS: BindParameter[Any] = bindparam("ids", expanding=True)
IS_UNFINISHED = task.completed_at.is_(None)
OF_RUNNER = (task.runner_id == bindparam("runner"), IS_UNFINISHED)
