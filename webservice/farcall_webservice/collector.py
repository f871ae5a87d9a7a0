"""Brings results and heartbeats from the broker into the ledger, and wakes whoever waits.

Each round takes what the broker has at hand, writes it in few transactions, and only then acknowledges it. Should the
collector die in between, the messages come again and the ledger's first result wins. What cannot be used is set aside
among the dead letters, and never comes again.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from kombu import Connection, Consumer, Message

from farcall import wire
from farcall.errors import WireError
from farcall_webservice import dead_letters, queues
from farcall_webservice.accounts import SharedAccount
from farcall_webservice.children import Children
from farcall_webservice.database import UNAVAILABLE, Database, cause_of
from farcall_webservice.dead_letters import Letter
from farcall_webservice.dispatch import Dispatcher
from farcall_webservice.fields import uuid_text
from farcall_webservice.ledger import Ledger
from farcall_webservice.reports import Reports, UnknownEndpoint
from farcall_webservice.surviving import FIRST_PAUSE_S, LONGEST_PAUSE_S, keep_at
from farcall_webservice.waiting import Waiting

log = logging.getLogger(__name__)

#: A round ends after so many messages, or bytes of them, even if there are more.
MESSAGES_PER_ROUND = 300
BYTES_PER_ROUND = 32 * 1024 * 1024
#: How long a busy round looks for one more message.
LINGER_S = 0.0005
#: A message larger than this most likely holds many results.
LONE_RESULT_BYTES = 2000


@dataclass
class _Round:
    """What one round has received, by sender, and what of it is of no use."""

    output: dict[str, list[wire.Output]] = field(default_factory=lambda: defaultdict(list))
    results: dict[str, list[wire.Result]] = field(default_factory=lambda: defaultdict(list))
    reports: dict[str, list[wire.StatusReport]] = field(default_factory=lambda: defaultdict(list))
    letters: list[Letter] = field(default_factory=list)

    def add(self, message: Message) -> None:
        routing_key = str(message.delivery_info.get("routing_key") or "")
        # What somebody has put onto the queue past its exchange names the queue there.
        queue = str(message.delivery_info.get("exchange") or routing_key)
        sender = uuid_text(queues.endpoint_id_of(routing_key))
        body = _body(message)
        try:
            content = wire.decode(body)
        except WireError as error:
            self.set_aside(body, str(error), queue, sender or routing_key)
            return
        if sender is None:
            self.set_aside(body, "it does not say which endpoint sent it", queue, routing_key)
        elif isinstance(content, wire.Result):
            self.results[sender].append(content)
        elif isinstance(content, wire.ResultBatch):
            self.results[sender].extend(content.results)
        elif isinstance(content, wire.OutputBatch):
            self.output[sender].extend(content.pieces)
        elif isinstance(content, wire.StatusReport) and content.endpoint_id == sender:
            self.reports[sender].append(content)
        elif isinstance(content, wire.StatusReport):
            self.set_aside(body, "it is a report in the name of another endpoint", queue, sender)
        elif isinstance(content, wire.DeadLetter):
            self.letters.append(
                Letter.of(content.body, reason=content.reason, queue=content.queue, sender=sender, size=content.size)
            )
        else:
            self.set_aside(body, f"a {type(content).__name__} does not belong here", queue, sender)

    def set_aside(self, body: bytes, reason: str, queue: str, sender: str) -> None:
        self.letters.append(Letter.of(body, reason=reason, queue=queue, sender=sender))


class Collector:
    """Consumes the queues `results` and `heartbeats` in one thread."""

    def __init__(
        self, broker_url: str, database: Database, ledger: Ledger, dispatcher: Dispatcher, waiting: Waiting
    ) -> None:
        self._broker_url = broker_url
        self._broker_errors = queues.errors_of(broker_url)
        self._database = database
        self._ledger = ledger
        self._dispatcher = dispatcher
        self._waiting = waiting
        # It is the dispatcher that starts them, and needs their accounts.
        children = Children(
            SharedAccount(broker_url),
            database,
            ledger,
            look_again=lambda child_id, in_s: dispatcher.look_after(child_id, in_s=in_s),
        )
        self._reports = Reports(database, ledger, dispatcher, children, self._tell)
        self._received: list[Message] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End after the round that is under way."""
        self._stopping.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        keep_at(self._connect_and_collect, explain=self._explain, wait=lambda pause: not self._stopping.wait(pause))

    def _explain(self, error: Exception) -> str | None:
        return f"lost the broker ({error})" if isinstance(error, self._broker_errors) else None

    def _connect_and_collect(self) -> None:
        while not self._stopping.is_set():
            try:
                with queues.connect(self._broker_url, heartbeat_s=queues.HEARTBEAT_S) as connection:
                    self._collect_until_stopped(connection)
            except UNAVAILABLE as error:
                # Received and returned to the broker again and again, a message could exceed what it bears.
                log.warning("the database cannot be used (%s); collecting goes on when it can", cause_of(error))
                self._wait_for_database()

    def _wait_for_database(self) -> None:
        pause = FIRST_PAUSE_S
        while not self._stopping.wait(pause):
            try:
                self._database.ping()
                return
            except UNAVAILABLE:
                pause = min(2 * pause, LONGEST_PAUSE_S)

    def _collect_until_stopped(self, connection: Connection) -> None:
        connection.ensure_connection(max_retries=1)
        self._received.clear()
        with Consumer(
            connection.default_channel,
            # In this order: while the second one is asked for, all that is allowed of the first one may arrive.
            queues=[queues.HEARTBEATS, queues.RESULTS],
            on_message=self._received.append,
            prefetch_count=MESSAGES_PER_ROUND,
        ):
            busy = False
            while not self._stopping.is_set():
                # A short wait, because a stop cannot interrupt it.
                _drain(connection, timeout=0.5)
                queues.show_life(connection)
                # What is reported is compared with the ledger, so the results that are here have to be in it.
                lingers = busy or any(map(_is_report, self._received))
                while lingers and self._received and self._has_room():
                    if not _drain(connection, timeout=LINGER_S):
                        break
                if self._received:
                    # A lone message is not kept waiting for a second one; after some at a time there may be more.
                    busy = len(self._received) > 1 or len(self._received[0].body) > LONE_RESULT_BYTES
                    self._record(self._received)
                    for message in self._received:
                        message.ack()
                    self._received.clear()

    def _has_room(self) -> bool:
        size = sum(len(message.body) for message in self._received)
        return len(self._received) < MESSAGES_PER_ROUND and size < BYTES_PER_ROUND

    def _record(self, messages: Sequence[Message]) -> None:
        received = _Round()
        for message in messages:
            received.add(message)
        # Before the results: who reads what a task prints is told that this is all once it has ended.
        for sender, pieces in received.output.items():
            self._record_output(sender, pieces, received)
        for sender, results in received.results.items():
            self._record_results(sender, results, received)
        for sender, reports in received.reports.items():
            self._note_reports(sender, reports, received)
        if received.letters:
            dead_letters.file(self._broker_url, received.letters)

    def _record_results(self, sender: str, results: Sequence[wire.Result], received: _Round) -> None:
        refused: dict[str, str] = {}
        try:
            self._tell(self._ledger.record_results(sender, results, refused=refused))
            self._dispatcher.heed(sender, held=False)
        except UNAVAILABLE:
            # The database cannot be used now. All of it will come again.
            raise
        except Exception as error:
            # One result that cannot be written must not keep all others from being.
            if len(results) > 1:
                for result in results:
                    self._record_results(sender, [result], received)
                return
            self._give_up(sender, results[0], error, received)
            return
        for result in results if refused else ():
            if result.task_id in refused:
                received.set_aside(wire.encode(result), refused[result.task_id], queues.RESULTS.name, sender)

    def _give_up(self, sender: str, result: wire.Result, error: Exception, received: _Round) -> None:
        """Fail the task of a result that cannot be written, and set the result aside."""
        log.error("a result of task %s of endpoint %s cannot be written", result.task_id, sender, exc_info=error)
        # Without the statement and its parameters, which are the service's own affair.
        cause = cause_of(error)
        reason = f"The endpoint sent a result that cannot be kept: {type(cause).__name__}: {cause}"
        received.set_aside(wire.encode(result), reason, queues.RESULTS.name, sender)
        failure = wire.Result(result.task_id, reason, error_details=wire.ErrorDetails("MALFORMED_RESULT", reason))
        try:
            self._tell(self._ledger.record_results(sender, [failure]))
        except UNAVAILABLE:
            raise
        except Exception:
            log.exception("nor can it be written that task %s has failed", result.task_id)

    def _record_output(self, sender: str, pieces: Sequence[wire.Output], received: _Round) -> None:
        try:
            self._waiting.wake(self._ledger.record_output(sender, pieces))
        except UNAVAILABLE:
            raise
        except Exception as error:
            log.exception("what tasks of endpoint %s have printed cannot be kept", sender)
            reason = f"this output cannot be kept: {cause_of(error)}"
            received.set_aside(wire.encode(wire.OutputBatch(pieces)), reason, queues.RESULTS.name, sender)

    def _note_reports(self, sender: str, reports: Sequence[wire.StatusReport], received: _Round) -> None:
        try:
            self._reports.note(sender, reports)
            return
        except UNAVAILABLE:
            raise
        except UnknownEndpoint as error:
            reason = str(error)
        except Exception as error:
            # The next report comes in seconds; this one must not keep others' results waiting until then.
            log.exception("a report of endpoint %s cannot be noted", sender)
            reason = f"this report cannot be noted: {cause_of(error)}"
        for report in reports:
            received.set_aside(wire.encode(report), reason, queues.HEARTBEATS.name, sender)

    def _tell(self, task_group_ids: Collection[str]) -> None:
        self._waiting.wake(task_group_ids)
        self._dispatcher.forward(task_group_ids)


def _drain(connection: Connection, timeout: float) -> bool:
    """Let the transport deliver what it has. False if nothing came within ``timeout`` seconds."""
    try:
        connection.drain_events(timeout=timeout)
    except TimeoutError:
        return False
    except socket.timeout:  # noqa: UP041 -- kombu's own transports raise it by this name
        return False
    return True


def _is_report(message: Message) -> bool:
    return str(message.delivery_info.get("routing_key")).endswith(queues.HEARTBEATS.name)


def _body(message: Message) -> bytes:
    body = message.body
    return body.encode("utf-8", "surrogatepass") if isinstance(body, str) else bytes(body)
