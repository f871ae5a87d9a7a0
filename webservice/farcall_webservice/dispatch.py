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
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from kombu import Connection

from farcall import wire
from farcall_webservice import queues
from farcall_webservice.accounts import Accounts, SharedAccount
from farcall_webservice.catalogue import Catalogue, TaskMessage
from farcall_webservice.children import Children
from farcall_webservice.database import UNAVAILABLE, Database, cause_of
from farcall_webservice.forward import Forwarder
from farcall_webservice.ledger import Ledger, Outgoing
from farcall_webservice.one_by_one import OneByOne
from farcall_webservice.publisher import Publisher
from farcall_webservice.starting import Starter
from farcall_webservice.surviving import LONGEST_PAUSE_S, keep_at
from farcall_webservice.window import Window

log = logging.getLogger(__name__)

#: So much of what is to be sent is held in memory; beyond that it is read from the ledger when its turn comes.
CHARACTERS_HELD = 64 * 1024 * 1024
#: So much is at most held of what is sent once more.
CHARACTERS_SENT_AGAIN = 16 * 1024 * 1024
#: What others may take over so soon is not published from memory.
CLAIM_LEFT_S = 5.0
#: So many commands are kept for a broker that is away, and for so long.
COMMANDS_KEPT, COMMAND_KEPT_S = 1000, 60.0
#: What was published is noted in the ledger when nothing was to be sent for so long, or when so many have gathered.
MARK_AFTER_S = 0.05
MARK_AT_MOST = 200
#: How often to look for what another process has left undispatched, and for results that did not go to their queues.
LEFT_S = 4.0
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
        tell: Callable[[Collection[str]], None] = lambda _: None,
    ) -> None:
        """``alone`` says that no other process dispatches: everything undispatched is for this one to send.

        ``tell`` is called with the groups that have news when the dispatcher has given tasks up.
        """
        self._broker_url = broker_url
        self._ledger = ledger
        self._alone = alone
        self._next_look = self._next_sweep = 0.0
        self._catalogue = Catalogue(database)
        self._broker_errors = queues.errors_of(broker_url)
        self._publisher: Publisher
        self._changed = threading.Condition()
        self._outgoing: list[Outgoing] = []
        #: Characters of that.
        self._held = 0
        #: What is sent once more. The ledger has counted that, so it stays here until the broker has it.
        self._again: list[Outgoing] = []
        #: Published, and not yet noted as such in the ledger.
        self._unmarked: list[str] = []
        #: With the time when they were given.
        self._commands: list[tuple[str, wire.Command, float]] = []
        children = Children(
            accounts or SharedAccount(broker_url),
            database,
            ledger,
            look_again=lambda child_id, in_s: self.look_after(child_id, in_s=in_s),
        )
        self._starter = Starter(children, ledger, self._catalogue, self._tell)
        self._tell_waiting = tell
        #: User endpoints to be looked at, and when.
        self._to_look_after: dict[str, float] = {}
        self._forwarder = Forwarder(database, ledger)
        self._has_group_queues = queues.speaks_amqp(broker_url)
        #: Groups that have results which may have to go to a queue.
        self._news: set[str] = set()
        #: Set where the ledger holds undispatched submissions that are not in memory.
        self._backlog = True
        #: Submissions that the latest look into the backlog has found.
        self._found_last: set[str] = set()
        #: Whether what was published together failed; one of the oldest submissions may be why.
        self._careful = False
        self._one_by_one = OneByOne(ledger, self._messages, self._tell)
        self._window = Window(ledger, self._catalogue, alone=alone)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Publish what is waiting if the broker takes it, and end. What it does not take stays in the ledger."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout=10)

    def send(self, outgoing: Iterable[Outgoing]) -> None:
        """Publish these tasks soon; they are committed already."""
        with self._changed:
            if not self._backlog:
                self._keep([batch for batch in outgoing if batch.submission_id not in self._found_last])
            self._changed.notify()

    def send_again(self, outgoing: Iterable[Outgoing]) -> None:
        """Publish what was published before and has been lost; no more than there is :attr:`room_to_send_again` for."""
        with self._changed:
            self._again += outgoing
            self._changed.notify()

    @property
    def room_to_send_again(self) -> int:
        """How many characters of arguments :meth:`send_again` takes now; the rest is found missing again."""
        with self._changed:
            return CHARACTERS_SENT_AGAIN - sum(batch.characters for batch in self._again)

    def heed(self, runner_id: str, *, held: bool) -> None:
        """There is news of an endpoint for which something may be held back: see soon whether it may go out.

        ``held`` says that something is.
        """
        with self._changed:
            if self._window.heed(runner_id, held=held):
                self._changed.notify()

    def forward(self, task_group_ids: Iterable[str]) -> None:
        """Publish new results of these groups soon, where the groups have queues; they are committed already."""
        if self._has_group_queues:
            with self._changed:
                self._news.update(task_group_ids)
                self._changed.notify()

    def look_after(self, child_id: str, *, in_s: float = 0.0) -> None:
        """See soon whether a user endpoint is there, and if it is not, start it and send again what it has lost."""
        with self._changed:
            self._to_look_after[child_id] = time.monotonic() + in_s
            self._changed.notify()

    def command(self, endpoint_id: str, command: wire.Command) -> None:
        """Tell an agent something. A command is lost with the process; what it asks for is enforced elsewhere too."""
        with self._changed:
            if any(pending[:2] == (endpoint_id, command) for pending in self._commands):
                return
            self._commands.append((endpoint_id, command, time.monotonic()))
            self._changed.notify()

    def queued_messages(self, endpoint_id: str) -> int:
        """How many messages wait on an endpoint's queue. Raises the transport's error if the broker is down."""
        with queues.connect(self._broker_url) as connection:
            return int(queues.look_at(connection, queues.tasks_queue(endpoint_id)).message_count)

    def queued_results(self) -> int:
        """How many messages with results no collector has taken yet. Raises like :meth:`queued_messages`."""
        with queues.connect(self._broker_url) as connection:
            return int(queues.look_at(connection, queues.RESULTS).message_count)

    def _run(self) -> None:
        keep_at(self._connect_and_publish, explain=self._explain, wait=self._wait_after_failure)

    def _explain(self, error: Exception) -> str | None:
        if isinstance(error, UNAVAILABLE):
            return f"the database cannot be used ({cause_of(error)})"
        return f"the broker does not take messages ({error})" if isinstance(error, self._broker_errors) else None

    def _wait_after_failure(self, pause: float) -> bool:
        with self._changed:
            # What was in memory is undispatched in the ledger too, and memory is not for an outage's backlog.
            self._forget_outgoing()
            self._news.clear()
            self._changed.wait_for(lambda: self._stopping, timeout=pause)
            return not self._stopping

    def _connect_and_publish(self) -> None:
        with queues.connect(self._broker_url, confirm_each=False, heartbeat_s=queues.HEARTBEAT_S) as connection:
            connection.ensure_connection(max_retries=1)
            self._publish_until_stopped(connection)

    def _publish_until_stopped(self, connection: Connection) -> None:
        self._publisher = Publisher(connection)
        self._mark()
        self._window.recall()
        if self._has_group_queues:
            self._forwarder.use(connection)
            self.forward(self._forwarder.behind())
        while True:
            with self._changed:
                found = self._changed.wait_for(self._has_work, timeout=self._longest_wait_s())
                outgoing, self._outgoing, self._held = self._outgoing, [], 0
                again = list(self._again)
                news, self._news = self._news, set()
            self._sweep_if_due()
            outgoing = self._still_claimed(outgoing)
            if self._backlog and not outgoing:
                self._mark()
                outgoing = self._take_backlog()
            released = self._let_go_if_due()
            outgoing = [*again, *released, *self._window.admit(outgoing)]
            if outgoing and self._careful:
                self._publisher = self._one_by_one.publish(connection, self._publisher, outgoing)
                self._careful = False
            elif outgoing:
                self._publish(outgoing)
            with self._changed:
                del self._again[: len(again)]
            # What is not taken out before its turn is not lost where something before it fails.
            with self._changed:
                children = self._take_due_children()
            self._look_at(children)
            self._starter.step(self._publisher)
            news |= self._forwarder.take_due()
            if news:
                self.forward(self._forwarder.take_turns(news))
            with self._changed:
                commands, self._commands = self._commands, []
            self._publish_commands(commands)
            if not found:
                self._publisher.show_life()
            if not found or self._stopping or len(self._unmarked) >= MARK_AT_MOST:
                self._mark()
            if self._stopping and not outgoing and not commands and not news:
                return

    def _let_go_if_due(self) -> list[Outgoing]:
        if self._window.next_due() > time.monotonic():
            return []
        self._mark()
        return list(self._window.let_go())

    def _sweep_if_due(self) -> None:
        now = time.monotonic()
        if now >= self._one_by_one.look_again_at:
            self._one_by_one.look_again_at = math.inf
            self._backlog = True
        if not self._alone and now >= self._next_look:
            self._next_look = now + LEFT_S
            self._backlog = True
        if not self._alone and now >= self._next_sweep:
            self._next_sweep = now + SWEEP_S
            if self._has_group_queues:
                self.forward(self._forwarder.behind())

    def _has_work(self) -> bool:
        return (
            bool(self._outgoing or self._again or self._commands or self._news or self._backlog or self._stopping)
            or self._starter.has_work
            or self._next_due() <= time.monotonic()
        )

    def _longest_wait_s(self) -> float:
        longest = MARK_AFTER_S if self._unmarked else LEFT_S
        return max(0.0, min(longest, self._next_due() - time.monotonic()))

    def _next_due(self) -> float:
        return min(
            self._one_by_one.look_again_at,
            self._window.next_due(),
            self._forwarder.next_due(),
            *self._to_look_after.values(),
        )

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
        self._window.marked()

    def _keep(self, outgoing: Sequence[Outgoing]) -> None:
        self._outgoing += outgoing
        self._held += sum(batch.characters for batch in outgoing)
        if self._held > CHARACTERS_HELD:
            self._forget_outgoing()

    def _forget_outgoing(self) -> None:
        self._outgoing, self._held = [], 0
        self._backlog = True

    def _still_claimed(self, outgoing: list[Outgoing]) -> list[Outgoing]:
        """Without what another process may publish soon, because this one has not come to it."""
        if self._alone:
            return outgoing
        until = time.time() + CLAIM_LEFT_S
        kept = [batch for batch in outgoing if batch.claimed_until > until]
        if len(kept) < len(outgoing):
            self._backlog = True
        return kept

    def _take_backlog(self) -> list[Outgoing]:
        # First the flag, then the look: what is committed after the look comes through memory. What was committed
        # before may come both ways, and is let through once.
        with self._changed:
            self._backlog = False
        outgoing = self._ledger.undispatched(alone=self._alone)
        with self._changed:
            self._found_last = {batch.submission_id for batch in outgoing}
            self._outgoing = [batch for batch in self._outgoing if batch.submission_id not in self._found_last]
            self._backlog = self._backlog or bool(outgoing)
        return outgoing

    def _publish(self, outgoing: Sequence[Outgoing]) -> None:
        """Publish all of it together."""
        by_runner: dict[str, list[wire.BatchedTask]] = defaultdict(list)
        for batch in outgoing:
            by_runner[batch.runner_id].extend(batch.tasks)
        # Until it has gone well, as one of them may be why it did not.
        self._careful = True
        for runner_id, tasks in by_runner.items():
            queue = queues.tasks_queue(runner_id)
            for message in self._messages(self._publisher, runner_id, tasks):
                self._publisher.publish(queue, message.body, message.headers)
        self._publisher.confirm()
        self._careful = False
        self._unmarked += [batch.submission_id for batch in outgoing]

    def _messages(
        self, publisher: Publisher, runner_id: str, tasks: Sequence[wire.BatchedTask]
    ) -> Iterator[TaskMessage]:
        """Tasks for one runner as messages. A user endpoint is looked at first, whether it has to be started."""
        if not tasks:
            return
        runner = self._catalogue.runner(runner_id)
        if runner.is_child:
            # What was published and taken may have been lost with whoever took it, so the ledger has to know of it.
            self._mark()
            self._starter.look(publisher, runner_id, publishing=True)
        yield from self._catalogue.messages(runner, tasks)

    def _look_at(self, child_ids: Sequence[str]) -> None:
        for done, child_id in enumerate(child_ids):
            try:
                self._mark()
                self._starter.look(self._publisher, child_id, publishing=False)
            except Exception:
                for each in child_ids[done:]:
                    self.look_after(each, in_s=LONGEST_PAUSE_S)
                raise

    def _publish_commands(self, commands: Sequence[tuple[str, wire.Command, float]]) -> None:
        try:
            for endpoint_id, command, _ in commands:
                self._publisher.publish(queues.commands_queue(endpoint_id), wire.encode(command))
            self._publisher.confirm()
        except Exception:
            with self._changed:
                since = time.monotonic() - COMMAND_KEPT_S
                young = [command for command in commands if command[2] >= since]
                self._commands = [*young, *self._commands][-COMMANDS_KEPT:]
            raise

    def _tell(self, task_group_ids: Collection[str]) -> None:
        self._tell_waiting(task_group_ids)
        self.forward(task_group_ids)
