"""The agent's side of the broker, over Kombu's in-memory transport."""

from __future__ import annotations

import json
import queue
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection, Exchange, Producer, Queue

from farcall.wire import (
    MOST_DEAD_LETTER_BYTES,
    BatchedTask,
    Command,
    DeadLetter,
    FunctionCode,
    Message,
    Output,
    OutputBatch,
    Result,
    ResultBatch,
    StatusReport,
    TaskBatch,
    TaskState,
    Transition,
    decode,
    encode,
    write_result,
)
from farcall_endpoint import line, mailbox
from farcall_endpoint.addresses import Addresses
from farcall_endpoint.journal import Journal
from farcall_endpoint.mailbox import Inbox, Outbox, result_batch_body
from farcall_endpoint.output import OutputStore

URL = "memory://"
PATIENCE_S = 60


@pytest.fixture
def addresses() -> Addresses:
    # Of this test alone: the transport's queues are those of the whole process.
    name = uuid.uuid4().hex

    def published(kind: str) -> dict[str, Any]:
        publish = {"exchange": f"{name}-{kind}", "routing_key": f"{name}.{name}-{kind}"}
        info = {"connection_url": URL, "exchange": f"{name}-{kind}", "queue": f"{name}-{kind}"}
        return {**info, "queue_publish_kwargs": publish}

    return Addresses.of(
        {
            "task_queue_info": {"connection_url": URL, "queue": f"{name}.tasks"},
            "command_queue_info": {"connection_url": URL, "queue": f"{name}.commands"},
            "result_queue_info": published("results"),
            "heartbeat_queue_info": published("heartbeats"),
        }
    )


class Inboxes:
    """Inboxes of one test, and what they took."""

    def __init__(self, addresses: Addresses) -> None:
        self.addresses = addresses
        self.tasks: queue.Queue[TaskBatch] = queue.Queue()
        self.commands: queue.Queue[Command] = queue.Queue()
        self._started: list[Inbox] = []

    def start(self, on_tasks: Callable[[TaskBatch], None] | None = None) -> Inbox:
        inbox = Inbox(
            self.addresses,
            on_tasks=on_tasks or self.tasks.put,
            on_command=self.commands.put,
            on_unreachable=lambda: None,
        )
        inbox.start()
        assert inbox.connected.wait(PATIENCE_S)
        self._started.append(inbox)
        return inbox

    def stop(self) -> None:
        for inbox in self._started:
            inbox.stop()
            inbox.join(PATIENCE_S)
            assert not inbox.is_alive()


@pytest.fixture
def inboxes(addresses: Addresses) -> Iterator[Inboxes]:
    inboxes = Inboxes(addresses)
    yield inboxes
    inboxes.stop()


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.sqlite")


def batch_of(task_id: str) -> TaskBatch:
    return TaskBatch({"f": FunctionCode("code")}, [BatchedTask(task_id, "f", "payload")])


def send(queue_name: str, message: Message | bytes) -> None:
    with Connection(URL) as connection:
        Producer(connection.channel()).publish(
            message if isinstance(message, bytes) else encode(message),
            routing_key=queue_name,
            declare=[Queue(queue_name, durable=True)],
            content_type="application/json",
            content_encoding="utf-8",
        )


def text_of(task_id: str) -> str:
    return json.dumps(write_result(value_of(task_id)))


def value_of(task_id: str) -> Result:
    return Result(task_id, f"value of {task_id}", task_statuses=[])


def test_tasks_and_commands_arrive(inboxes: Inboxes) -> None:
    inboxes.start()

    send(inboxes.addresses.task_queue, batch_of("a"))
    send(inboxes.addresses.command_queue, Command("stop", "enough"))

    assert inboxes.tasks.get(timeout=PATIENCE_S) == batch_of("a")
    assert inboxes.commands.get(timeout=PATIENCE_S) == Command("stop", "enough")


@pytest.mark.parametrize("body", [b"garbage", b"", b'\x01{"message_type": "new", "data": {}}', encode(Command("stop"))])
def test_what_cannot_be_read_is_set_aside_and_handed_to_the_service(
    inboxes: Inboxes, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    inboxes.start()
    queue_name = inboxes.addresses.task_queue

    send(queue_name, body)
    send(queue_name, batch_of("a"))

    assert inboxes.tasks.get(timeout=PATIENCE_S) == batch_of("a")
    assert "was set aside" in caplog.text
    letter = Reader(inboxes.addresses.results).read()
    assert isinstance(letter, DeadLetter)
    assert (letter.queue, letter.body, letter.size) == (queue_name, body, len(body))
    assert letter.reason in caplog.text


def test_what_was_pushed_into_a_list_of_valkey_is_handed_to_the_service_and_tasks_behind_it_come(stand_in: Any) -> None:
    taken: queue.Queue[TaskBatch] = queue.Queue()
    addresses = Addresses.of(stand_in._answer())
    with line.connection_to(stand_in.broker_url) as connection:
        connection.default_channel.client.lpush(addresses.task_queue, b"\xffgarbage")
    with Connection(stand_in.broker_url) as connection:
        Producer(connection.channel()).publish(
            encode(batch_of("a")), exchange="", routing_key=addresses.task_queue, content_encoding="binary"
        )

    inbox = Inbox(addresses, on_tasks=taken.put, on_command=print, on_unreachable=lambda: None)
    inbox.start()
    stand_in.wait_for(lambda: stand_in.letters)
    batch = taken.get(timeout=PATIENCE_S)
    inbox.stop()
    inbox.join()

    (letter,) = stand_in.letters
    assert (letter.queue, letter.body) == (addresses.task_queue, b"\xffgarbage")
    assert [task.task_id for task in batch.tasks] == ["a"]


def test_of_a_large_message_that_cannot_be_read_only_the_beginning_is_handed_on(inboxes: Inboxes) -> None:
    inboxes.start()

    send(inboxes.addresses.command_queue, b"x" * 1_000_000)

    letter = Reader(inboxes.addresses.results).read()
    assert isinstance(letter, DeadLetter)
    assert (letter.body, letter.size) == (b"x" * MOST_DEAD_LETTER_BYTES, 1_000_000)


def test_while_there_is_no_room_tasks_stay_in_the_broker_and_commands_come(inboxes: Inboxes) -> None:
    inbox = inboxes.start()
    inbox.pause()
    send(inboxes.addresses.command_queue, Command("first"))
    inboxes.commands.get(timeout=PATIENCE_S)

    send(inboxes.addresses.task_queue, batch_of("a"))
    send(inboxes.addresses.command_queue, Command("second"))
    inboxes.commands.get(timeout=PATIENCE_S)
    before = inboxes.tasks.qsize()
    inbox.resume()

    # One message may have been on its way already when the pause began.
    assert before <= 1
    assert inboxes.tasks.get(timeout=PATIENCE_S) == batch_of("a")


def test_tasks_that_cannot_be_written_down_come_again(inboxes: Inboxes, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: queue.Queue[TaskBatch] = queue.Queue()
    failures = iter([sqlite3.OperationalError("database or disk is full")])

    def take(batch: TaskBatch) -> None:
        error = next(failures, None)
        if error is not None:
            raise error
        taken.put(batch)

    monkeypatch.setattr(mailbox, "DISK_PAUSE_S", 0.01)
    inboxes.start(take)

    send(inboxes.addresses.task_queue, batch_of("a"))

    assert taken.get(timeout=PATIENCE_S) == batch_of("a")


def test_commands_from_before_the_start_were_meant_for_somebody_else(inboxes: Inboxes) -> None:
    send(inboxes.addresses.command_queue, Command("stop"))
    inboxes.start()

    send(inboxes.addresses.command_queue, Command("hello"))

    assert inboxes.commands.get(timeout=PATIENCE_S) == Command("hello")


class Reader:
    """Reads what an outbox publishes."""

    def __init__(self, address: Any) -> None:
        exchange = Exchange(address.exchange, type="topic", durable=True)
        self._connection = Connection(URL)
        channel = self._connection.channel()
        self._queue = Queue(address.queue, exchange, routing_key=f"*.{address.queue}", durable=True)(channel)
        self._queue.declare()

    def read(self) -> Message:
        arrived: list[bytes] = []
        self._queue.consume(consumer_tag="reader", no_ack=True, callback=lambda message: arrived.append(message.body))
        while not arrived:
            self._connection.drain_events(timeout=PATIENCE_S)
        self._queue.cancel("reader")
        return decode(bytes(arrived[0]))


def test_results_go_out_and_are_then_marked_as_sent(
    addresses: Addresses, journal: Journal, output: OutputStore
) -> None:
    reader = Reader(addresses.results)
    journal.accept(batch_of("a"))
    outbox = Outbox(addresses, journal, output, on_unreachable=lambda: None)
    outbox.start()
    journal.finish([("a", text_of("a"))])
    outbox.results_waiting()

    sent = reader.read()
    outbox.stop(timeout_s=PATIENCE_S)

    assert sent == ResultBatch([value_of("a")])
    assert journal.held() == []


def test_what_an_earlier_agent_left_unsent_goes_out_first_thing(
    addresses: Addresses, journal: Journal, output: OutputStore
) -> None:
    reader = Reader(addresses.results)
    journal.accept(batch_of("a"))
    journal.finish([("a", text_of("a"))])

    outbox = Outbox(addresses, journal, output, on_unreachable=lambda: None)
    outbox.start()

    assert reader.read() == ResultBatch([value_of("a")])
    outbox.stop(timeout_s=PATIENCE_S)


def test_a_report_replaces_one_that_still_waits_but_not_what_only_that_one_said(
    addresses: Addresses, journal: Journal, output: OutputStore
) -> None:
    reader = Reader(addresses.heartbeats)
    outbox = Outbox(addresses, journal, output, on_unreachable=lambda: None)
    running, waiting = (
        Transition(1, TaskState.RUNNING, "endpoint"),
        Transition(2, TaskState.WAITING_FOR_NODES, "endpoint"),
    )

    outbox.send_report(StatusReport("e", {"n": 1}, {"a": [running]}))
    outbox.send_report(StatusReport("e", {"n": 2}, {"b": [waiting]}, holds=["a", "b"]))
    outbox.start()

    assert reader.read() == StatusReport("e", {"n": 2}, {"a": [running], "b": [waiting]}, ["a", "b"])
    outbox.stop(timeout_s=PATIENCE_S)


def test_a_report_that_could_not_be_sent_goes_out_later_with_all_it_said(
    addresses: Addresses, journal: Journal, output: OutputStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(addresses.heartbeats)
    running, waiting = (
        Transition(1, TaskState.RUNNING, "endpoint"),
        Transition(2, TaskState.WAITING_FOR_NODES, "endpoint"),
    )
    outbox = Outbox(addresses, journal, output, on_unreachable=lambda: None)
    publish, publishers = mailbox._publish, iter(["a broken one"])

    def publish_badly_once(*arguments: Any) -> None:
        if next(publishers, None):
            outbox.send_report(StatusReport("e", {"n": 2}, {"b": [waiting]}))
            raise OSError("the broker is gone")
        publish(*arguments)

    monkeypatch.setattr(mailbox, "_publish", publish_badly_once)

    outbox.send_report(StatusReport("e", {"n": 1}, {"a": [running]}))
    outbox.start()

    assert reader.read() == StatusReport("e", {"n": 2}, {"a": [running], "b": [waiting]})
    outbox.stop(timeout_s=PATIENCE_S)


def test_a_broker_that_is_there_but_answers_nothing_is_noticed(
    stand_in: Any, journal: Journal, output: OutputStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    noticed = threading.Event()
    monkeypatch.setattr(line, "FAILURES_BEFORE_ASKING", 1)
    monkeypatch.setitem(line._REDIS_OPTIONS, "socket_timeout", 0.2)
    outbox = Outbox(Addresses.of(stand_in._answer()), journal, output, on_unreachable=noticed.set)
    outbox.start()
    assert outbox.connected.wait(PATIENCE_S)

    stand_in.freeze_broker()
    outbox.send_report(StatusReport("e", {"n": 1}))
    assert noticed.wait(PATIENCE_S)
    stand_in.thaw_broker()

    stand_in.wait_for(lambda: stand_in.reports)
    outbox.stop(timeout_s=PATIENCE_S)


def test_a_broker_that_is_gone_is_asked_for_again_and_the_agent_is_told(
    journal: Journal,
    output: OutputStore,
    addresses: Addresses,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: queue.Queue[None] = queue.Queue()
    monkeypatch.setattr(line, "_LONGEST_PAUSE_S", 0.01)
    monkeypatch.setattr(line, "FAILURES_BEFORE_ASKING", 1)
    monkeypatch.setattr(Outbox, "url", lambda self: "redis://127.0.0.1:9/0")
    outbox = Outbox(addresses, journal, output, on_unreachable=lambda: told.put(None))

    outbox.start()

    told.get(timeout=PATIENCE_S)
    assert "does not answer: " in caplog.text
    outbox.stop(timeout_s=PATIENCE_S)
    outbox.join(PATIENCE_S)


def test_results_are_put_together_as_the_wire_wants_them() -> None:
    results = [Result("a", "value \ud800 é", task_statuses=[]), Result("b", "other", task_statuses=[])]

    body = result_batch_body([json.dumps(write_result(result)) for result in results])

    assert decode(body) == ResultBatch(results)


def test_what_a_task_printed_goes_out_before_its_result_and_the_rest_after_it(
    addresses: Addresses, journal: Journal, output: OutputStore
) -> None:
    reader = Reader(addresses.results)
    journal.accept(batch_of("a"))
    journal.finish([("a", text_of("a"))])
    output.add([Output("other", "stdout", 0, "x"), Output("a", "stdout", 0, "last words")])

    outbox = Outbox(addresses, journal, output, on_unreachable=lambda: None)
    outbox.start()

    assert [reader.read() for _ in range(3)] == [
        OutputBatch([Output("a", "stdout", 0, "last words")]),
        ResultBatch([value_of("a")]),
        OutputBatch([Output("other", "stdout", 0, "x")]),
    ]
    outbox.stop(timeout_s=PATIENCE_S)
    assert not output


def test_results_that_were_sent_are_not_sent_again_while_that_cannot_be_noted(
    addresses: Addresses, journal: Journal, output: OutputStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, reports = Reader(addresses.results), Reader(addresses.heartbeats)
    journal.accept(batch_of("a"))
    journal.finish([("a", text_of("a"))])
    sent, troubles = journal.sent, threading.Semaphore(0)
    failures = iter(["once", "twice"])

    def note(task_ids: Sequence[str]) -> None:
        if next(failures, None):
            raise sqlite3.OperationalError("database or disk is full")
        sent(task_ids)

    monkeypatch.setattr(journal, "sent", note)
    outbox = Outbox(
        addresses, journal, output, on_unreachable=lambda: None, on_disk_trouble=lambda error: troubles.release()
    )
    outbox.start()
    first = reader.read()
    assert troubles.acquire(timeout=PATIENCE_S)

    # Reports go out all the while, and with each it is tried again.
    for number in range(2):
        outbox.send_report(StatusReport("e", {"n": number}))
        reports.read()
    journal.accept(batch_of("b"))
    journal.finish([("b", text_of("b"))])
    outbox.results_waiting()

    assert first == ResultBatch([value_of("a")])
    assert reader.read() == ResultBatch([value_of("b")])
    outbox.stop(timeout_s=PATIENCE_S)
    assert journal.held() == []
