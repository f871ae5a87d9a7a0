"""Publishes to queues over one connection. What the broker has not confirmed does not count as published.

RabbitMQ writes to disk before it confirms, so messages are sent one after the other and waited for together. One that
finds no queue comes back; then its queue is made, and it is sent once more.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from kombu import Connection, Queue

from farcall_webservice import queues

log = logging.getLogger(__name__)

#: A connection as old as this has seen no outage of late, so whoever is not connected has not just lost the broker.
SETTLED_AFTER_S = 15.0
#: A broker that confirms nothing for so long is one that is not there.
CONFIRMED_WITHIN_S = 30.0


class NotTaken(OSError):
    """The broker has refused messages, or lost their queue twice: they have to be published again."""


class Publisher:
    """One connection's side of the broker, for one thread. See :func:`queues.connect` with ``confirm_each=False``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._producer = connection.Producer(serializer=None)
        self._connected_at = time.monotonic()
        #: By name: those that were used over this connection.
        self._queues: dict[str, Queue] = {}
        self._confirms = connection.transport.driver_type == "amqp"
        self._sent = 0
        self._unconfirmed: set[int] = set()
        self._refused = 0
        #: Queue and message of what came back.
        self._returned: list[tuple[str, Any]] = []
        if self._confirms:
            self._ask_for_confirms()

    def _ask_for_confirms(self) -> None:
        channel = self._producer.channel
        channel.confirm_select()
        channel.events["basic_ack"].add(self._on_ack)
        channel.events["basic_nack"].add(self._on_nack)
        channel.events["basic_return"].add(self._on_return)

    @property
    def is_settled(self) -> bool:
        return time.monotonic() - self._connected_at > SETTLED_AFTER_S

    def publish(self, queue: Queue, body: bytes, headers: Mapping[str, Any] | None = None) -> None:
        """Publish to a queue, which is made if it is not there. It counts once :meth:`confirm` has returned."""
        if queue.name not in self._queues:
            self._queues[queue.name] = queue
            if not self._confirms:
                queue(self._producer.channel).declare()
        self._publish(queue.name, body, headers=headers, mandatory=self._confirms)

    def publish_results(self, queue: Queue, messages: Sequence[tuple[bytes, int]]) -> None:
        """Publish to a queue that the broker would forget if it were not declared from time to time. Confirmed."""
        self._queues[queue.name] = queue
        queue(self._producer.channel).declare()
        for body, completed_at in messages:
            self._publish(queue.name, body, timestamp=completed_at, mandatory=self._confirms)
        self.confirm()

    def publish_command(self, queue: Queue, body: bytes, expires_s: int) -> None:
        """Publish a core endpoint's command. Its queue is not declared: an endpoint that was stopped has none."""
        self._publish(queue.name, body, timestamp=int(time.time()), expiration=expires_s)

    def confirm(self) -> None:
        """Wait until the broker has taken everything. Raises the transport's errors, or :class:`NotTaken`."""
        self._wait_for_confirms()
        if self._returned:
            returned, self._returned = self._returned, []
            for name in dict.fromkeys(name for name, _ in returned):
                log.info("the broker has no queue %s any more; making it anew", name)
                self._queues[name](self._producer.channel).declare()
            for name, message in returned:
                self._producer.channel.basic_publish(message, exchange="", routing_key=name, mandatory=True)
                self._count()
            self._wait_for_confirms()
        if self._returned or self._refused:
            raise NotTaken(f"the broker did not take {len(self._returned) + self._refused} messages")

    def consumers(self, queue: Queue) -> int:
        """How many consume a queue."""
        return int(queues.look_at(self._connection, queue).consumer_count)

    def empty(self, queue: Queue) -> list[str]:
        """Take what waits on a queue of tasks that come one by one; the tasks' ids."""
        bound = queue(self._producer.channel)
        ids = []
        while (message := bound.get(no_ack=True)) is not None:
            ids.append(str(message.headers.get("task_uuid")))
        return ids

    def _publish(self, name: str, body: bytes, **properties: Any) -> None:
        self._producer.publish(body, exchange="", routing_key=name, **queues.MESSAGE_PROPERTIES, **properties)
        self._count()

    def _count(self) -> None:
        if self._confirms:
            self._sent += 1
            self._unconfirmed.add(self._sent)

    def _wait_for_confirms(self) -> None:
        while self._unconfirmed:
            self._connection.drain_events(timeout=CONFIRMED_WITHIN_S)

    def _on_ack(self, number: int, multiple: bool) -> None:
        if multiple:
            self._unconfirmed = {each for each in self._unconfirmed if each > number}
        else:
            self._unconfirmed.discard(number)

    def _on_nack(self, number: int, multiple: bool) -> None:
        before = len(self._unconfirmed)
        self._on_ack(number, multiple)
        self._refused += before - len(self._unconfirmed)

    def _on_return(self, _error: Exception, _exchange: str, routing_key: str, message: Any) -> None:
        self._returned.append((routing_key, message))
