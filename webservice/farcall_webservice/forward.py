"""Results over AMQP, for Globus Compute's Executor: every task group that wants one has a queue of its results.

A group numbers its results; forwarding is a cursor over those numbers, kept with the group's row in ``result_queues``
and moved after the broker has confirmed. So nothing is lost when a process or the broker dies in between, and what is
sent twice the Executor drops. Nothing but a result may ever be on such a queue: the Executor puts back what it cannot
read, and takes it again, without end.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

from kombu import Queue
from kombu.exceptions import OperationalError
from sqlalchemy import Connection, Row, Table, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError

from farcall import wire
from farcall.wire import ErrorDetails, Result, TaskState
from farcall_webservice import queues
from farcall_webservice.database import Database
from farcall_webservice.errors import ApiError
from farcall_webservice.ledger import IDS_PER_QUERY, Ledger
from farcall_webservice.models import ResultQueue, TaskGroup
from farcall_webservice.pruning import Pruning

log = logging.getLogger(__name__)

#: So many results of a group, or characters of them, go out before the next group has its turn.
RESULTS_PER_TURN = 200
CHARACTERS_PER_TURN = 16 * 1024 * 1024
#: A queue that was declared so recently need not be declared again; the broker keeps an unused one for far longer.
DECLARED_FOR_S = 3600.0
QUEUES_REMEMBERED = 10_000

#: Publishes a body with a time (seconds since 1970) to a queue, which is made if it is not there.
Publish = Callable[[Queue, list[tuple[bytes, int]]], None]

assert isinstance(ResultQueue.__table__, Table) and isinstance(TaskGroup.__table__, Table)
_QUEUES, _GROUPS = ResultQueue.__table__, TaskGroup.__table__
_BEHIND = (
    select(_QUEUES.c.task_group_id)
    .join(_GROUPS, _GROUPS.c.id == _QUEUES.c.task_group_id)
    .where(_GROUPS.c.last_result_seq > _QUEUES.c.forwarded_seq)
)
_BEHIND_OF = _BEHIND.where(_QUEUES.c.task_group_id.in_(bindparam("ids", expanding=True)))
_CURSOR = (
    select(_QUEUES.c.forwarded_seq, _GROUPS.c.owner_id)
    .join(_GROUPS, _GROUPS.c.id == _QUEUES.c.task_group_id)
    .where(_QUEUES.c.task_group_id == bindparam("group"))
)
_CURSOR_LOCKED = _CURSOR.with_for_update(of=_QUEUES)
_MOVE = update(_QUEUES).where(_QUEUES.c.task_group_id == bindparam("group")).values(forwarded_seq=bindparam("seq"))
_LAST_SEQ = select(_GROUPS.c.last_result_seq).where(_GROUPS.c.id == bindparam("group"))
_IS_KNOWN = select(_QUEUES.c.created_at).where(_QUEUES.c.task_group_id == bindparam("group"))


class ResultQueues:
    """The side that requests see: makes a group's queue before its submit is answered."""

    def __init__(self, broker_url: str, database: Database) -> None:
        self._broker_url = broker_url
        self._database = database
        self._lock = threading.Lock()
        self._declared: dict[str, float] = {}
        self._pruning = Pruning()
        #: Only such a broker speaks AMQP with clients.
        self.are_available = queues.speaks_amqp(broker_url)

    def open(self, owner_id: str, task_group_id: str) -> None:
        """Make sure that the group has its queue, and that results from now on go there.

        Raises :class:`ApiError` where the broker cannot be reached.
        """
        now = time.monotonic()
        if now - self._declared.get(task_group_id, -DECLARED_FOR_S) < DECLARED_FOR_S:
            return
        try:
            queues.declare(self._broker_url, queues.group_queue(owner_id, task_group_id))
        except (OperationalError, OSError) as error:
            raise ApiError(
                503,
                "BROKER_UNAVAILABLE",
                "The service cannot reach its broker now, so it cannot make the queue of the results: try again",
                {"Retry-After": "2"},
            ) from error
        self._remember(task_group_id)
        with self._lock:
            if len(self._declared) >= QUEUES_REMEMBERED:
                self._declared.clear()
            self._declared[task_group_id] = now

    def _remember(self, task_group_id: str) -> None:
        with self._database.reading() as connection:
            if connection.execute(_IS_KNOWN, {"group": task_group_id}).one_or_none() is not None:
                return
            # Whoever opens the queue of an older group asks for the results that there are.
            last = connection.execute(_LAST_SEQ, {"group": task_group_id}).scalar_one_or_none()
        row = {"task_group_id": task_group_id, "forwarded_seq": last or 0, "created_at": time.time()}
        # Another request for the same group may have been quicker.
        with contextlib.suppress(IntegrityError), self._database.writing() as connection:
            connection.execute(insert(_QUEUES), row)
        self._pruning.now_and_then(self._database)


class Forwarder:
    """The side that the dispatcher's thread uses: carries results from the ledger to the groups' queues."""

    def __init__(self, database: Database, ledger: Ledger) -> None:
        self._database = database
        self._ledger = ledger

    def behind(self, task_group_ids: Collection[str] | None = None) -> list[str]:
        """The groups that have a queue and results not yet on it: of these groups, or of all."""
        with self._database.reading() as connection:
            if task_group_ids is None:
                return list(connection.execute(_BEHIND).scalars())
            ids = list(task_group_ids)
            found: list[str] = []
            for start in range(0, len(ids), IDS_PER_QUERY):
                found += connection.execute(_BEHIND_OF, {"ids": ids[start : start + IDS_PER_QUERY]}).scalars()
            return found

    def forward(self, task_group_id: str, publish: Publish) -> bool:
        """Publish the next results of a group. True if there may be more of them."""
        with self._cursor(task_group_id) as (connection, cursor):
            if cursor is None:
                return False
            rows = self._ledger.group_results(
                task_group_id, after=cursor.forwarded_seq, limit=RESULTS_PER_TURN, max_characters=CHARACTERS_PER_TURN
            )
            if not rows:
                return False
            queue = queues.group_queue(cursor.owner_id, task_group_id)
            publish(queue, [(wire.encode(result_of(row)), int(row.completed_at)) for row in rows])
            moved = {"group": task_group_id, "seq": rows[-1].result_seq}
            if connection is not None:
                connection.execute(_MOVE, moved)
            else:
                with self._database.writing() as writer:
                    writer.execute(_MOVE, moved)
        return len(rows) > 1

    @contextlib.contextmanager
    def _cursor(self, task_group_id: str) -> Iterator[tuple[Connection | None, Row[Any] | None]]:
        """The group's cursor, which nobody else moves meanwhile, and the transaction that holds it."""
        question = {"group": task_group_id}
        if self._database.is_sqlite:
            # Its service is one process with one dispatcher, and its writers must not wait for a broker.
            with self._database.reading() as connection:
                cursor = connection.execute(_CURSOR, question).one_or_none()
            yield None, cursor
        else:
            with self._database.writing() as connection:
                yield connection, connection.execute(_CURSOR_LOCKED, question).one_or_none()


def result_of(row: Row[Any]) -> Result:
    """A task that has ended as the plain result message that every Executor reads."""
    details = {name: value for name, value in (row.details or {}).items() if name != "task_transitions"}
    if row.state == TaskState.SUCCESS:
        return Result(row.id, row.outcome or "", details or None)
    text = row.outcome or f"The task ended as {row.state}"
    return Result(row.id, text, details or None, ErrorDetails(row.error_code or "TaskFailed", text[:1000]))
