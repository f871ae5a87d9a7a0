"""The endpoint's long-running process: tasks from the broker to the engine, results back, and a word about itself.

Everything that takes long has a thread of its own; the main thread reports, and waits to be told to stop.
"""

from __future__ import annotations

import logging
import queue
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

from farcall.errors import Conflict, Forbidden, NotFound, ServiceError, ServiceUnavailable
from farcall.wire import Command, FunctionCode, TaskBatch

from . import admission, nowfile, status
from .calls import Setting
from .cancelling import Cancellations
from .config import EndpointConfig
from .directories import read_endpoint_id, write_endpoint_id
from .endings import Endings
from .engine import Engine
from .journal import Journal, JournalError, Unfinished
from .mailbox import Inbox, Outbox
from .output import OutputStore
from .plugins import build_provider
from .registration import Registrar, Registration, instance
from .supervisor import Supervisor
from .watching import Watching
from .writing import Writer

log = logging.getLogger(__name__)

#: Tasks to hold before the rest is left in the broker: enough to keep all workers busy with the shortest of tasks.
LEAST_HELD, HELD_PER_WORKER = 2000, 50
MOST_HELD_BYTES = 256 * 1024 * 1024

#: How long the broker may take to answer at the start.
CONNECT_TIMEOUT_S = 30.0

#: What an orderly stop may take: for Parsl with its blocks, then for the last results.
STOP_ENGINE_S, STOP_OUTBOX_S = 10.0, 3.0

#: Of the endpoint's id, what marks its blocks.
OWNER_CHARACTERS = 12

#: How often we look whether there is something to report, at most one report each time.
TICK_S = 1.0

#: How often the journal is tidied up and compared with the engine.
HOUSEKEEPING_PERIOD_S = 10.0


class Stopped(Exception):
    """Told to stop while starting."""


class Agent:
    """One endpoint at work, from its registration to its end."""

    def __init__(self, config: EndpointConfig) -> None:
        self._config = config
        self._instance = instance(config)
        # A signal handler may put into it while the main thread is just taking: of all queues only this one allows it.
        self._requests: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._stop_reason: str | None = None
        self._endpoint_id = ""
        # Between the journal's knowledge of a task and the engine's nothing may come that concerns both.
        self._intake = threading.Lock()
        self._next_heartbeat = 0.0
        self._next_housekeeping = time.monotonic() + HOUSEKEEPING_PERIOD_S
        self._missing: frozenset[str] = frozenset()
        self._now = nowfile.NowFile(config.directory)
        # What the last report said of workers and troubles.
        self._reported: tuple[int, Sequence[str]] = (-1, ())

    def run(self, on_ready: Callable[[], None] = lambda: None) -> int:
        """Be the endpoint until told to stop; then 0. Raises FarcallError for what keeps it from starting."""
        with self._signals():
            try:
                self._provider = build_provider(self._config.provider)
                self._open()
                try:
                    self._register()
                    self._work(on_ready)
                finally:
                    self._writer.write()
                    self._journal.close()
                    self._output.close()
                    self._provider.close()
            except Stopped:
                log.info("stopped while starting: %s", self._stop_reason)
        return 0

    def stop(self, reason: str) -> None:
        """Have :meth:`run` come to an orderly end; from any thread, or a signal handler."""
        self._stop_reason = self._stop_reason or reason
        self._requests.put("stop")

    # -- starting -----------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        path = self._config.directory / "journal.sqlite"
        if not path.exists() and read_endpoint_id(self._config.directory) is not None:
            log.warning("there is no journal %s; the service sends again what it held", path)
        self._journal = Journal(path)
        self._output = OutputStore(self._config.directory / "output.sqlite")
        self._writer = Writer(self._journal, on_results=self._results_written)

    def _register(self) -> None:
        self._registrar = Registrar(self._config, sleep=self._sleep)
        known = read_endpoint_id(self._config.directory)
        registration = self._registrar.register(known)
        self._endpoint_id = registration.endpoint_id
        if known != self._endpoint_id:
            write_endpoint_id(self._config.directory, self._endpoint_id)
        log.info("registered as endpoint %s", self._endpoint_id)
        self._build(registration)

    def _build(self, registration: Registration) -> None:
        self._engine = Engine(
            Setting(
                endpoint_id=self._endpoint_id,
                task_timeout_s=self._config.task_timeout_s,
            ),
            max_retries=self._config.max_retries,
            nodes_per_block=self._config.engine.nodes_per_block,
            listener=self._writer,
        )
        ask = self._ask_for_addresses
        self._outbox = Outbox(
            registration.addresses,
            self._journal,
            self._output,
            on_unreachable=ask,
            on_disk_trouble=self._writer.failed,
        )
        endings = Endings()
        watching = Watching(self._engine, self._output, endings, on_output=self._outbox.output_waiting)
        self._supervisor = Supervisor(
            self._config,
            self._provider,
            self._engine,
            runs_dir=self._config.directory / "runs",
            watcher=watching,
            endings=endings,
            owner=self._endpoint_id.replace("-", "")[:OWNER_CHARACTERS],
        )
        self._cancellations = Cancellations(
            self._registrar.transport, self._endpoint_id, on_cancelled=self._cancel_tasks
        )
        self._inbox = Inbox(
            registration.addresses,
            on_tasks=self._take_tasks,
            on_command=self._obey,
            on_unreachable=ask,
            on_connected=self._cancellations.ask,
        )

    def _work(self, on_ready: Callable[[], None]) -> None:
        try:
            self._supervisor.start()
            # Before anything is run that was cancelled while nobody was here.
            self._learn_of_cancellations()
            self._restore()
            self._outbox.start()
            self._inbox.start()
            self._wait_for_broker()
            self._report()
            log.info("ready")
            on_ready()
            self._serve()
        finally:
            self._shut_down()

    def _learn_of_cancellations(self) -> None:
        try:
            self._cancellations.start()
        except sqlite3.Error as error:
            raise JournalError(f"the journal {self._journal.path} cannot be written: {error}") from error

    def _restore(self) -> None:
        functions, tasks = self._journal.unfinished()
        if tasks:
            log.info("%d tasks were not finished when this endpoint last stopped", len(tasks))
            self._run(functions, tasks)

    def _wait_for_broker(self) -> None:
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        for line in (self._inbox, self._outbox):
            while not line.connected.wait(timeout=0.1):
                if self._stop_reason is not None:
                    raise Stopped
                if time.monotonic() > deadline:
                    raise ServiceUnavailable(
                        f"no connection to the broker within {CONNECT_TIMEOUT_S:g} s: {line.trouble or 'no answer'}. "
                        "The service told us its address; is it reachable from this machine?"
                    )

    def _sleep(self, seconds: float) -> None:
        """Between two tries of a request; ends early when the agent is to stop."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if self._stop_reason is not None:
                raise Stopped
            time.sleep(min(left, 0.2))

    # -- serving: the main thread -------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while True:
            try:
                request = self._requests.get(timeout=TICK_S)
            except queue.Empty:
                self._tick()
                continue
            if request == "stop":
                log.info("stopping: %s", self._stop_reason)
                return
            self._register_again()

    def _tick(self) -> None:
        if self._writer.is_stuck:
            self._writer.write()
        self._note_now()
        changed = (self._engine.load().workers, self._troubles()) != self._reported
        changes = self._engine.news(older_than_s=status.SPOKEN_OF_AFTER_S, most=status.MOST_TRANSITIONS)
        due = time.monotonic() >= self._next_heartbeat
        if changed or changes or due:
            self._report(changes)
        # The engine's load may have changed between two threads' looks at it.
        self._pace()
        if time.monotonic() >= self._next_housekeeping:
            self._keep_house()
            self._next_housekeeping = time.monotonic() + HOUSEKEEPING_PERIOD_S

    def _report(self, changes: status.Changes | None = None) -> None:
        load, troubles = self._engine.load(), self._troubles()
        self._reported = (load.workers, troubles)
        self._next_heartbeat = time.monotonic() + self._config.heartbeat_period_s
        self._outbox.send_report(
            status.report(
                self._endpoint_id,
                self._config,
                instance=self._instance,
                fleet=self._supervisor.fleet,
                load=load,
                finished=self._writer.finished,
                holds=self._journal.held(),
                changes=changes or {},
                troubles=self._writer_troubles(),
            )
        )

    def _note_now(self) -> None:
        fleet, finished = self._supervisor.fleet, self._writer.finished
        load, troubles = self._engine.load(), self._troubles()
        self._now.write(status.now(self._config, fleet, load, finished=finished, troubles=troubles))

    def _writer_troubles(self) -> list[str]:
        trouble = self._writer.trouble
        return [] if trouble is None else [trouble]

    def _troubles(self) -> list[str]:
        return [*self._writer_troubles(), *self._supervisor.fleet.troubles]

    def _keep_house(self) -> None:
        try:
            self._find_missing()
            self._journal.purge()
        except sqlite3.Error as error:
            log.error("the journal could not be tidied up: %s", error)

    def _find_missing(self) -> None:
        """Run what the journal holds and the engine does not have: we say that we hold it, so nobody sends it again."""
        if self._writer.is_stuck:
            # What has been computed cannot be written down. It is not missing.
            self._missing = frozenset()
            return
        # In this order: what ends in between is in neither.
        here = self._engine.task_ids()
        missing = frozenset(self._journal.unfinished_ids() - here)
        # Only at the second look: it may be just on its way from one to the other.
        lost = missing & self._missing
        self._missing = missing - lost
        if lost:
            log.warning("%d tasks stand in the journal and are not being run; they are run now", len(lost))
            with self._intake:
                functions, tasks = self._journal.unfinished()
                self._run(functions, [each for each in tasks if each.task.task_id in lost])

    def _register_again(self) -> None:
        """The broker is out of reach: the service may have moved it."""
        try:
            addresses = self._registrar.register(self._endpoint_id, retry_for_s=0).addresses
        except (Conflict, Forbidden, NotFound) as error:
            self.stop(f"the service no longer takes this endpoint: {error}")
        except ServiceError as error:
            log.warning("the service cannot say where the broker is: %s", error)
        else:
            self._inbox.addresses = self._outbox.addresses = addresses

    def _shut_down(self) -> None:
        self._inbox.stop()
        self._cancellations.stop()
        self._supervisor.stop(timeout_s=STOP_ENGINE_S)
        if self._outbox.is_alive():
            held = self._journal.held()
            self._outbox.send_report(status.farewell(self._endpoint_id, instance=self._instance, holds=held))
            self._outbox.stop(timeout_s=STOP_OUTBOX_S)
            if unfinished := len(self._journal.held()):
                log.info("%d tasks stay in the journal for the next start", unfinished)
        self._now.remove()
        log.info("stopped")

    # -- called from the threads of inbox, engine and outbox ----------------------------------------------------------

    def _take_tasks(self, batch: TaskBatch) -> None:
        with self._intake:
            try:
                new = self._journal.accept(batch)
            except sqlite3.Error as error:
                self._writer.failed(error)
                self._pace()
                raise
            self._run(batch.functions, new)
        if len(new) < len(batch.tasks):
            # Delivered before. Some may be answered from the journal.
            self._outbox.results_waiting()

    def _run(self, functions: Mapping[str, FunctionCode], tasks: Sequence[Unfinished]) -> None:
        refusals = [admission.refusal(self._config, each.task) for each in tasks]
        refused = [result for result in refusals if result is not None]
        if refused:
            self._writer.ended(refused)
            tasks = [each for each, result in zip(tasks, refusals, strict=True) if result is None]
        self._engine.add(functions, tasks)
        self._pace()

    def _cancel_tasks(self, task_ids: Sequence[str]) -> None:
        with self._intake:
            try:
                self._journal.cancel(task_ids)
            except sqlite3.Error as error:
                # They are not confirmed, so that they are named again until this can be written.
                self._writer.failed(error)
                raise
            finally:
                # Perhaps it is one of them that fills the disk.
                self._engine.cancel(task_ids)

    def _results_written(self) -> None:
        self._outbox.results_waiting()
        self._pace()

    def _pace(self) -> None:
        load = self._engine.load()
        held, most = load.waiting + load.handed_over, max(LEAST_HELD, HELD_PER_WORKER * load.workers)
        if self._writer.is_stuck or held >= most or load.payload_bytes >= MOST_HELD_BYTES:
            self._inbox.pause()
        elif held <= most // 2 and load.payload_bytes <= MOST_HELD_BYTES // 2:
            self._inbox.resume()

    def _obey(self, command: Command) -> None:
        if command.command == "stop":
            self.stop(command.reason or "the service said so")
        elif command.command == "cancel":
            self._cancellations.ask()
        else:
            log.warning("the service sent a command that this version does not know: %r", command.command)

    def _ask_for_addresses(self) -> None:
        self._requests.put("register")

    # -- signals ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        wanted = (signal.SIGTERM, signal.SIGINT)
        earlier = {number: signal.signal(number, self._on_signal) for number in wanted}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.stop(signal.Signals(number).name)
