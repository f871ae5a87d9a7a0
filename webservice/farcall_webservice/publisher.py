"""Publishes to queues over one channel, each declared before it is used."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from kombu import Connection, Queue

from farcall_webservice import queues

#: A connection as old as this has seen no outage of late, so whoever is not connected has not just lost the broker.
SETTLED_AFTER_S = 15.0


class Publisher:
    """One connection's side of the broker, for one thread."""

    def __init__(self, connection: Connection) -> None:
        self._producer = connection.Producer(serializer=None)
        self._declared: set[str] = set()
        self._connected_at = time.monotonic()

    @property
    def is_settled(self) -> bool:
        return time.monotonic() - self._connected_at > SETTLED_AFTER_S

    def publish(self, queue: str, body: bytes, headers: Mapping[str, Any] | None = None) -> None:
        if queue not in self._declared:
            Queue(queue, durable=True)(self._producer.channel).declare()
            self._declared.add(queue)
        self._producer.publish(body, exchange="", routing_key=queue, headers=headers, **queues.MESSAGE_PROPERTIES)

    def publish_results(self, queue: Queue, messages: Sequence[tuple[bytes, int]]) -> None:
        """Publish to a queue that the broker may have forgotten meanwhile."""
        queue(self._producer.channel).declare()
        for body, completed_at in messages:
            self._producer.publish(
                body, exchange="", routing_key=queue.name, timestamp=completed_at, **queues.MESSAGE_PROPERTIES
            )

    def publish_command(self, queue: Queue, body: bytes, expires_s: int) -> None:
        """Publish a core endpoint's command. Its queue is not declared: an endpoint that was stopped has none."""
        self._producer.publish(
            body,
            exchange="",
            routing_key=queue.name,
            timestamp=int(time.time()),
            expiration=expires_s,
            **queues.MESSAGE_PROPERTIES,
        )

    def consumers(self, queue: Queue) -> int:
        """How many consume a queue."""
        return int(queue(self._producer.channel).queue_declare().consumer_count)

    def clear(self, queue: Queue) -> None:
        """Drop what waits on a queue."""
        queue(self._producer.channel).purge()
