"""The agent's side of the broker: tasks and commands come in, results and reports go out. Nobody else sees Kombu.

Inbox and outbox have a thread and a connection each, and reconnect for ever. No timer delays anything: what accumulates
while one message is being sent travels in the next.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from kombu import Connection, Consumer, Exchange, Message, Producer, Queue
from kombu.transport import virtual

from farcall.errors import WireError
from farcall.wire import (
    ENVELOPE_VERSION,
    MOST_DEAD_LETTER_BYTES,
    Command,
    DeadLetter,
    OutputBatch,
    StatusReport,
    TaskBatch,
    decode,
    encode,
)

from .addresses import Address, Addresses
from .journal import Journal
from .line import Line, connection_to, drain
from .output import OutputStore

log = logging.getLogger(__name__)

M = TypeVar("M")

#: Results in one message, and their size; a single result may be larger.
MOST_RESULTS = 1000
MOST_RESULT_BYTES = 4 * 1024 * 1024

#: Output in one message. A message of it goes out only when there is no result to send, except for what a task has
#: printed whose result is about to go out: that goes first, as far as it is not more.
MOST_OUTPUT_BYTES = 256 * 1024

#: Before tasks are taken again that could not be written down.
DISK_PAUSE_S = 5.0

#: Messages of tasks that an AMQP broker may send ahead of our acknowledgements. Those are what the agent takes beyond
#: what it wants to hold, so there are few; it also bounds how many messages of single tasks a distant broker delivers.
MESSAGES_AHEAD = 8

#: How often an outbox with nothing to send lets the broker know that it is there.
KEEP_ALIVE_S = 5.0

#: How long the broker may take a message, or to confirm it, before it counts as gone.
PUBLISH_TIMEOUT_S = 60


class Inbox(Line):
    """Takes tasks and commands. A message is acknowledged when ``on_tasks`` has written its tasks down."""

    def __init__(
        self,
        addresses: Addresses,
        *,
        on_tasks: Callable[[TaskBatch], None],
        on_command: Callable[[Command], None],
        on_unreachable: Callable[[], None],
        on_connected: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__("inbox", addresses, on_unreachable)
        self._on_tasks = on_tasks
        self._on_command = on_command
        self._on_connected = on_connected
        self._room = threading.Event()
        self._room.set()
        self._is_first_connection = True

    def pause(self) -> None:
        """Leave tasks in the broker until :meth:`resume`. Commands still come."""
        self._room.clear()

    def resume(self) -> None:
        self._room.set()

    def stop(self) -> None:
        """Take nothing more; returns at once, the thread ends within a second."""
        self._stopping.set()
        self._room.set()

    def url(self) -> str:
        return self.addresses.inbox_url

    def work(self, connection: Connection) -> None:
        channel = connection.channel()
        channel.basic_qos(0, MESSAGES_AHEAD, False)
        tasks = _consumer(channel, self.addresses.task_queue, self._take_tasks)
        commands = _consumer(channel, self.addresses.command_queue, self._take_command)
        if self._is_first_connection:
            # What was said before the service let us in was said to an earlier agent.
            commands.purge()
            self._is_first_connection = False
        commands.consume()
        tasks.consume()
        self.connected.set()
        log.info("inbox: connected to the broker at %s", connection.as_uri())
        self._on_connected()
        consuming = True
        while not self._stopping.is_set():
            if consuming and not self._room.is_set():
                tasks.cancel()
                consuming = False
            if not consuming and self._room.wait(timeout=0.5):
                tasks.consume()
                consuming = True
            drain(connection, timeout=1.0 if consuming else 0.01)
        tasks.cancel()
        commands.cancel()

    def _take_tasks(self, message: Message) -> None:
        batch = self._decoded(message, TaskBatch, self.addresses.task_queue)
        if batch is None:
            return
        try:
            self._on_tasks(batch)
        except sqlite3.Error as error:
            # Most likely a full disk. The broker keeps the tasks for us.
            log.error("tasks cannot be written down, they stay in the broker: %s", error)
            message.requeue()
            self._stopping.wait(DISK_PAUSE_S)
            return
        message.ack()

    def _take_command(self, message: Message) -> None:
        command = self._decoded(message, Command, self.addresses.command_queue)
        if command is not None:
            message.ack()
            self._on_command(command)

    def _decoded(self, message: Message, kind: type[M], queue: str) -> M | None:
        """What a message says, or None: then it was handed to the service to be set aside, and does not come again."""
        body = _bytes(message.body)
        try:
            decoded = decode(body)
            if isinstance(decoded, kind):
                return decoded
            reason = f"a {type(decoded).__name__} is not expected here"
        except WireError as error:
            reason = str(error)
        log.error("a message of %d bytes on %s was set aside: %s", len(body), queue, reason)
        letter = DeadLetter(queue, reason, body[:MOST_DEAD_LETTER_BYTES], len(body))
        try:
            # Before it is acknowledged, and by a connection of its own: while one waits for confirms, no task may come.
            with connection_to(self.addresses.results.connection_url) as connection:
                producer = Producer(connection.channel())
                _declare(producer, self.addresses.results)
                _publish(producer, self.addresses.results, encode(letter))
        except Exception as error:
            # If the broker is away, the message comes again. If it does not take the letter, the log alone has it.
            log.warning("it could not be handed to the service: %s", error)
        message.ack()
        return None


class Outbox(Line):
    """Sends what the journal holds unsent, the latest status report, and what tasks have printed."""

    def __init__(
        self,
        addresses: Addresses,
        journal: Journal,
        output: OutputStore,
        *,
        on_unreachable: Callable[[], None],
        on_disk_trouble: Callable[[sqlite3.Error], None] = lambda error: None,
    ) -> None:
        super().__init__("outbox", addresses, on_unreachable)
        self._on_disk_trouble = on_disk_trouble
        self._journal = journal
        self._output = output
        # Sent, and the journal does not know it yet.
        self._unnoted: list[str] = []
        self._output_waiting = True
        self._changed = threading.Condition()
        self._results_waiting = True
        self._report: StatusReport | None = None
        self._idle = threading.Event()

    def results_waiting(self) -> None:
        """The journal has results that have not been sent."""
        with self._changed:
            self._results_waiting = True
            self._changed.notify()

    def output_waiting(self) -> None:
        """There is output that has not been sent."""
        with self._changed:
            self._output_waiting = True
            self._changed.notify()

    def send_report(self, report: StatusReport) -> None:
        """Send a report; one that is still waiting is replaced, but for what only it says of its tasks."""
        with self._changed:
            self._report = _merged(self._report, report)
            self._changed.notify()

    def stop(self, *, timeout_s: float) -> None:
        """Send what is there, if the broker takes it in that time, and end."""
        self._stopping.set()
        with self._changed:
            self._changed.notify()
        if self.connected.is_set():
            self.join(timeout_s)

    def url(self) -> str:
        return self.addresses.results.connection_url

    def work(self, connection: Connection) -> None:
        producer = Producer(connection.channel())
        for address in (self.addresses.results, self.addresses.heartbeats):
            _declare(producer, address)
        self.connected.set()
        log.info("outbox: connected to the broker at %s", connection.as_uri())
        while True:
            report, stopping = self._wait()
            try:
                self._send_results(producer)
                if report is not None:
                    _publish(producer, self.addresses.heartbeats, encode(report))
                self._send_output(producer)
            except BaseException:
                self._put_back(report)
                raise
            if stopping:
                return
            if connection.supports_heartbeats:
                drain(connection, timeout=0)

    def _wait(self) -> tuple[StatusReport | None, bool]:
        with self._changed:
            self._changed.wait_for(
                lambda: self._something_waits() or self._report or self._stopping.is_set(), timeout=KEEP_ALIVE_S
            )
            report, self._report = self._report, None
            return report, self._stopping.is_set() and not self._something_waits()

    def _something_waits(self) -> bool:
        # While the journal does not take that results were sent, no others are: they would be sent for ever.
        return (self._results_waiting and not self._unnoted) or self._output_waiting

    def _put_back(self, report: StatusReport | None) -> None:
        with self._changed:
            if report is not None:
                self._report = report if self._report is None else _merged(report, self._report)

    def _send_results(self, producer: Producer) -> None:
        if not self._results_waiting and not self._unnoted:
            return
        self._results_waiting = False
        try:
            while self._note_sent() and (
                results := self._journal.unsent(most=MOST_RESULTS, most_bytes=MOST_RESULT_BYTES)
            ):
                task_ids = [task_id for task_id, _ in results]
                self._send_pieces(producer, of=task_ids)
                _publish(producer, self.addresses.results, result_batch_body([text for _, text in results]))
                self._unnoted = task_ids
        except BaseException:
            self._results_waiting = True
            raise
        if self._unnoted:
            self._results_waiting = True

    def _note_sent(self) -> bool:
        """Have the journal note what was sent. If it cannot, that is tried again with the next report."""
        try:
            if self._unnoted:
                self._journal.sent(self._unnoted)
                self._unnoted = []
            return True
        except sqlite3.Error as error:
            log.debug("the journal cannot note that results were sent, trying again: %s", error)
            self._on_disk_trouble(error)
            return False

    def _send_output(self, producer: Producer) -> None:
        """One message of it; if there is more, that comes after the results that have come meanwhile."""
        if self._output_waiting:
            self._output_waiting = False
            try:
                self._output_waiting = self._send_pieces(producer) or self._output_waiting
            except BaseException:
                self._output_waiting = True
                raise

    def _send_pieces(self, producer: Producer, of: Sequence[str] | None = None) -> bool:
        """Whether there were any."""
        pieces = self._output.take(most_bytes=MOST_OUTPUT_BYTES, of=of) if self._output else {}
        if pieces:
            _publish(producer, self.addresses.results, encode(OutputBatch(list(pieces.values()))))
            self._output.sent(list(pieces))
        return bool(pieces)


def result_batch_body(texts: Sequence[str]) -> bytes:
    """The message ``farcall.wire.encode(ResultBatch(...))``, of results that are JSON texts already."""
    results = ",".join(texts).encode("utf-8", "surrogatepass")
    return ENVELOPE_VERSION + b'{"message_type":"result_batch","data":{"results":[' + results + b"]}}"


def _merged(earlier: StatusReport | None, later: StatusReport) -> StatusReport:
    statuses = {**(earlier.task_statuses if earlier is not None else {}), **later.task_statuses}
    return StatusReport(later.endpoint_id, later.global_state, statuses, later.holds)


def _consumer(channel: Any, queue: str, on_message: Callable[[Message], None]) -> Consumer:
    # The service declares its queues; where they live only in Kombu's own head, every side must say the same.
    ours = isinstance(channel, virtual.Channel)
    return Consumer(channel, [Queue(queue, durable=True)], on_message=on_message, auto_declare=ours)


def _declare(producer: Producer, address: Address) -> None:
    if isinstance(producer.channel, virtual.Channel):
        exchange = Exchange(address.exchange, type="topic", durable=True)
        Queue(address.queue, exchange, routing_key=f"*.{address.queue}", durable=True)(producer.channel).declare()


def _publish(producer: Producer, address: Address, body: bytes) -> None:
    properties: dict[str, Any] = {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "delivery_mode": 2,
        **{key: value for key, value in (address.properties or {}).items() if value is not None},
    }
    if "expiration" in properties:
        # Milliseconds as text in AMQP; Kombu counts in seconds.
        properties["expiration"] = float(properties["expiration"]) / 1000
    producer.publish(
        body,
        exchange=address.exchange,
        routing_key=address.routing_key,
        mandatory=address.mandatory,
        timeout=PUBLISH_TIMEOUT_S,
        **properties,
    )


def _bytes(body: Any) -> bytes:
    """A body as it was sent; some transports decode it by its ``content_encoding``, where that is possible."""
    return body.encode("utf-8", "surrogatepass") if isinstance(body, str) else bytes(body)
