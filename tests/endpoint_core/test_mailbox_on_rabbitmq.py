"""The agent's side of the broker, where the broker is a real RabbitMQ, which pushes and hangs up as it likes."""

from __future__ import annotations

import json
import queue
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection, Exchange, Producer, Queue
from servers import PrivateRabbitMQ

from farcall.wire import (
    BatchedTask,
    Command,
    DeadLetter,
    FunctionCode,
    Message,
    Result,
    ResultBatch,
    StatusReport,
    TaskBatch,
    decode,
    encode,
    write_result,
)
from farcall_endpoint import line, mailbox
from farcall_endpoint.addresses import Addresses
from farcall_endpoint.journal import Journal
from farcall_endpoint.mailbox import MESSAGES_AHEAD, Inbox, Outbox
from farcall_endpoint.output import OutputStore

PATIENCE_S = 60
ME = "me"


class Broker:
    """A virtual host with the queues that a service makes."""

    def __init__(self, server: PrivateRabbitMQ) -> None:
        self._server = server
        self._vhost = uuid.uuid4().hex
        self.url = server.vhost(self._vhost)
        self.connection = Connection(self.url)
        self._channel = self.connection.channel()
        self.declare()

    @property
    def addresses(self) -> Addresses:
        def published(kind: str, **properties: str) -> dict[str, Any]:
            publish = {"exchange": kind, "routing_key": f"{ME}.{kind}", "mandatory": True, "properties": properties}
            return {"connection_url": self.url, "exchange": kind, "queue": kind, "queue_publish_kwargs": publish}

        return Addresses.of(
            {
                "task_queue_info": {"connection_url": self.url, "queue": f"{ME}.tasks"},
                "command_queue_info": {"connection_url": self.url, "queue": f"{ME}.commands"},
                "result_queue_info": published("results"),
                "heartbeat_queue_info": published("heartbeats", expiration="60000"),
            }
        )

    def declare(self) -> None:
        for name in (f"{ME}.tasks", f"{ME}.commands"):
            Queue(name, durable=True)(self._channel).declare()
        for name in ("results", "heartbeats"):
            exchange = Exchange(name, type="topic", durable=True)
            Queue(name, exchange, routing_key=f"*.{name}", durable=True)(self._channel).declare()

    def delete(self, name: str) -> None:
        Queue(name)(self._channel).delete()

    def send(self, name: str, *messages: Message) -> None:
        producer = Producer(self._channel)
        for message in messages:
            producer.publish(
                encode(message),
                routing_key=f"{ME}.{name}",
                content_type="application/json",
                content_encoding="utf-8",
            )

    def waiting(self, name: str) -> int:
        """Messages that have not been sent to anybody."""
        return int(Queue(name, durable=True)(self._channel).queue_declare(passive=True).message_count)

    def read(self, name: str) -> Message:
        """The next message of a queue."""
        body = self.take(name).body
        return decode(body.encode() if isinstance(body, str) else bytes(body))

    def take(self, name: str) -> Any:
        """The same as it came."""
        found: queue.SimpleQueue[Any] = queue.SimpleQueue()
        consumer = self.connection.Consumer([Queue(name)], on_message=found.put, auto_declare=False)
        consumer.qos(prefetch_count=1)
        with consumer:
            while found.empty():
                self.connection.drain_events(timeout=PATIENCE_S)
        message = found.get()
        # Only now, when nothing more is sent to us that nobody would take.
        message.ack()
        return message

    def hang_up(self) -> None:
        """Close all connections but our own."""
        said = self._server.ctl("-q", "list_connections", "-p", self._vhost, "pid", "peer_port", "--no-table-headers")
        own_port = str(self.connection.connection.sock.getsockname()[1])
        for pid, port in (row.split() for row in said.splitlines()):
            if port != own_port:
                self._server.ctl("close_connection", pid, "a test")

    def close(self) -> None:
        self.connection.release()
        self._server.drop_vhost(self.url)


@pytest.fixture
def broker(rabbitmq: PrivateRabbitMQ) -> Iterator[Broker]:
    broker = Broker(rabbitmq)
    yield broker
    broker.close()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.sqlite")
    yield journal
    journal.close()


class Taker:
    """An inbox, and what it took."""

    def __init__(self, addresses: Addresses) -> None:
        self.tasks: queue.Queue[TaskBatch] = queue.Queue()
        self.commands: queue.Queue[Command] = queue.Queue()
        self.asked = threading.Event()
        self.inbox = Inbox(
            addresses, on_tasks=self.tasks.put, on_command=self.commands.put, on_unreachable=self.asked.set
        )
        self.inbox.start()

    def next_task(self) -> str:
        (task,) = self.tasks.get(timeout=PATIENCE_S).tasks
        return task.task_id

    def stop(self) -> None:
        self.inbox.stop()
        self.inbox.join(PATIENCE_S)
        assert not self.inbox.is_alive()


@pytest.fixture
def taker(broker: Broker) -> Iterator[Taker]:
    taker = Taker(broker.addresses)
    assert taker.inbox.connected.wait(PATIENCE_S)
    yield taker
    taker.stop()


def batch_of(task_id: str, payload: str = "payload") -> TaskBatch:
    return TaskBatch({"f": FunctionCode("code")}, [BatchedTask(task_id, "f", payload)])


def keep_result(journal: Journal, task_id: str) -> Result:
    result = Result(task_id, f"value of {task_id} \ud800 é", task_statuses=[])
    journal.accept(batch_of(task_id))
    journal.finish([(task_id, json.dumps(write_result(result)))])
    return result


def test_tasks_and_commands_arrive_whatever_text_they_hold(broker: Broker, taker: Taker) -> None:
    for payload in ("plain", "é \U0001f600", "a lone \ud800", "x" * 9_000_000):
        broker.send("tasks", batch_of("a", payload))
        assert taker.tasks.get(timeout=PATIENCE_S) == batch_of("a", payload)
    broker.send("commands", Command("stop", "enough"))
    assert taker.commands.get(timeout=PATIENCE_S) == Command("stop", "enough")


def test_what_cannot_be_read_is_handed_to_the_service_and_tasks_behind_it_come(broker: Broker, taker: Taker) -> None:
    broker.send("tasks", Command("lost its way"), batch_of("a"))
    broker.send("commands", batch_of("b"))

    assert taker.next_task() == "a"
    letters = [broker.read("results") for _ in range(2)]

    assert {letter.queue: letter.reason for letter in letters if isinstance(letter, DeadLetter)} == {
        f"{ME}.tasks": "a Command is not expected here",
        f"{ME}.commands": "a TaskBatch is not expected here",
    }


def test_while_there_is_no_room_tasks_stay_in_the_broker_and_commands_come(broker: Broker, taker: Taker) -> None:
    count = 10 * MESSAGES_AHEAD
    taker.inbox.pause()
    broker.send("commands", Command("first"))
    taker.commands.get(timeout=PATIENCE_S)

    broker.send("tasks", *(batch_of(str(n)) for n in range(count)))
    broker.send("commands", Command("second"))
    taker.commands.get(timeout=PATIENCE_S)

    assert taker.tasks.qsize() <= MESSAGES_AHEAD
    assert broker.waiting(f"{ME}.tasks") >= count - MESSAGES_AHEAD
    taker.inbox.resume()
    assert [taker.next_task() for _ in range(count)] == [str(n) for n in range(count)]


def test_a_slow_agent_is_sent_no_more_than_a_few_messages_ahead(broker: Broker) -> None:
    count = 5 * MESSAGES_AHEAD
    busy, go_on = threading.Event(), threading.Event()
    taken: queue.Queue[TaskBatch] = queue.Queue()

    def take(batch: TaskBatch) -> None:
        busy.set()
        assert go_on.wait(PATIENCE_S)
        taken.put(batch)

    broker.send("tasks", *(batch_of(str(n)) for n in range(count)))
    inbox = Inbox(broker.addresses, on_tasks=take, on_command=lambda command: None, on_unreachable=lambda: None)
    inbox.start()
    assert busy.wait(PATIENCE_S)

    assert broker.waiting(f"{ME}.tasks") == count - MESSAGES_AHEAD
    go_on.set()
    assert [taken.get(timeout=PATIENCE_S).tasks[0].task_id for _ in range(count)] == [str(n) for n in range(count)]
    inbox.stop()
    inbox.join(PATIENCE_S)


def test_a_broker_that_hangs_up_is_connected_to_again(
    broker: Broker, taker: Taker, journal: Journal, output: OutputStore
) -> None:
    outbox = Outbox(broker.addresses, journal, output, on_unreachable=lambda: None)
    outbox.start()
    assert outbox.connected.wait(PATIENCE_S)

    for n in range(3):
        broker.hang_up()
        broker.send("tasks", batch_of(str(n)))
        result = keep_result(journal, str(n))
        outbox.results_waiting()

        assert taker.next_task() == str(n)
        assert broker.read("results") == ResultBatch([result])
    outbox.stop(timeout_s=PATIENCE_S)


def test_a_queue_that_was_deleted_is_asked_for_and_used_when_it_is_there_again(broker: Broker, taker: Taker) -> None:
    broker.delete(f"{ME}.tasks")

    assert taker.asked.wait(PATIENCE_S)
    assert "queue that should be there" in (taker.inbox.trouble or "")
    broker.declare()
    broker.send("tasks", batch_of("a"))
    assert taker.next_task() == "a"


def test_results_that_nobody_would_get_are_kept_until_somebody_does(
    broker: Broker, journal: Journal, output: OutputStore
) -> None:
    asked = threading.Event()
    outbox = Outbox(broker.addresses, journal, output, on_unreachable=asked.set)
    outbox.start()
    assert outbox.connected.wait(PATIENCE_S)
    broker.delete("results")

    result = keep_result(journal, "a")
    outbox.results_waiting()
    assert asked.wait(PATIENCE_S)
    assert journal.held() == ["a"]
    broker.declare()

    assert broker.read("results") == ResultBatch([result])
    outbox.stop(timeout_s=PATIENCE_S)
    assert journal.held() == []


def test_a_wrong_password_is_said_in_words_and_the_service_is_asked_at_once(
    broker: Broker, journal: Journal, output: OutputStore
) -> None:
    asked = threading.Event()
    right = broker.url
    broker.url = right.replace("farcall:", "farcall:not-")
    outbox = Outbox(broker.addresses, journal, output, on_unreachable=asked.set)
    outbox.start()

    assert asked.wait(PATIENCE_S)
    assert "refuses us" in (outbox.trouble or "")
    assert "not-" not in (outbox.trouble or "")
    broker.url = right
    outbox.addresses = broker.addresses
    outbox.send_report(StatusReport(ME, {"n": 1}))
    assert broker.read("heartbeats") == StatusReport(ME, {"n": 1})
    outbox.stop(timeout_s=PATIENCE_S)


def test_a_heartbeat_expires_as_the_service_wants_it_to(broker: Broker, journal: Journal, output: OutputStore) -> None:
    outbox = Outbox(broker.addresses, journal, output, on_unreachable=lambda: None)
    outbox.start()

    outbox.send_report(StatusReport(ME, {"n": 1}))

    assert broker.take("heartbeats").properties["expiration"] == "60000"
    outbox.stop(timeout_s=PATIENCE_S)


def test_lines_with_nothing_to_do_keep_their_connections(
    broker: Broker,
    journal: Journal,
    output: OutputStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(line, "HEARTBEAT_S", 1)
    monkeypatch.setattr(mailbox, "KEEP_ALIVE_S", 0.2)
    taker = Taker(broker.addresses)
    taker.inbox.pause()
    outbox = Outbox(broker.addresses, journal, output, on_unreachable=lambda: None)
    outbox.start()
    assert outbox.connected.wait(PATIENCE_S)

    # A broker hangs up after two heartbeats without a word.
    outbox.join(timeout=4)

    assert "was lost" not in caplog.text
    outbox.stop(timeout_s=PATIENCE_S)
    taker.stop()
