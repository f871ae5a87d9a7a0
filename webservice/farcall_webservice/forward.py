"""Results over AMQP, for Globus Compute's Executor: every task group that wants one has a queue of its results.

A group numbers its results; forwarding is a cursor over those numbers, kept with the group's row in ``result_queues``
and moved after the broker has confirmed. So nothing is lost when a process or the broker dies in between, and what is
sent twice the Executor drops. Nothing but a result may ever be on such a queue: the Executor puts back what it cannot
read, and takes it again, without end.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import math
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import kombu
from kombu import Queue
from sqlalchemy import Connection, Row, Table, bindparam, select, update

from farcall import wire
from farcall.wire import ErrorDetails, Result, TaskState
from farcall_webservice import queues
from farcall_webservice.database import Database
from farcall_webservice.ledger import IDS_PER_QUERY, Ledger
from farcall_webservice.models import ResultQueue, TaskGroup
from farcall_webservice.publisher import NotTaken, Publisher

log = logging.getLogger(__name__)

#: So many results of a group, or characters of them, go out before the next group has its turn.
RESULTS_PER_TURN = 200
CHARACTERS_PER_TURN = 16 * 1024 * 1024
#: A group whose results the broker does not take waits so long, and one whose turn another process has.
REFUSED_PAUSE_S = 30.0
TAKEN_PAUSE_S = 1.0

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
#: Whoever holds it publishes to a broker that may be slow; nobody else has to wait for that.
_CURSOR_LOCKED = _CURSOR.with_for_update(of=_QUEUES, skip_locked=True)
_MOVE = update(_QUEUES).where(_QUEUES.c.task_group_id == bindparam("group")).values(forwarded_seq=bindparam("seq"))


class Turn(enum.Enum):
    """How it went when a group had its turn."""

    DONE = enum.auto()
    #: There may be more.
    MORE = enum.auto()
    #: Another process is at it.
    TAKEN = enum.auto()


class Forwarder:
    """Carries results from the ledger to the groups' queues, for one thread. `result_queues` makes them."""

    def __init__(self, database: Database, ledger: Ledger) -> None:
        self._database = database
        self._ledger = ledger
        self._broker: kombu.Connection
        self._publisher: Publisher
        #: Groups that have to wait for their turn, and until when.
        self._not_before: dict[str, float] = {}

    def use(self, broker: kombu.Connection) -> None:
        """Publish over this connection from now on."""
        self._broker = broker
        # Its own, as it is lost when the broker refuses something: that is no other one's affair.
        self._publisher = Publisher(broker)

    def next_due(self) -> float:
        """When the next of the groups that have to wait gets its turn, as monotonic time."""
        return min(self._not_before.values(), default=math.inf)

    def take_due(self) -> set[str]:
        """Those of them whose time has come."""
        now = time.monotonic()
        due = {each for each, at in self._not_before.items() if at <= now}
        for each in due:
            del self._not_before[each]
        return due

    def take_turns(self, task_group_ids: Collection[str]) -> list[str]:
        """Give each of these groups that is behind a turn. Returns those that may want another one at once."""
        more = []
        for each in self.behind([each for each in task_group_ids if each not in self._not_before]):
            try:
                turn = self.forward(each, self._publisher.publish_results)
            except (*self._broker.channel_errors, NotTaken) as error:
                log.warning("the results of task group %s wait %d s: %s", each, REFUSED_PAUSE_S, error)
                self._not_before[each] = time.monotonic() + REFUSED_PAUSE_S
                self._publisher = Publisher(self._broker)
                continue
            if turn == Turn.MORE:
                more.append(each)
            elif turn == Turn.TAKEN:
                self._not_before[each] = time.monotonic() + TAKEN_PAUSE_S
        return more

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

    def forward(self, task_group_id: str, publish: Publish) -> Turn:
        """Publish the next results of a group."""
        with self._cursor(task_group_id) as (connection, cursor):
            if cursor is None:
                return Turn.TAKEN
            rows = self._ledger.group_results(
                task_group_id, after=cursor.forwarded_seq, limit=RESULTS_PER_TURN, max_characters=CHARACTERS_PER_TURN
            )
            if not rows:
                return Turn.DONE
            queue = queues.group_queue(cursor.owner_id, task_group_id)
            publish(queue, [(wire.encode(result_of(row)), int(row.completed_at)) for row in rows])
            moved = {"group": task_group_id, "seq": rows[-1].result_seq}
            if connection is not None:
                connection.execute(_MOVE, moved)
            else:
                with self._database.writing() as writer:
                    writer.execute(_MOVE, moved)
        return Turn.MORE if len(rows) > 1 else Turn.DONE

    @contextlib.contextmanager
    def _cursor(self, task_group_id: str) -> Iterator[tuple[Connection | None, Row[Any] | None]]:
        """The group's cursor, which nobody else moves meanwhile, and the transaction that holds it; or no cursor."""
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
