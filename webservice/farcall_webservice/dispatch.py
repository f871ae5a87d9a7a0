"""Carries committed tasks from the ledger to their endpoints' queues.

One thread a process. What has been committed since the last publish returned goes out together, so a lone task waits
for nothing. While the broker is down nothing is kept in memory: when it is back, the ledger knows what to send. Where
several processes dispatch, each publishes what it has written itself, and from time to time looks for what one that
died has left.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kombu import Connection
from kombu.exceptions import OperationalError
from sqlalchemy import select

from farcall import wire
from farcall_webservice import foreign, queues
from farcall_webservice.accounts import Accounts, SharedAccount
from farcall_webservice.children import Children, Circumstances
from farcall_webservice.database import UNAVAILABLE, Database, cause_of
from farcall_webservice.forward import Forwarder
from farcall_webservice.ledger import Ledger, Outgoing
from farcall_webservice.models import Endpoint, Function
from farcall_webservice.publisher import Publisher

log = logging.getLogger(__name__)

#: A message holds at most this many tasks, and about this many characters of payload and code.
TASKS_PER_MESSAGE = 1000
CHARACTERS_PER_MESSAGE = 4 * 1024 * 1024
#: So many functions' code is remembered.
FUNCTIONS_REMEMBERED = 1000
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
#: What was published is noted in the ledger when nothing was to be sent for so long, or when so many have gathered.
MARK_AFTER_S = 0.05
MARK_AT_MOST = 200
#: How often to look for what another process has left undispatched.
SWEEP_S = 15.0


class Dispatcher:
    """Publishes tasks and commands. ``send`` and ``command`` may be called from any thread."""

    def __init__(
        self,
        broker_url: str,
        database: Database,
        ledger: Ledger,
        *,
        alone: bool = True,
        accounts: Accounts | None = None,
        wake: Callable[[Collection[str]], None] = lambda _: None,
    ) -> None:
        """``alone`` says that no other process dispatches: everything undispatched is for this one to send.

        ``wake`` is called with the groups that have news when the dispatcher has given tasks up.
        """
        self._broker_url = broker_url
        self._ledger = ledger
        self._alone = alone
        self._next_sweep = 0.0
        self._catalogue = _Catalogue(database)
        self._wake = threading.Condition()
        self._outgoing: list[Outgoing] = []
        #: Published, and not yet noted as such in the ledger.
        self._unmarked: list[str] = []
        self._commands: list[tuple[str, wire.Command]] = []
        self._children = Children(
            accounts or SharedAccount(broker_url),
            database,
            ledger,
            look_again=lambda child_id, in_s: self.look_after(child_id, in_s=in_s),
        )
        self._wake_groups = wake
        #: User endpoints to be looked at, and when.
        self._to_look_after: dict[str, float] = {}
        self._forwarder = Forwarder(database, ledger)
        self._has_group_queues = queues.speaks_amqp(broker_url)
        #: Groups that have results which may have to go to a queue.
        self._news: set[str] = set()
        #: Set where the ledger holds undispatched submissions that are not in memory.
        self._backlog = True
        #: Submissions that the latest look into the backlog has found.
        self._looked_up: set[str] = set()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Publish what is waiting if the broker takes it, and end. What it does not take stays in the ledger."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(timeout=10)

    def send(self, outgoing: Iterable[Outgoing]) -> None:
        """Publish these tasks soon; they are committed already."""
        with self._wake:
            if not self._backlog:
                self._outgoing += [batch for batch in outgoing if batch.submission_id not in self._looked_up]
            self._wake.notify()

    def send_again(self, outgoing: Iterable[Outgoing]) -> None:
        """Publish what was published before and has been lost. What is not published now is found missing again."""
        with self._wake:
            self._outgoing += outgoing
            self._wake.notify()

    def forward(self, task_group_ids: Iterable[str]) -> None:
        """Publish new results of these groups soon, where the groups have queues; they are committed already."""
        if self._has_group_queues:
            with self._wake:
                self._news.update(task_group_ids)
                self._wake.notify()

    def look_after(self, child_id: str, *, in_s: float = 0.0) -> None:
        """See soon whether a user endpoint is there, and if it is not, start it and send again what it has lost."""
        with self._wake:
            self._to_look_after[child_id] = time.monotonic() + in_s
            self._wake.notify()

    def command(self, endpoint_id: str, command: wire.Command) -> None:
        """Tell an agent something. A command is lost with the process; what it asks for is enforced elsewhere too."""
        with self._wake:
            self._commands.append((endpoint_id, command))
            self._wake.notify()

    def queued_messages(self, endpoint_id: str) -> int:
        """How many messages wait on an endpoint's queue. Raises the transport's error if the broker is down."""
        with queues.connect(self._broker_url) as connection:
            return int(queues.look_at(connection, queues.tasks_queue(endpoint_id)).message_count)

    def queued_results(self) -> int:
        """How many messages with results no collector has taken yet. Raises like :meth:`queued_messages`."""
        with queues.connect(self._broker_url) as connection:
            return int(queues.look_at(connection, queues.RESULTS).message_count)

    def _run(self) -> None:
        pause = FIRST_PAUSE_S
        connection = self._connect()
        while True:
            started = time.monotonic()
            try:
                with connection:
                    self._publish_until_stopped(connection)
                return
            except Exception as error:
                # The one place where the dispatcher must survive whatever happened: tasks wait for it.
                if time.monotonic() - started > LONGEST_PAUSE_S:
                    pause = FIRST_PAUSE_S
                expected = (*connection.connection_errors, *connection.channel_errors, OperationalError)
                if isinstance(error, UNAVAILABLE):
                    log.warning("the database cannot be used (%s); trying again in %.1f s", cause_of(error), pause)
                elif isinstance(error, expected):
                    log.warning("the broker does not take messages (%s); trying again in %.1f s", error, pause)
                else:
                    log.exception("dispatching failed; trying again in %.1f s", pause)
            connection = self._connect()
            with self._wake:
                # What was in memory is undispatched in the ledger too, and memory is not for an outage's backlog.
                self._outgoing.clear()
                self._news.clear()
                self._backlog = True
                if self._stopping:
                    return
                self._wake.wait_for(lambda: self._stopping, timeout=pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _connect(self) -> Connection:
        return queues.connect(self._broker_url, confirm_each=False, heartbeat_s=queues.HEARTBEAT_S)

    def _publish_until_stopped(self, connection: Connection) -> None:
        connection.ensure_connection(max_retries=1)
        publisher = Publisher(connection)
        self._mark()
        if self._has_group_queues:
            self.forward(self._forwarder.behind())
        while True:
            with self._wake:
                found = self._wake.wait_for(self._has_work, timeout=self._longest_wait_s())
                outgoing, self._outgoing = self._outgoing, []
                commands, self._commands = self._commands, []
                news, self._news = self._news, set()
                children = self._take_due_children()
            for endpoint_id, command in commands:
                publisher.publish(queues.commands_queue(endpoint_id), wire.encode(command))
            self._sweep_if_due()
            if self._backlog and not outgoing:
                self._mark()
                outgoing = self._take_backlog()
            if outgoing:
                self._publish(publisher, outgoing)
            for child_id in children:
                self._publish_to_child(publisher, child_id, ())
            if news:
                self._forward(publisher, news)
            publisher.confirm()
            queues.show_life(connection)
            if not found or self._stopping or len(self._unmarked) >= MARK_AT_MOST:
                self._mark()
            if self._stopping and not outgoing and not commands and not news:
                return

    def _sweep_if_due(self) -> None:
        if not self._alone and time.monotonic() >= self._next_sweep:
            self._next_sweep = time.monotonic() + SWEEP_S
            with self._wake:
                self._backlog = True
            if self._has_group_queues:
                self.forward(self._forwarder.behind())

    def _has_work(self) -> bool:
        return (
            bool(self._outgoing or self._commands or self._news or self._backlog or self._stopping)
            or self._next_child_due() <= time.monotonic()
        )

    def _longest_wait_s(self) -> float:
        longest = MARK_AFTER_S if self._unmarked else SWEEP_S
        return max(0.0, min(longest, self._next_child_due() - time.monotonic()))

    def _next_child_due(self) -> float:
        return min(self._to_look_after.values(), default=math.inf)

    def _take_due_children(self) -> list[str]:
        now = time.monotonic()
        due = [child_id for child_id, at in self._to_look_after.items() if at <= now]
        for child_id in due:
            del self._to_look_after[child_id]
        return due

    def _mark(self) -> None:
        """Note what was published. It need not be at once: what a crash leaves unnoted is sent twice, no more."""
        if self._unmarked:
            self._ledger.mark_dispatched(self._unmarked)
            self._unmarked = []

    def _take_backlog(self) -> list[Outgoing]:
        # First the flag, then the look: what is committed after the look comes through memory. What was committed
        # before may come both ways, and is let through once.
        with self._wake:
            self._backlog = False
        outgoing = self._ledger.undispatched(alone=self._alone)
        with self._wake:
            self._looked_up = {batch.submission_id for batch in outgoing}
            self._outgoing = [batch for batch in self._outgoing if batch.submission_id not in self._looked_up]
            self._backlog = bool(outgoing)
        return outgoing

    def _forward(self, publisher: Publisher, news: set[str]) -> None:
        behind = self._forwarder.behind(news)
        self.forward([each for each in behind if self._forwarder.forward(each, publisher.publish_results)])

    def _publish(self, publisher: Publisher, outgoing: Sequence[Outgoing]) -> None:
        by_runner: dict[str, list[wire.BatchedTask]] = defaultdict(list)
        for batch in outgoing:
            by_runner[batch.runner_id].extend(batch.tasks)
        for runner_id, tasks in by_runner.items():
            if not tasks:
                continue
            runner = self._catalogue.runner(runner_id)
            if runner.takes_batches:
                self._publish_batches(publisher, runner_id, tasks)
            elif runner.is_child:
                self._publish_to_child(publisher, runner_id, tasks)
            else:
                self._publish_each(publisher, runner_id, tasks)
        publisher.confirm()
        self._unmarked += [batch.submission_id for batch in outgoing]

    def _publish_batches(self, publisher: Publisher, runner_id: str, tasks: Sequence[wire.BatchedTask]) -> None:
        queue = queues.tasks_queue(runner_id)
        codes = self._catalogue.codes({task.function_id for task in tasks})
        for part in _parts(tasks, codes):
            functions = {task.function_id: codes[task.function_id] for task in part}
            publisher.publish(queue, wire.encode(wire.TaskBatch(functions, part)))

    def _publish_each(self, publisher: Publisher, runner_id: str, tasks: Sequence[wire.BatchedTask]) -> None:
        queue = queues.tasks_queue(runner_id)
        codes = self._catalogue.codes({task.function_id for task in tasks})
        for task in tasks:
            publisher.publish(queue, *foreign.task_message(task, codes[task.function_id].code))

    def _publish_to_child(self, publisher: Publisher, child_id: str, tasks: Sequence[wire.BatchedTask]) -> None:
        """Publish to a user endpoint, which is started if it is not there; without tasks, see to that alone."""
        # What was published and taken may have been lost with whoever took it, so the ledger has to know of it.
        self._mark()
        queue = queues.tasks_queue(child_id)
        seen = Circumstances(publisher.consumers(queue), bool(tasks), publisher.is_settled)
        start = self._children.start(child_id, seen)
        if start is None:
            self._publish_each(publisher, child_id, tasks)
            return
        every = {task.task_id: task for task in (*start.tasks, *tasks)}
        # What another process has published, but not yet noted, would be lost with what is on the queue.
        unnoted = [task_id for task_id in publisher.empty(queue) if task_id not in every]
        for batch in self._ledger.resend(unnoted, as_lost=False) if unnoted else ():
            every.update({task.task_id: task for task in batch.tasks})
        self._publish_each(publisher, child_id, list(every.values()))
        publisher.publish_command(queues.commands_queue(start.parent_id), start.command, foreign.COMMAND_EXPIRES_S)
        self._wake_groups(start.news)
        self.forward(start.news)


@dataclass(frozen=True)
class _Runner:
    """Who runs tasks."""

    takes_batches: bool
    is_child: bool


class _Catalogue:
    """What the dispatcher has to know of functions and endpoints, without asking the database for each task."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._codes: OrderedDict[str, wire.FunctionCode] = OrderedDict()

    def codes(self, function_ids: set[str]) -> dict[str, wire.FunctionCode]:
        """Code by function id. It never changes, so what was read once is remembered."""
        found = {function_id: self._codes[function_id] for function_id in function_ids if function_id in self._codes}
        missing = [function_id for function_id in function_ids if function_id not in found]
        if missing:
            with self._database.reading() as connection:
                rows = connection.execute(
                    select(Function.id, Function.code, Function.details).where(Function.id.in_(missing))
                )
                for row in rows:
                    version = (row.details or {}).get("python_version")
                    found[row.id] = wire.FunctionCode(row.code, version if isinstance(version, str) else None)
            self._codes.update({function_id: found[function_id] for function_id in missing})
        for function_id in function_ids:
            self._codes.move_to_end(function_id)
        while len(self._codes) > FUNCTIONS_REMEMBERED:
            self._codes.popitem(last=False)
        return found

    def runner(self, runner_id: str) -> _Runner:
        """How a runner wants its tasks. Asked each time: another agent may have taken over."""
        with self._database.reading() as connection:
            row = connection.execute(select(Endpoint.details, Endpoint.parent_id).where(Endpoint.id == runner_id)).one()
        return _Runner(foreign.takes_batches(row.details), row.parent_id is not None)


def _parts(
    tasks: Sequence[wire.BatchedTask], codes: Mapping[str, wire.FunctionCode]
) -> Iterator[list[wire.BatchedTask]]:
    part: list[wire.BatchedTask] = []
    functions: set[str] = set()
    characters = 0
    for task in tasks:
        added = len(task.payload) + (0 if task.function_id in functions else len(codes[task.function_id].code))
        if part and (len(part) == TASKS_PER_MESSAGE or characters + added > CHARACTERS_PER_MESSAGE):
            yield part
            part, functions, characters = [], set(), 0
            added = len(task.payload) + len(codes[task.function_id].code)
        part.append(task)
        functions.add(task.function_id)
        characters += added
    if part:
        yield part
