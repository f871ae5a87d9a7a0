"""A service on a RabbitMQ, with stand-ins for Globus Compute's programs that speak with it by hand."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from kombu import Connection, Consumer, Message, Producer, Queue

from farcall import wire
from farcall_webservice import auth, queues
from farcall_webservice.app import create_app
from farcall_webservice.collector import Collector
from farcall_webservice.config import ServiceConfig
from farcall_webservice.database import Database
from farcall_webservice.dispatch import Dispatcher
from farcall_webservice.ledger import Ledger
from farcall_webservice.waiting import Waiting

from .conftest import Person

TIMEOUT_S = 30
#: What a core endpoint of Globus Compute 4 says of itself.
CORE = {"endpoint_version": "4.19.0", "python_version": "3.11.7", "hostname": "login1", "user_config_template": "x"}
#: What a user endpoint says when it has nothing to do, and when it has.
IDLE, BUSY = {"outstanding_tasks": 0, "pending_tasks": 0}, {"outstanding_tasks": 1, "pending_tasks": 0}


class World:
    """Application, dispatcher and collector over one database and one virtual host of a broker."""

    def __init__(self, home: Path, database_url: str, broker_url: str) -> None:
        config = ServiceConfig.from_environment({}, home=home, database_url=database_url)
        self.config = replace(config, broker_url=broker_url)
        self.broker_url = broker_url
        self.database = Database(self.config.database_url)
        self.ledger = Ledger(self.database)
        self.waiting = Waiting(max_waiters=10)
        self.dispatcher = Dispatcher(broker_url, self.database, self.ledger, wake=self.waiting.wake)
        self.collector = Collector(broker_url, self.database, self.ledger, self.dispatcher, self.waiting)
        self.app = create_app(self.config, self.database, self.ledger, self.dispatcher, self.waiting)

    def start(self) -> None:
        self.dispatcher.start()
        self.collector.start()

    def stop(self) -> None:
        self.collector.stop()
        self.dispatcher.stop()

    def person(self, name: str) -> Person:
        user_id = auth.create_user(self.database, name)
        return Person(self.app, name, user_id, auth.create_token(self.database, name)[1])

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            assert time.monotonic() < deadline, "it did not happen"
            time.sleep(0.01)

    def say(self, sender_id: str, where: Queue, message: wire.Message) -> None:
        """Publish as an endpoint does: without declaring anything."""
        with Connection(self.broker_url) as connection:
            Producer(connection.channel()).publish(
                wire.encode(message), exchange=where.exchange.name, routing_key=f"{sender_id}.{where.name}"
            )

    def report(self, sender_id: str, **state: Any) -> None:
        said = {"heartbeat_period": 30, **state}
        self.say(sender_id, queues.HEARTBEATS, wire.StatusReport(sender_id, said))

    def core_endpoint(self, owner: Person, **more: Any) -> CoreEndpoint:
        answer = owner.post("/v3/endpoints", {"endpoint_name": "core", "metadata": CORE, **more}).done()
        endpoint = CoreEndpoint(self, answer)
        endpoint.heartbeat()
        return endpoint

    def task(self, task_id: str) -> Any:
        return self.ledger.tasks([task_id])[0]


class Listener:
    """Consumes a queue, as long as it is open; what came can be taken one by one."""

    def __init__(self, url: str, name: str) -> None:
        self._connection = Connection(url)
        self._received: queue.SimpleQueue[Message] = queue.SimpleQueue()
        channel = self._connection.channel()
        # Whoever listens declares nothing.
        self._consumer = Consumer(
            channel, [Queue(name, no_declare=True)], on_message=self._received.put, auto_declare=False
        )
        self._consumer.consume()

    def take(self) -> Message:
        """The next message, acknowledged."""
        while self._received.empty():
            self._connection.drain_events(timeout=TIMEOUT_S)
        message = self._received.get()
        message.ack()
        return message

    def is_quiet(self, for_s: float = 0.3) -> bool:
        """Whether nothing comes for a while."""
        try:
            self._connection.drain_events(timeout=for_s)
        except TimeoutError:
            return self._received.empty()
        return False

    def close(self) -> None:
        self._connection.release()


@contextmanager
def listening(url: str, name: str) -> Iterator[Listener]:
    listener = Listener(url, name)
    try:
        yield listener
    finally:
        listener.close()


class CoreEndpoint:
    """Plays a core endpoint: takes commands."""

    def __init__(self, world: World, answer: Any) -> None:
        self.world = world
        self.answer = answer
        self.id = str(answer["endpoint_id"])
        self.commands = Listener(answer["command_queue_info"]["connection_url"], answer["command_queue_info"]["queue"])

    def heartbeat(self, **state: Any) -> None:
        self.world.report(self.id, **state)

    def take_command(self) -> tuple[dict[str, Any], Message]:
        message = self.commands.take()
        return json.loads(message.body), message

    def start_child(self) -> UserEndpoint:
        """Obey the next start command; the child consumes its queue and sends its first heartbeat."""
        command, _ = self.take_command()
        child = UserEndpoint(self.world, command["kwargs"]["amqp_creds"])
        child.heartbeat()
        return child

    def close(self) -> None:
        self.commands.close()


class UserEndpoint:
    """Plays a user endpoint: takes tasks, sends results."""

    def __init__(self, world: World, credentials: dict[str, Any]) -> None:
        self.world = world
        self.id = str(credentials["endpoint_id"])
        info = credentials["task_queue_info"]
        self.tasks = Listener(info["connection_url"], info["queue"])

    def heartbeat(self, **state: Any) -> None:
        self.world.report(self.id, **{"active": True, **IDLE, **state})

    def take(self, count: int = 1) -> list[str]:
        """Accept so many tasks; their ids."""
        return [str(self.tasks.take().headers["task_uuid"]) for _ in range(count)]

    def answer(self, *task_ids: str) -> None:
        for task_id in task_ids:
            self.world.say(self.id, queues.RESULTS, wire.Result(task_id, "11\n3"))

    def die(self) -> None:
        """As after kill -9: the connection closes, nothing more is said."""
        self.tasks.close()
