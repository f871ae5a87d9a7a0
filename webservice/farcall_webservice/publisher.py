"""Publishes to queues over one connection. What the broker has not confirmed does not count as published.

RabbitMQ writes to disk before it confirms, so messages are sent one after the other and waited for together. One that
finds no queue comes back; then its queue is made, and it is sent once more.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from amqp.exceptions import PreconditionFailed
from kombu import Connection, Consumer, Message, Queue

from farcall_webservice import queues

log = logging.getLogger(__name__)

#: A connection as old as this has seen no outage of late, so whoever is not connected has not just lost the broker.
SETTLED_AFTER_S = 15.0
#: A broker that confirms nothing for so long is one that is not there.
CONFIRMED_WITHIN_S = 30.0
#: How long to look for something to read; py-amqp cannot look without waiting.
READ_S = 0.001
#: What has not been seen of a queue's messages after so long is not waited for.
LOOKED_THROUGH_WITHIN_S = 10.0
#: A broker to whom a queue has to be declared before each first use need not be told of so many again.
QUEUES_REMEMBERED = 10_000


class NotTaken(OSError):
    """The broker has refused messages, or lost their queue twice: they have to be published again."""


class Publisher:
    """A channel to the broker, for one thread. See :func:`queues.connect` with ``confirm_each=False``.

    What the broker refuses may cost the channel, but not the connection: then another publisher is needed.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._producer = connection.Producer(connection.channel(), serializer=None)
        self._connected_at = time.monotonic()
        #: For declarations, as the broker closes the channel of one that it refuses.
        self._side: Any = None
        #: By name: where it went what is not confirmed yet; with a broker that confirms nothing, what was declared.
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

    def show_life(self) -> None:
        """Read what the broker has sent, and send a heartbeat if one is due. For when there is nothing else to do.

        The broker's own heartbeats count only once they are read, and nothing else is read where nothing is published.
        """
        if self._confirms:
            with contextlib.suppress(TimeoutError):
                while True:
                    self._connection.drain_events(timeout=READ_S)
        queues.show_life(self._connection)

    def publish(self, queue: Queue, body: bytes, headers: Mapping[str, Any] | None = None) -> None:
        """Publish to a queue, which is made if it is not there. It counts once :meth:`confirm` has returned."""
        if queue.name not in self._queues:
            self._queues[queue.name] = queue
            if not self._confirms:
                self._declare(queue)
        self._publish(queue.name, body, headers=headers, mandatory=self._confirms)

    def publish_results(self, queue: Queue, messages: Sequence[tuple[bytes, int]]) -> None:
        """Publish to a queue that the broker would forget if it were not declared from time to time. Confirmed."""
        self._queues[queue.name] = queue
        self._declare(queue)
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
                self._declare(self._queues[name])
            for name, message in returned:
                self._producer.channel.basic_publish(message, exchange="", routing_key=name, mandatory=True)
                self._count()
            self._wait_for_confirms()
        if self._returned or self._refused:
            raise NotTaken(f"the broker did not take {len(self._returned) + self._refused} messages")
        if self._confirms or len(self._queues) > QUEUES_REMEMBERED:
            self._queues.clear()

    def look_at(self, queue: Queue) -> Any:
        """``message_count`` and ``consumer_count`` of a queue, which is made if it is not there."""
        return self._declare(queue)

    def look_through(self, queue: Queue, ended: Callable[[Sequence[str]], Collection[str]]) -> set[str]:
        """The ids of the tasks that wait on a queue of tasks that come one by one, once each.

        They keep their places, but for those that ``ended`` names when it is asked about them all.
        """
        tags: dict[str, int] = {}
        twice = []

        def note(message: Message) -> None:
            task_id = str(message.headers.get("task_uuid"))
            if task_id in tags:
                twice.append(message.delivery_tag)
            else:
                tags[task_id] = message.delivery_tag

        deadline = time.monotonic() + LOOKED_THROUGH_WITHIN_S
        # What is not acknowledged when the channel is closed takes its old place in the queue.
        with self._connection.channel() as channel:
            count = self._declare(queue).message_count
            with Consumer(channel, [queue], on_message=note, auto_declare=False), contextlib.suppress(TimeoutError):
                while len(tags) + len(twice) < count and (remaining_s := deadline - time.monotonic()) > 0:
                    self._connection.drain_events(timeout=remaining_s)
            gone = ended(list(tags))
            for tag in (*twice, *(tags[task_id] for task_id in gone)):
                channel.basic_ack(tag)
        return tags.keys() - gone

    def _publish(self, name: str, body: bytes, **properties: Any) -> None:
        self._producer.publish(body, exchange="", routing_key=name, **queues.MESSAGE_PROPERTIES, **properties)
        self._count()

    def _count(self) -> None:
        if self._confirms:
            self._sent += 1
            self._unconfirmed.add(self._sent)

    def _declare(self, queue: Queue) -> Any:
        if self._side is None:
            self._side = self._connection.channel()
        try:
            return queue(self._side).queue_declare()
        except PreconditionFailed:
            self._side = None
            return queues.look_at(self._connection, queue)

    def _wait_for_confirms(self) -> None:
        # A deadline over all of it: the broker's heartbeats arrive here too, and say nothing of a confirm.
        deadline = time.monotonic() + CONFIRMED_WITHIN_S
        while self._unconfirmed:
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                raise TimeoutError(f"the broker has not confirmed {len(self._unconfirmed)} messages")
            self._connection.drain_events(timeout=remaining_s)

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
