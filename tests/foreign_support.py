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

from flask import Flask
from kombu import Connection, Consumer, Message, Producer, Queue
from sqlalchemy import select

from farcall import wire
from farcall_webservice import auth, queues
from farcall_webservice.accounts import SharedAccount
from farcall_webservice.app import create_app
from farcall_webservice.collector import Collector
from farcall_webservice.config import ServiceConfig
from farcall_webservice.database import Database
from farcall_webservice.dispatch import Dispatcher
from farcall_webservice.ledger import Ledger
from farcall_webservice.models import Endpoint, ResultQueue
from farcall_webservice.waiting import Waiting

TIMEOUT_S = 60
#: What a core endpoint of Globus Compute 4 says of itself.
CORE = {"endpoint_version": "4.19.0", "python_version": "3.11.7", "hostname": "login1", "user_config_template": "x"}
#: What a user endpoint says when it has nothing to do, and when it has.
IDLE, BUSY = {"outstanding_tasks": 0, "pending_tasks": 0}, {"outstanding_tasks": 1, "pending_tasks": 0}


class World:
    """Application, dispatcher and collector over one database and one virtual host of a broker.

    Several that are not ``alone`` are one service of several processes.
    """

    def __init__(self, home: Path, database_url: str, broker_url: str, *, alone: bool = True) -> None:
        self._alone = alone
        config = ServiceConfig.from_environment({}, home=home, database_url=database_url)
        self.config = replace(config, broker_url=broker_url)
        self.broker_url = broker_url
        self.database = Database(self.config.database_url)
        self.ledger = Ledger(self.database)
        self.waiting = Waiting(max_waiters=10)
        self._make_parts()
        self.app = create_app(
            self.config,
            self.database,
            self.ledger,
            self.dispatcher,
            self.waiting,
            accounts=SharedAccount(broker_url),
        )

    def _make_parts(self) -> None:
        self.dispatcher = Dispatcher(
            self.broker_url, self.database, self.ledger, alone=self._alone, tell=self.waiting.wake
        )
        self.collector = Collector(self.broker_url, self.database, self.ledger, self.dispatcher, self.waiting)

    def start(self) -> None:
        self.dispatcher.start()
        self.collector.start()

    def stop(self) -> None:
        self.collector.stop()
        self.dispatcher.stop()

    def restart(self) -> None:
        """Start anew after :meth:`stop`; requests still reach the parts that were stopped."""
        self._make_parts()
        self.start()

    def phase(self, child_id: str) -> str:
        """Where the service believes a user endpoint to be."""
        with self.database.reading() as connection:
            return str(connection.execute(select(Endpoint.phase).where(Endpoint.id == child_id)).scalar_one())

    def forwarded(self, task_group_id: str) -> int:
        """The number of the latest result of a group that is on its queue."""
        with self.database.reading() as connection:
            query = select(ResultQueue.forwarded_seq).where(ResultQueue.task_group_id == task_group_id)
            return int(connection.execute(query).scalar_one())

    def person(self, name: str) -> Somebody:
        return self.known_person(name, auth.create_user(self.database, name))

    def known_person(self, name: str, user_id: str) -> Somebody:
        """Who was made in another process of the service."""
        return Somebody(self.app, user_id, auth.create_token(self.database, name)[1])

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

    def publish(self, queue: str, body: bytes, headers: dict[str, Any]) -> None:
        """Publish to a queue as another process of the service might."""
        with Connection(self.broker_url) as connection:
            Producer(connection.channel()).publish(
                body, exchange="", routing_key=queue, headers=headers, **queues.MESSAGE_PROPERTIES
            )

    def report(self, sender_id: str, **state: Any) -> None:
        said = {"heartbeat_period": 30, **state}
        self.say(sender_id, queues.HEARTBEATS, wire.StatusReport(sender_id, said))

    def core_endpoint(self, owner: Somebody, **more: Any) -> CoreEndpoint:
        answer = owner.ask("POST", "/v3/endpoints", {"endpoint_name": "core", "metadata": CORE, **more})
        endpoint = CoreEndpoint(self, answer)
        endpoint.heartbeat()
        return endpoint

    def task(self, task_id: str) -> Any:
        return self.ledger.tasks([task_id])[0]


class Somebody:
    """A user with a token, who sends requests."""

    def __init__(self, app: Flask, user_id: str, token: str) -> None:
        self._app = app
        self.id = user_id
        self._headers = {"Authorization": f"Bearer {token}"}

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The body of the answer, which has to be a success."""
        response = self._app.test_client().open(path, method=method, headers=self._headers, json=body)
        assert response.status_code == 200, response.get_data()
        return response.json

    def refused(self, method: str, path: str, body: Any = None) -> tuple[int, str]:
        """The status and code of an answer that has to be an error."""
        response = self._app.test_client().open(path, method=method, headers=self._headers, json=body)
        assert response.status_code >= 400, response.get_data()
        assert response.json is not None
        return response.status_code, str(response.json["code"])

    def function(self) -> str:
        body = {"function_name": "add", "function_code": "4\nst\nx"}
        return str(self.ask("POST", "/v3/functions", body)["function_uuid"])

    def submit(self, endpoint_id: str, function_id: str, count: int = 1, **more: Any) -> Any:
        body = {"tasks": {function_id: ["9\n11\n[1, 2]5\n11\n{}"] * count}, **more}
        return self.ask("POST", f"/v3/endpoints/{endpoint_id}/submit", body)


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
        """Obey the next start command; the child consumes its queue and has sent its first heartbeat."""
        command, _ = self.take_command()
        child = UserEndpoint(self.world, command["kwargs"]["amqp_creds"])
        child.heartbeat()
        self.world.wait_until(lambda: self.world.phase(child.id) == "up")
        return child

    def close(self) -> None:
        self.commands.close()


class UserEndpoint:
    """Plays a user endpoint: takes tasks, sends results."""

    def __init__(self, world: World, credentials: dict[str, Any]) -> None:
        self.world = world
        self.id = str(credentials["endpoint_id"])
        self._info = credentials["task_queue_info"]
        self.connect()

    def connect(self) -> None:
        """Consume its queue, for the first time or after :meth:`die`."""
        self.tasks = Listener(self._info["connection_url"], self._info["queue"])

    def heartbeat(self, **state: Any) -> None:
        self.world.report(self.id, **{"active": True, **IDLE, **state})

    def take(self, count: int = 1) -> list[str]:
        """Accept so many tasks; their ids."""
        return [str(self.tasks.take().headers["task_uuid"]) for _ in range(count)]

    def answer(self, *task_ids: str) -> None:
        for task_id in task_ids:
            self.world.say(self.id, queues.RESULTS, wire.Result(task_id, "11\n3"))

    def die(self) -> None:
        """As after kill -9: the connection closes, nothing more is said. Returns when the broker has noticed."""
        self.tasks.close()
        queue = queues.tasks_queue(self.id)
        self.world.wait_until(lambda: queues.consumers(self.world.broker_url, queue) == 0)
