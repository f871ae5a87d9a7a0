"""The user endpoints of core endpoints: which there are, whether they run, and what to do when one does not.

All of it is in the database, so that any process can act. A child is in one of three phases::

    down  --- tasks for it, its parent online: what was lost sent again, start command -->  awaited
    awaited  --- its first heartbeat -->  up
    awaited  --- no heartbeat for AWAITED_S: the same once more, MOST_ATTEMPTS times, then its tasks fail -->  awaited
    awaited  --- its parent reports that it cannot be started: its tasks fail -->  down
    up  --- it says goodbye -->  down
    up  --- at two looks nobody consumes its queue: what it has not answered is sent again -->  awaited

A child acknowledges a task when it has taken it, so one that dies takes tasks with it. What it has is known to nobody:
so when it is gone, every task that it has not answered and that is not on its queue is sent again. A child counts as
gone only when the broker knows no consumer of its queue, for as long as it is connected it may be about to answer; and
as it may have lost its connection for a moment, only at the second look, a while after the first.

Nothing is polled. Children are looked at when tasks are published to them, when they say goodbye, and with each
heartbeat of their parent.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, Table, bindparam, exists, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from farcall.errors import FarcallError
from farcall.wire import BatchedTask, ErrorDetails, Result
from farcall_webservice import foreign
from farcall_webservice.accounts import Accounts
from farcall_webservice.database import Database
from farcall_webservice.ledger import Ledger
from farcall_webservice.liveness import is_recent
from farcall_webservice.management import ManagementError
from farcall_webservice.models import Endpoint, Task, User

log = logging.getLogger(__name__)

#: A child that has sent no heartbeat for so long after its start command is started again, but not more often than so.
AWAITED_S = 60.0
MOST_ATTEMPTS = 5
#: A task that was sent so often, and lost each time with the child that took it, is not sent again.
MOST_SENDS = 3
_LOST_TOO_OFTEN = (
    f"This task was sent {MOST_SENDS} times to a user endpoint that ended before it had answered. "
    "It may be what ends it, so it is not sent again"
)
#: A child without a connection may be about to make a new one. When there is none after so long, it is not.
SECOND_LOOK_S = 15.0
#: How long a first look counts: nobody may have looked since.
LOOK_COUNTS_S = 60.0
#: So many children of an endpoint may run for a user, or have tasks, for another one to be made.
MOST_ACTIVE = 100
#: When no account could be made at the broker, none is tried for so long.
NO_ACCOUNT_S = 60.0

START_FAILED, DID_NOT_START, LOST = "USER_ENDPOINT_START_FAILED", "USER_ENDPOINT_DID_NOT_START", "USER_ENDPOINT_LOST"

assert isinstance(Endpoint.__table__, Table) and isinstance(User.__table__, Table) and isinstance(Task.__table__, Table)
_ENDPOINTS, _USERS, _TASKS = Endpoint.__table__, User.__table__, Task.__table__
_PARENTS = _ENDPOINTS.alias("parents")


class Phase(enum.StrEnum):
    """Where a child is; see the module."""

    DOWN = "down"
    AWAITED = "awaited"
    UP = "up"


@dataclass(frozen=True)
class Start:
    """A start that is to be carried out, in this order: send the tasks that are not on its queue, send the command."""

    parent_id: str
    tasks: Sequence[BatchedTask]
    command: bytes
    #: Groups with tasks that have failed, as they are not worth another try.
    news: Collection[str]


@dataclass(frozen=True)
class Circumstances:
    """What the dispatcher sees when it looks at a child."""

    #: How many consume its queue: one or none.
    consumers: int
    #: Whether tasks are about to be published to it.
    publishing: bool
    #: Whether the broker has been there for long enough that those who lost it have found it again.
    settled: bool


class Verdict(enum.Enum):
    """What is to be done about a child that is looked at."""

    LEAVE = enum.auto()
    #: It is missed; it counts as gone if it is still missed then.
    LOOK_AGAIN = enum.auto()
    START = enum.auto()


class TooMany(FarcallError):
    """A user has so many user endpoints at an endpoint that there is to be no other one."""


def adopt(database: Database, parent: Row[Any], user_id: str, config: Mapping[str, Any] | None) -> str:
    """The id of the child that runs this user's tasks with this configuration; made if it is new.

    Raises :class:`TooMany`.
    """
    child_id = foreign.child_id(parent.id, user_id, config or {})
    with database.reading() as connection:
        if connection.execute(select(_ENDPOINTS.c.id).where(_ENDPOINTS.c.id == child_id)).one_or_none() is not None:
            return child_id
        if connection.execute(_COUNT_ACTIVE, {"parent": parent.id, "owner": user_id}).scalar_one() >= MOST_ACTIVE:
            raise TooMany(
                f"Endpoint {parent.id} has {MOST_ACTIVE} user endpoints of yours that run or have tasks, one for each "
                "user_endpoint_config: use fewer different ones, or submit again when some of them have ended"
            )
    now = time.time()
    row = {
        "id": child_id,
        "owner_id": user_id,
        "name": parent.name,
        "public": False,
        "details": {},
        "created_at": now,
        "registered_at": now,
        "parent_id": parent.id,
        "user_endpoint_config": dict(config or {}),
        "phase": Phase.DOWN.value,
        "attempts": 0,
    }
    # Another request may have been quicker.
    with contextlib.suppress(IntegrityError), database.writing() as connection:
        connection.execute(insert(_ENDPOINTS), row)
    return child_id


def children_of(database: Database, parent_id: str) -> list[Row[Any]]:
    """The whole rows of an endpoint's children."""
    with database.reading() as connection:
        return list(connection.execute(_CHILDREN, {"parent": parent_id}))


def verdict(child: Row[Any], seen: Circumstances, missed_for_s: float, now: float) -> Verdict:
    """What is to be done about a child that has tasks. It has been without a consumer for ``missed_for_s``."""
    if seen.consumers or not _parent_takes_commands(child, now):
        return Verdict.LEAVE
    if child.phase == Phase.DOWN:
        return Verdict.START
    if child.phase == Phase.AWAITED:
        is_overdue = now - child.awaited_since >= AWAITED_S
        again = is_overdue and not seen.publishing and child.attempts < MOST_ATTEMPTS
        return Verdict.START if again else Verdict.LEAVE
    return Verdict.START if seen.settled and missed_for_s >= SECOND_LOOK_S else Verdict.LOOK_AGAIN


def _parent_takes_commands(child: Row[Any], now: float) -> bool:
    if child.parent_deleted_at is not None or (child.parent_locked_until or 0) > now:
        return False
    return is_recent(child.parent_last_heartbeat_at, child.parent_heartbeat_period, now)


class Children:
    """The children of all core endpoints, over one database."""

    def __init__(
        self,
        accounts: Accounts,
        database: Database,
        ledger: Ledger,
        look_again: Callable[[str, float], None] = lambda child_id, in_s: None,
    ) -> None:
        """``look_again`` is called with the id of a child to be looked at once more, and in how many seconds."""
        self._accounts = accounts
        self._database = database
        self._ledger = ledger
        self._look_again = look_again
        #: Since when those are missed that should be there.
        self._missed_since: dict[str, float] = {}
        self._no_account_until = 0.0

    def with_unfinished_tasks(self, parent_id: str) -> list[str]:
        """The ids of an endpoint's children that have tasks to answer."""
        with self._database.reading() as connection:
            return list(connection.execute(_WITH_TASKS, {"parent": parent_id}).scalars())

    def start(self, child_id: str, seen: Circumstances) -> Start | None:
        """If the child has to be started: take that on, and return what is to be published for it."""
        now = time.time()
        with self._database.reading() as connection:
            child = connection.execute(_CHILD_AND_PARENT, {"child": child_id}).one_or_none()
        if child is None:
            return None
        to_do = verdict(child, seen, self._missed_for_s(child_id, seen), now)
        if to_do == Verdict.LOOK_AGAIN:
            self._look_again(child_id, SECOND_LOOK_S)
        if to_do != Verdict.START:
            return None
        self._missed_since.pop(child_id, None)
        sent = self._ledger.sent(child_id)
        url = self._account_url(child) if sent or seen.publishing else None
        if url is None or not self._take_on(child, now):
            return None
        # When its parent was stopped or died, no task of the child's is to blame.
        were_lost = child.phase != Phase.AWAITED and child.parent_registered_at < (child.last_heartbeat_at or 0)
        hopeless = {task_id: _LOST_TOO_OFTEN for task_id, times in sent.items() if were_lost and times >= MOST_SENDS}
        if were_lost:
            hopeless |= self._ledger.hopeless(sent.keys() - hopeless.keys(), were_taken=True)
        news = self._fail_lost(hopeless) if hopeless else set()
        again = self._ledger.resend(list(sent.keys() - hopeless.keys()), as_lost=were_lost)
        log.info("starting user endpoint %s of endpoint %s; %d tasks wait for it", child_id, child.parent_id, len(sent))
        user = foreign.Identity(child.owner_id, child.owner_name)
        command = foreign.start_command(child.parent_id, child_id, user, child.user_endpoint_config or {}, url)
        return Start(child.parent_id, [task for batch in again for task in batch.tasks], command, news)

    def _missed_for_s(self, child_id: str, seen: Circumstances) -> float:
        now = time.monotonic()
        if seen.consumers or not seen.settled:
            self._missed_since.pop(child_id, None)
            return 0.0
        since = self._missed_since.get(child_id)
        if since is None or now - since > LOOK_COUNTS_S:
            since = self._missed_since[child_id] = now
        return now - since

    def _account_url(self, child: Row[Any]) -> str | None:
        """The broker's URL for a child; None if it has to wait for its account, as does what it was sent."""
        wait_s = self._no_account_until - time.monotonic()
        if wait_s <= 0:
            try:
                return self._accounts.for_endpoint(child.id, child.parent_reached_as)
            except ManagementError as error:
                log.error("user endpoint %s cannot be started: %s", child.id, error)
                wait_s = NO_ACCOUNT_S
                self._no_account_until = time.monotonic() + wait_s
        self._look_again(child.id, wait_s)
        return None

    def _fail_lost(self, reasons: Mapping[str, str]) -> set[str]:
        failures = [
            Result(task_id, reason, error_details=ErrorDetails(LOST, reason)) for task_id, reason in reasons.items()
        ]
        return self._ledger.record_results(None, failures)

    def _take_on(self, child: Row[Any], now: float) -> bool:
        """Go to AWAITED, unless another process has seen the same and was quicker."""
        attempts = child.attempts + 1 if child.phase == Phase.AWAITED else 1
        where = {"child": child.id, "was": child.phase, "since": child.awaited_since}
        query = _AWAIT_AGAIN if child.awaited_since is not None else _AWAIT_FIRST
        with self._database.writing() as connection:
            result = connection.execute(query, {**where, "now": now, "made": attempts})
        return result.rowcount == 1

    def heard(self, child_id: str, *, goodbye: bool) -> None:
        """Note that a child has sent a heartbeat, or its last one."""
        with self._database.writing() as connection:
            if goodbye:
                # One that was started again meanwhile has not said it.
                connection.execute(_DOWN, {"child": child_id, "was": Phase.UP.value})
            else:
                connection.execute(_CAME, {"child": child_id})

    def start_failed(self, child_id: str, text: str) -> set[str]:
        """Its parent could not start a child: what waits for it fails. Returns the groups that have news."""
        if foreign.must_only_wait(text):
            self._try_again_later(child_id)
            return set()
        with self._database.writing() as connection:
            if connection.execute(_DOWN, {"child": child_id, "was": Phase.AWAITED.value}).rowcount != 1:
                # It was said before, and what was sent since then is another start's.
                return set()
        reason = f"The endpoint could not start a user endpoint for this task: {text}"
        return self._ledger.fail_tasks_of_runner(child_id, reason, code=START_FAILED)

    def _try_again_later(self, child_id: str) -> None:
        """Wait for one of a child's heartbeat periods. Its file is fresh for three of them; MOST_ATTEMPTS are more."""
        with self._database.writing() as connection:
            child = connection.execute(_CHILD_AND_PARENT, {"child": child_id}).one()
            wait_s = child.heartbeat_period or foreign.USUAL_PERIOD_S
            again_at = {"child": child_id, "since": time.time() + wait_s - AWAITED_S}
            if connection.execute(_AWAIT_LONGER, again_at).rowcount == 1:
                self._look_again(child_id, wait_s)

    def give_up(self, child_id: str) -> set[str]:
        """Fail the tasks of a child that was started often enough and never came. Returns the groups that have news."""
        with self._database.reading() as connection:
            child = connection.execute(_CHILD_AND_PARENT, {"child": child_id}).one()
        is_overdue = child.phase == Phase.AWAITED and time.time() - child.awaited_since >= AWAITED_S
        if not is_overdue or child.attempts < MOST_ATTEMPTS:
            return set()
        with self._database.writing() as connection:
            if connection.execute(_GIVE_UP, {"child": child_id, "since": child.awaited_since}).rowcount != 1:
                return set()
        reason = (
            f"The endpoint was told {child.attempts} times to start a user endpoint for this task, which sent no "
            f"heartbeat: look into ~/.globus_compute/uep.{child.parent_id}.{child_id}/endpoint.log there"
        )
        return self._ledger.fail_tasks_of_runner(child_id, reason, code=DID_NOT_START)


_CHILDREN = select(_ENDPOINTS).where(_ENDPOINTS.c.parent_id == bindparam("parent"))
_HAS_TASKS = exists().where(_TASKS.c.runner_id == _ENDPOINTS.c.id, _TASKS.c.completed_at.is_(None))
_WITH_TASKS = select(_ENDPOINTS.c.id).where(_ENDPOINTS.c.parent_id == bindparam("parent"), _HAS_TASKS)
_COUNT_ACTIVE = select(func.count()).where(
    _ENDPOINTS.c.parent_id == bindparam("parent"),
    _ENDPOINTS.c.owner_id == bindparam("owner"),
    or_(_ENDPOINTS.c.phase != Phase.DOWN.value, _HAS_TASKS),
)
_CHILD_AND_PARENT = (
    select(
        _ENDPOINTS,
        _USERS.c.name.label("owner_name"),
        *(
            _PARENTS.c[name].label(f"parent_{name}")
            for name in (
                "registered_at",
                "last_heartbeat_at",
                "heartbeat_period",
                "locked_until",
                "deleted_at",
                "reached_as",
            )
        ),
    )
    .join(_PARENTS, _PARENTS.c.id == _ENDPOINTS.c.parent_id)
    .join(_USERS, _USERS.c.id == _ENDPOINTS.c.owner_id)
    .where(_ENDPOINTS.c.id == bindparam("child"))
)
_CAME = update(_ENDPOINTS).where(_ENDPOINTS.c.id == bindparam("child")).values(phase=Phase.UP.value)
_DOWN = (
    update(_ENDPOINTS)
    .where(_ENDPOINTS.c.id == bindparam("child"), _ENDPOINTS.c.phase == bindparam("was"))
    .values(phase=Phase.DOWN.value)
)
_GIVE_UP = (
    update(_ENDPOINTS)
    .where(
        _ENDPOINTS.c.id == bindparam("child"),
        _ENDPOINTS.c.phase == Phase.AWAITED.value,
        _ENDPOINTS.c.awaited_since == bindparam("since"),
    )
    .values(phase=Phase.DOWN.value)
)
_AWAIT_LONGER = (
    update(_ENDPOINTS)
    .where(_ENDPOINTS.c.id == bindparam("child"), _ENDPOINTS.c.phase == Phase.AWAITED.value)
    .values(awaited_since=bindparam("since"))
)
_AWAIT = (
    update(_ENDPOINTS)
    .where(_ENDPOINTS.c.id == bindparam("child"), _ENDPOINTS.c.phase == bindparam("was"))
    .values(phase=Phase.AWAITED.value, awaited_since=bindparam("now"), attempts=bindparam("made"))
)
_AWAIT_AGAIN = _AWAIT.where(_ENDPOINTS.c.awaited_since == bindparam("since"))
_AWAIT_FIRST = _AWAIT.where(_ENDPOINTS.c.awaited_since.is_(None))
