"""What lies between requests and agents: database, broker, dispatcher, collector. The test plays the agent."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kombu import Consumer, Message, Producer
from sqlalchemy import insert

from farcall import wire
from farcall_webservice import queues
from farcall_webservice.collector import Collector
from farcall_webservice.database import Database
from farcall_webservice.dispatch import Dispatcher
from farcall_webservice.ledger import Ledger, Receipt
from farcall_webservice.models import Endpoint, Function, User
from farcall_webservice.waiting import Waiting

OWNER, FUNCTION = str(uuid.uuid4()), str(uuid.uuid4())
CODE = "9\nst\nf:code\n"
TIMEOUT_S = 60


class Loop:
    """A database, a broker, and what stands between them; the test plays the agent."""

    def __init__(self, database_url: str, broker_url: str) -> None:
        self.broker_url = broker_url
        self.database = Database(database_url)
        self.ledger = Ledger(self.database)
        self.waiting = Waiting(max_waiters=10)
        self.dispatcher = Dispatcher(broker_url, self.database, self.ledger)
        self.collector = self.another_collector()
        now = time.time()
        with self.database.writing() as connection:
            connection.execute(insert(User), {"id": OWNER, "name": "ada", "created_at": now})
            connection.execute(
                insert(Function),
                {"id": FUNCTION, "owner_id": OWNER, "name": "f", "code": CODE, "created_at": now}
                | {"details": {"python_version": "3.11.7"}},
            )

    def another_collector(self) -> Collector:
        return Collector(self.broker_url, self.database, self.ledger, self.dispatcher, self.waiting)

    def add_endpoint(self, **details: object) -> str:
        endpoint_id, now = str(uuid.uuid4()), time.time()
        with self.database.writing() as connection:
            connection.execute(
                insert(Endpoint),
                {"id": endpoint_id, "owner_id": OWNER, "name": "e", "details": details}
                | {"created_at": now, "registered_at": now},
            )
        return endpoint_id

    def submit(self, endpoint_id: str, count: int = 1, **options: object) -> Receipt:
        receipt = self.ledger.submit(
            owner_id=OWNER, endpoint_id=endpoint_id, payloads={FUNCTION: ["p"] * count}, options=options
        )
        self.dispatcher.send(receipt.outgoing)
        return receipt

    def take(self, endpoint_id: str, messages: int = 1) -> list[tuple[wire.Message, dict[str, str]]]:
        """Receive so many messages of an endpoint's task queue, and leave what follows them there."""
        received: list[Message] = []
        queue = queues.tasks_queue(endpoint_id)
        with queues.connect(self.broker_url) as connection:
            consumer = Consumer(connection.channel(), [queue], on_message=received.append, prefetch_count=messages)
            with consumer:
                while len(received) < messages:
                    connection.drain_events(timeout=TIMEOUT_S)
            # Not before, since for each that is acknowledged another one is sent.
            for message in received:
                message.ack()
        return [(wire.decode(_bytes(message.body)), dict(message.headers)) for message in received]

    def say(self, endpoint_id: str, queue: queues.Queue, body: bytes) -> None:
        """Publish as an endpoint's agent does."""
        with queues.connect(self.broker_url) as connection:
            Producer(connection.channel()).publish(
                body,
                exchange=queue.exchange,
                routing_key=f"{endpoint_id}.{queue.name}",
                declare=[queue],
                **queues.MESSAGE_PROPERTIES,
            )

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            assert time.monotonic() < deadline, "it did not happen"
            time.sleep(0.01)

    def state_of(self, task_id: str) -> str:
        return str(self.ledger.tasks([task_id])[0].state)

    @contextmanager
    def running(self) -> Iterator[Loop]:
        self.dispatcher.start()
        self.collector.start()
        yield self
        self.collector.stop()
        self.dispatcher.stop()
        self.database.close()


def _bytes(body: str | bytes) -> bytes:
    """Over AMQP, what is marked as UTF-8 comes as text."""
    return body.encode() if isinstance(body, str) else body
