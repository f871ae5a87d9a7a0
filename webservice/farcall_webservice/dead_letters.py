"""Messages that nobody can use: kept on a queue of the broker, each with the reason, until an administrator looks.

There is no way back from there: nothing in the service consumes that queue. It holds the newest letters; where a new
one finds it full, the oldest goes.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from amqp.exceptions import MessageNacked
from kombu import Connection, Message, Queue
from kombu.utils.json import loads

from farcall.wire import MOST_DEAD_LETTER_BYTES
from farcall_webservice import queues
from farcall_webservice.fields import iso

log = logging.getLogger(__name__)

MOST_LETTERS = 1000
QUEUE = Queue("dead-letters", durable=True, max_length=MOST_LETTERS)

#: A broker takes headers of some kilobytes, and people read sentences.
_MOST_CHARACTERS = 2000


@dataclass(frozen=True)
class Letter:
    """A message that was set aside; ``body`` is the first 64 KiB of it and ``size`` says how many bytes it had.

    ``queue`` is where it came from and ``sender`` who sent it, as far as that is known; ``time`` is when it was set
    aside, in the form of all the service's times.
    """

    reason: str
    queue: str
    sender: str
    body: bytes
    size: int
    time: str = field(default_factory=lambda: iso(time.time()))
    id: str = field(default_factory=lambda: secrets.token_hex(4))

    @classmethod
    def of(cls, body: bytes, *, reason: str, queue: str, sender: str | None, size: int | None = None) -> Letter:
        """A letter with no more than is kept of it."""
        return cls(
            _short(reason),
            _short(queue),
            _short(sender or "unknown"),
            body[:MOST_DEAD_LETTER_BYTES],
            len(body) if size is None else size,
        )

    @property
    def headers(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "reason": self.reason,
            "queue": self.queue,
            "sender": self.sender,
            "time": self.time,
            "size": self.size,
        }


def file(broker_url: str, letters: Sequence[Letter]) -> None:
    """Put letters on the queue; when this returns the broker has them. Raises the transport's error if it is away.

    What a broker that is there does not take is in the log alone: it must not hold up what can be used.
    """
    for letter in letters:
        log.warning(
            "set aside a message of %d bytes (dead letter %s) from queue %s, sender %s: %s",
            letter.size,
            letter.id,
            letter.queue,
            letter.sender,
            letter.reason,
        )
    # A connection of their own: while one waits here for confirms, nothing else may arrive.
    with queues.connect(broker_url) as connection:
        try:
            _publish(connection, letters)
        except (*connection.channel_errors, MessageNacked) as error:
            log.error("the broker does not take dead letters, so that their bodies are lost: %s", error)


def letters(broker_url: str) -> list[Letter]:
    """All there are, oldest first; they stay where they are. Raises the transport's errors."""
    with queues.connect(broker_url) as connection:
        messages = _in_amqp(connection) if queues.speaks_amqp(broker_url) else _in_valkey(connection)
        return [_letter(message) for message in messages]


def purge(broker_url: str) -> int:
    """Remove all letters, and say how many there were. Raises the transport's errors."""
    with queues.connect(broker_url) as connection:
        queues.look_at(connection, QUEUE)
        return int(QUEUE(connection.default_channel).purge() or 0)


def _publish(connection: Connection, letters: Sequence[Letter]) -> None:
    queues.look_at(connection, QUEUE)
    producer = connection.Producer(serializer=None)
    for letter in letters:
        producer.publish(
            letter.body,
            exchange="",
            routing_key=QUEUE.name,
            headers=letter.headers,
            content_type="application/octet-stream",
            content_encoding="binary",
            delivery_mode=2,
        )
    if connection.transport.driver_type == "redis":
        # It knows no longest length. Kombu puts what is new to the left.
        producer.channel.client.ltrim(QUEUE.name, 0, MOST_LETTERS - 1)


def _in_amqp(connection: Connection) -> Iterator[Message]:
    count = queues.look_at(connection, QUEUE).message_count
    # What is not acknowledged when the channel is closed takes its old place in the queue.
    with connection.channel() as channel:
        for _ in range(count):
            message = QUEUE(channel).get()
            if message is None:
                return
            yield message


def _in_valkey(connection: Connection) -> Iterator[Message]:
    channel = connection.default_channel
    for text in reversed(channel.client.lrange(QUEUE.name, 0, -1)):
        yield channel.Message(loads(text), channel=channel)


def _letter(message: Message) -> Letter:
    headers = message.headers
    body = message.body or b""
    return Letter(
        str(headers.get("reason")),
        str(headers.get("queue")),
        str(headers.get("sender")),
        body.encode("utf-8", "surrogatepass") if isinstance(body, str) else bytes(body),
        int(headers.get("size") or len(body)),
        str(headers.get("time")),
        str(headers.get("id")),
    )


def _short(text: str) -> str:
    """In a form and a length that every broker takes in a header."""
    clean = text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
    return clean if len(clean) <= _MOST_CHARACTERS else f"{clean[:_MOST_CHARACTERS]}..."
