"""The agent's side of the broker: tasks and commands come in, results and reports go out. Nobody else sees Kombu.

Inbox and outbox have a thread and a connection each, and reconnect for ever. No timer delays anything: what accumulates
while one message is being sent travels in the next.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from kombu import Connection, Consumer, Exchange, Message, Producer, Queue
from kombu.transport import virtual

from farcall.errors import WireError
from farcall.wire import ENVELOPE_VERSION, Command, StatusReport, TaskBatch, decode, encode

from .addresses import Address, Addresses
from .journal import Journal

log = logging.getLogger(__name__)

M = TypeVar("M")

#: Results in one message, and their size; a single result may be larger.
MOST_RESULTS = 1000
MOST_RESULT_BYTES = 4 * 1024 * 1024

#: Failed connections in a row after which the agent asks the service whether the broker has moved.
FAILURES_BEFORE_ASKING = 5

#: Before tasks are taken again that could not be written down.
DISK_PAUSE_S = 5.0

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0

#: We acknowledge within milliseconds. A message unacknowledged for a minute was taken by somebody who died.
_REDIS_OPTIONS = {
    "visibility_timeout": 60,
    "socket_keepalive": True,
    "socket_connect_timeout": 10,
    # A broker that is there but does not answer is one that is not there.
    "socket_timeout": 15,
    "health_check_interval": 10,
}


class _Line(threading.Thread, ABC):
    """A thread that keeps one connection to the broker and uses it."""

    def __init__(self, name: str, addresses: Addresses, on_unreachable: Callable[[], None]) -> None:
        super().__init__(name=name, daemon=True)
        self.addresses = addresses
        #: Set while the line is up.
        self.connected = threading.Event()
        self._on_unreachable = on_unreachable
        self._stopping = threading.Event()

    @abstractmethod
    def url(self) -> str: ...

    @abstractmethod
    def work(self, connection: Connection) -> None:
        """Use the connection until the line is told to stop."""

    def run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            connection = _connection(self.url())
            try:
                connection.connect()
                self.work(connection)
                return
            # A broken broker, or a Kombu transport with a bug in its reconnection, must not end the agent.
            except Exception as error:
                failures = 1 if self.connected.is_set() else failures + 1
                self.connected.clear()
                self._tell(error, failures, connection)
            finally:
                _close(connection)
            self._stopping.wait(min(_FIRST_PAUSE_S * 2 ** (failures - 1), _LONGEST_PAUSE_S))

    def _tell(self, error: Exception, failures: int, connection: Connection) -> None:
        if self._stopping.is_set():
            return
        known = isinstance(error, (*connection.connection_errors, *connection.channel_errors, OSError))
        log.warning(
            "%s: the broker at %s does not answer, trying again: %s",
            self.name,
            connection.as_uri(),
            f"{type(error).__name__}: {error}",
            exc_info=None if known else error,
        )
        if failures % FAILURES_BEFORE_ASKING == 0:
            self._on_unreachable()


class Inbox(_Line):
    """Takes tasks and commands. A message is acknowledged when ``on_tasks`` has written its tasks down."""

    def __init__(
        self,
        addresses: Addresses,
        *,
        on_tasks: Callable[[TaskBatch], None],
        on_command: Callable[[Command], None],
        on_unreachable: Callable[[], None],
    ) -> None:
        super().__init__("inbox", addresses, on_unreachable)
        self._on_tasks = on_tasks
        self._on_command = on_command
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
        consuming = True
        while not self._stopping.is_set():
            if consuming and not self._room.is_set():
                tasks.cancel()
                consuming = False
            if not consuming and self._room.wait(timeout=0.5):
                tasks.consume()
                consuming = True
            _drain(connection, timeout=1.0 if consuming else 0.01)
        tasks.cancel()
        commands.cancel()

    def _take_tasks(self, message: Message) -> None:
        batch = _decoded(message, TaskBatch)
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
        command = _decoded(message, Command)
        if command is not None:
            message.ack()
            self._on_command(command)


class Outbox(_Line):
    """Sends what the journal holds unsent, and the latest status report."""

    def __init__(self, addresses: Addresses, journal: Journal, *, on_unreachable: Callable[[], None]) -> None:
        super().__init__("outbox", addresses, on_unreachable)
        self._journal = journal
        self._changed = threading.Condition()
        self._results_waiting = True
        self._report: StatusReport | None = None
        self._idle = threading.Event()

    def results_waiting(self) -> None:
        """The journal has results that have not been sent."""
        with self._changed:
            self._results_waiting = True
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
            except BaseException:
                self._put_back(report)
                raise
            if stopping:
                return

    def _wait(self) -> tuple[StatusReport | None, bool]:
        with self._changed:
            self._changed.wait_for(lambda: self._results_waiting or self._report or self._stopping.is_set())
            report, self._report = self._report, None
            return report, self._stopping.is_set() and not self._results_waiting

    def _put_back(self, report: StatusReport | None) -> None:
        with self._changed:
            if report is not None:
                self._report = report if self._report is None else _merged(report, self._report)

    def _send_results(self, producer: Producer) -> None:
        if not self._results_waiting:
            return
        self._results_waiting = False
        try:
            while results := self._journal.unsent(most=MOST_RESULTS, most_bytes=MOST_RESULT_BYTES):
                _publish(producer, self.addresses.results, result_batch_body([text for _, text in results]))
                self._journal.sent([task_id for task_id, _ in results])
        except BaseException:
            self._results_waiting = True
            raise


def result_batch_body(texts: Sequence[str]) -> bytes:
    """The message ``farcall.wire.encode(ResultBatch(...))``, of results that are JSON texts already."""
    results = ",".join(texts).encode("utf-8", "surrogatepass")
    return ENVELOPE_VERSION + b'{"message_type":"result_batch","data":{"results":[' + results + b"]}}"


def _merged(earlier: StatusReport | None, later: StatusReport) -> StatusReport:
    statuses = {**(earlier.task_statuses if earlier is not None else {}), **later.task_statuses}
    return StatusReport(later.endpoint_id, later.global_state, statuses, later.holds)


def _connection(url: str) -> Connection:
    # With AMQP a publish returns when the broker has confirmed it.
    options = _REDIS_OPTIONS if url.startswith(("redis", "valkey")) else {"confirm_publish": True}
    return Connection(url, transport_options=options, connect_timeout=10, heartbeat=30)


def _close(connection: Connection) -> None:
    try:
        connection.release()
    except Exception as error:
        log.debug("closing a connection: %s", error)


def _drain(connection: Connection, *, timeout: float) -> None:
    try:
        connection.drain_events(timeout=timeout)
    except TimeoutError:
        if connection.supports_heartbeats:
            connection.heartbeat_check()


def _consumer(channel: Any, queue: str, on_message: Callable[[Message], None]) -> Consumer:
    # The service declares its queues; where they live only in Kombu's own head, every side must say the same.
    ours = isinstance(channel, virtual.Channel)
    return Consumer(channel, [Queue(queue, durable=True)], on_message=on_message, auto_declare=ours)


def _declare(producer: Producer, address: Address) -> None:
    if isinstance(producer.channel, virtual.Channel):
        exchange = Exchange(address.exchange, type="topic", durable=True)
        Queue(address.queue, exchange, routing_key=f"*.{address.queue}", durable=True)(producer.channel).declare()


def _publish(producer: Producer, address: Address, body: bytes) -> None:
    properties = {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "delivery_mode": 2,
        **{key: value for key, value in (address.properties or {}).items() if value is not None},
    }
    producer.publish(
        body, exchange=address.exchange, routing_key=address.routing_key, mandatory=address.mandatory, **properties
    )


def _decoded(message: Message, kind: type[M]) -> M | None:
    """What a message says, or None: then it has been set aside, for it would never become readable."""
    try:
        decoded = decode(bytes(message.body))
        if isinstance(decoded, kind):
            return decoded
        reason = f"a {type(decoded).__name__} is not expected here"
    except (WireError, TypeError) as error:
        reason = str(error)
    log.error("a message of %d bytes was set aside: %s", len(message.body), reason)
    message.reject(requeue=False)
    return None
