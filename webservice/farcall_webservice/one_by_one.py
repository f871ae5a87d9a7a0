"""Publishing one submission after the other when publishing them together has failed.

So none is repeated for another one's sake. What the broker does not take is set aside for a while, and longer each
time; a task that is too large for it fails.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

from amqp.exceptions import PreconditionFailed
from kombu import Connection

from farcall import wire
from farcall_webservice import queues
from farcall_webservice.catalogue import TaskMessage
from farcall_webservice.database import UNAVAILABLE
from farcall_webservice.ledger import Ledger, Outgoing
from farcall_webservice.publisher import NotTaken, Publisher

log = logging.getLogger(__name__)

TOO_LARGE = "TASK_TOO_LARGE"
#: A submission that the broker did not take is tried again after so long, and longer each time.
FIRST_ASIDE_S, LONGEST_ASIDE_S = 5.0, 600.0
ASIDES_REMEMBERED = 10_000

#: Tasks for a runner as messages.
Messages = Callable[[Publisher, str, Sequence[wire.BatchedTask]], Iterable[TaskMessage]]


class OneByOne:
    """Publishes submissions one by one, for the dispatcher's thread."""

    def __init__(self, ledger: Ledger, messages: Messages, tell: Callable[[Collection[str]], None]) -> None:
        """``tell`` is called with the groups that have news when a task has failed."""
        self._ledger = ledger
        self._messages = messages
        self._tell = tell
        #: For how long submissions were set aside the last time.
        self._asides: dict[str, float] = {}
        self._connection: Connection
        self._publisher: Publisher
        #: When the time of one that was set aside is over, on the clock of ``time.monotonic``.
        self.look_again_at = math.inf

    def publish(self, connection: Connection, publisher: Publisher, outgoing: Iterable[Outgoing]) -> Publisher:
        """Publish them and note it. Returns the publisher to go on with, as a refusal may have cost the first one."""
        self._connection, self._publisher = connection, publisher
        for batch in outgoing:
            try:
                self._publish(batch)
            except (*UNAVAILABLE, TimeoutError, BlockingIOError):
                # No submission is to blame.
                raise
            except Exception as error:
                pause = self._set_aside(batch)
                log.warning("submission %s cannot be published now, and waits %d s", batch.submission_id, pause)
                if not isinstance(error, (*connection.channel_errors, NotTaken)):
                    raise
                log.warning("the broker does not take it: %s", error)
                self._publisher = Publisher(connection)
            else:
                self._ledger.mark_dispatched([batch.submission_id])
        return self._publisher

    def _publish(self, batch: Outgoing) -> None:
        queue = queues.tasks_queue(batch.runner_id)
        for message in self._messages(self._publisher, batch.runner_id, batch.tasks):
            try:
                self._publisher.publish(queue, message.body, message.headers)
                self._publisher.confirm()
            except PreconditionFailed as error:
                if "message size" not in str(error.message):
                    raise
                self._publisher = Publisher(self._connection)
                if len(message.task_ids) == 1:
                    self._fail_too_large(message.task_ids[0], str(error.message))
                for task in batch.tasks if len(message.task_ids) > 1 else ():
                    if task.task_id in message.task_ids:
                        self._publish(replace(batch, tasks=[task]))

    def _set_aside(self, batch: Outgoing) -> float:
        if len(self._asides) >= ASIDES_REMEMBERED:
            self._asides.clear()
        pause = min(2 * self._asides.get(batch.submission_id, FIRST_ASIDE_S / 2), LONGEST_ASIDE_S)
        self._asides[batch.submission_id] = pause
        self._ledger.set_aside([batch.submission_id], pause)
        self.look_again_at = min(self.look_again_at, time.monotonic() + pause + 0.1)
        return pause

    def _fail_too_large(self, task_id: str, refusal: str) -> None:
        reason = (
            "The broker does not take a message as large as this task with its function and arguments: put large data "
            f"where the endpoint can read it and send its path ({refusal})"
        )
        log.warning("task %s is too large for the broker, and fails", task_id)
        failure = wire.Result(task_id, reason, error_details=wire.ErrorDetails(TOO_LARGE, reason))
        self._tell(self._ledger.record_results(None, [failure]))
