"""Writing what was submitted: all of a request's tasks in one transaction."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, case, exists, insert, null, select
from sqlalchemy.exc import IntegrityError

from farcall.wire import BatchedTask, TaskState
from farcall_webservice.ids import new_id, new_ids
from farcall_webservice.ledger.history import line
from farcall_webservice.ledger.reading import Reading
from farcall_webservice.ledger.tables import GROUPS, SUBMISSIONS, TASKS, group, submission, task
from farcall_webservice.ledger.values import GroupExists, KeyReused, Outgoing, Receipt, Request, UnknownGroup


class Submitting(Reading):
    """See the module."""

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
        made, under ``new_group_id`` if that is given. Raises :class:`KeyReused`, or
        :class:`UnknownGroup` where the group has been removed meanwhile.
        """
        request = Request(
            owner_id, endpoint_id, runner_id or endpoint_id, payloads, options or {}, idempotency_key, digest
        )
        new_group_id = new_group_id or new_id()
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
            if task_group_id is not None:
                # Locked, so that it is not removed as one without tasks in this very moment.
                lock = _GROUP if self._database.is_sqlite else _GROUP_LOCKED
                if connection.execute(lock, {"group": task_group_id}).one_or_none() is None:
                    self._group_owners.pop(task_group_id, None)
                    raise UnknownGroup(task_group_id)
            for request in requests:
                if request.idempotency_key is not None:
                    earlier = _earlier_receipt(connection, request.owner_id, request.idempotency_key, request.digest)
                    if earlier is not None:
                        receipts.append(earlier)
                        continue
                if task_group_id is None:
                    task_group_id = new_group_id
                    connection.execute(
                        _ADD_GROUP,
                        {"id": task_group_id, "owner_id": request.owner_id, "created_at": now, "last_result_seq": 0},
                    )
                receipts.append(self._add(connection, request, task_group_id, now))
        return receipts

    def _add(self, connection: Connection, request: Request, task_group_id: str, now: float) -> Receipt:
        submission_id = new_id()
        held_at = connection.execute(
            _ADD_SUBMISSION,
            {
                "id": submission_id,
                "owner_id": request.owner_id,
                "endpoint_id": request.endpoint_id,
                "task_group_id": task_group_id,
                "idempotency_key": request.idempotency_key,
                "digest": request.digest,
                "options": dict(request.options) if request.options else None,
                "created_at": now,
                "claimed_by": self.claimant,
                "claimed_until": self._claimed_until(now),
                "task_count": sum(map(len, request.payloads.values())),
                "after_others_of": request.endpoint_id,
                "since": now,
            },
        ).scalar_one()
        shared = {
            "owner_id": request.owner_id,
            "submission_id": submission_id,
            "task_group_id": task_group_id,
            "endpoint_id": request.endpoint_id,
            "runner_id": request.runner_id,
            "state": TaskState.RECEIVED.value,
            "history": line(TaskState.RECEIVED, now),
            "created_at": now,
            "changed_at": now,
        }
        ids: dict[str, list[str]] = {}
        rows: list[dict[str, Any]] = []
        for function_id, texts in request.payloads.items():
            ids[function_id] = new_ids(len(texts))
            rows.extend(
                {"id": task_id, "function_id": function_id, "payload": payload, "payload_size": len(payload), **shared}
                for task_id, payload in zip(ids[function_id], texts, strict=True)
            )
        if rows:
            connection.execute(_ADD_TASKS, rows)
        if held_at is not None:
            return Receipt(submission_id, task_group_id, request.endpoint_id, ids, is_held=True)
        tasks = [BatchedTask(row["id"], row["function_id"], row["payload"], request.options) for row in rows]
        outgoing = [Outgoing(submission_id, request.runner_id, tasks, self._claimed_until(now))]
        return Receipt(submission_id, task_group_id, request.endpoint_id, ids, outgoing)


def _earlier_receipt(connection: Connection, owner_id: str, key: str, digest: str | None) -> Receipt | None:
    earlier = connection.execute(_SUBMISSION_OF_KEY, {"owner": owner_id, "key": key}).one_or_none()
    if earlier is None:
        return None
    if earlier.digest != digest:
        raise KeyReused(key)
    ids: dict[str, list[str]] = defaultdict(list)
    for row in connection.execute(_TASKS_OF_SUBMISSION, {"submission": earlier.id}):
        ids[row.function_id].append(row.id)
    return Receipt(earlier.id, earlier.task_group_id, earlier.endpoint_id, ids)


_GROUP = select(group.id).where(group.id == bindparam("group"))
_GROUP_LOCKED = _GROUP.with_for_update(read=True, key_share=True)
_ADD_GROUP, _ADD_TASKS = insert(GROUPS), insert(TASKS)
_earlier = SUBMISSIONS.alias("earlier").c
#: It is held back if others for the same endpoint are, as it comes after them. Found out on the way, at no cost.
_ADD_SUBMISSION = (
    insert(SUBMISSIONS)
    .values(
        held_at=case(
            (
                exists().where(_earlier.endpoint_id == bindparam("after_others_of"), _earlier.held_at.is_not(None)),
                bindparam("since", type_=submission.held_at.type),
            ),
            else_=null(),
        )
    )
    .returning(submission.held_at)
)

_SUBMISSION_OF_KEY = select(submission.id, submission.digest, submission.task_group_id, submission.endpoint_id).where(
    submission.owner_id == bindparam("owner"), submission.idempotency_key == bindparam("key")
)
_TASKS_OF_SUBMISSION = (
    select(task.id, task.function_id).where(task.submission_id == bindparam("submission")).order_by(task.seq)
)
