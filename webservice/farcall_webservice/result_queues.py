"""The queues of task groups, as requests see them: made before the submit is answered that wants one.

`forward` puts results on them.
"""

from __future__ import annotations

import contextlib
import threading
import time

from sqlalchemy import Table, bindparam, insert, select
from sqlalchemy.exc import IntegrityError

from farcall_webservice import queues
from farcall_webservice.database import Database
from farcall_webservice.errors import broker_unavailable
from farcall_webservice.models import ResultQueue, TaskGroup
from farcall_webservice.pruning import Pruning

#: A queue that was declared so recently need not be declared again. Its owner may delete it, and would then miss it.
DECLARED_FOR_S = 60.0
QUEUES_REMEMBERED = 10_000

assert isinstance(ResultQueue.__table__, Table) and isinstance(TaskGroup.__table__, Table)
_QUEUES, _GROUPS = ResultQueue.__table__, TaskGroup.__table__
_LAST_SEQ = select(_GROUPS.c.last_result_seq).where(_GROUPS.c.id == bindparam("group"))
_IS_KNOWN = select(_QUEUES.c.created_at).where(_QUEUES.c.task_group_id == bindparam("group"))


class ResultQueues:
    """Which groups have queues."""

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
        except queues.errors_of(self._broker_url) as error:
            raise broker_unavailable(
                "The service cannot reach its broker now, so it cannot make the queue of the results: try again"
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
