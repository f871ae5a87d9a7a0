"""Keeps Parsl alive under the engine: starts it, scales its blocks, replaces it when one of its processes is gone."""

from __future__ import annotations

import itertools
import logging
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import zmq
from parsl.executors.high_throughput.errors import CommandClientBadError, CommandClientTimeoutError
from parsl.jobs.strategy import Strategy

from . import breaker, roster
from .blocks import Blocks
from .breaker import Breaker
from .config import EndpointConfig
from .custody import Custody, outlives_agent
from .endings import Endings
from .engine import Engine
from .failures import NodesLost
from .fleet import Fleet
from .htex import Executor
from .provider import Provider
from .roster import Roster
from .sightings import Watcher

log = logging.getLogger(__name__)

#: How often we look while there is work; without work it is the strategy's period.
BUSY_PERIOD_S = 1.0

#: Pauses between attempts to start Parsl again.
_RESTART_PAUSES_S = (0.0, 1.0, 5.0, 15.0, 60.0)

#: Directories of earlier runs that are kept, for people who want to know what happened.
RUNS_KEPT = 5

#: No block is asked for while there is less room than that for its files.
LEAST_ROOM_BYTES = 1024 * 1024

#: How long blocks may take to be gone at the end.
END_PATIENCE_S = 3.0

#: What Parsl raises when its interchange does not answer.
_SILENCE = (CommandClientBadError, CommandClientTimeoutError, zmq.ZMQError)


class Supervisor:
    """The thread that owns Parsl's executor: all of its lives begin and end in it."""

    def __init__(
        self,
        config: EndpointConfig,
        provider: Provider,
        engine: Engine,
        *,
        runs_dir: Path,
        watcher: Watcher,
        endings: Endings,
        owner: str,
    ) -> None:
        self._watcher = watcher
        self._config = config
        self._provider = provider
        self._engine = engine
        self._runs_dir = runs_dir
        self._owner = owner
        self._breaker = Breaker(
            config.directory / breaker.FILE_NAME,
            most_failures=config.engine.max_block_failures,
            fingerprint=breaker.fingerprint(config),
            name=config.name,
        )
        # Of blocks that end with the agent the next one need not know.
        self._roster = Roster(config.directory / roster.FILE_NAME if outlives_agent(provider) else None)
        self._custody = Custody(provider, self._roster, self._breaker, owner=owner)
        self._endings = endings
        #: Whether the engine may hand tasks to the executor.
        self._is_given = False
        self._executor: Executor | None = None
        self._strategy: Strategy | None = None
        self._next_strategy = 0.0
        self._fleet = Fleet()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._started = threading.Event()
        self._start_error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._runs = itertools.count(1)

    @property
    def fleet(self) -> Fleet:
        """Who was there when last looked."""
        return self._fleet

    def start(self) -> None:
        """Start Parsl. Raises what kept it from starting."""
        self._engine.on_demand = self._wake.set
        self._engine.explain = self._endings.explained
        self._thread.start()
        self._started.wait()
        if self._start_error is not None:
            raise self._start_error

    def stop(self, *, timeout_s: float) -> None:
        """End all blocks and processes. Tasks that were running are simply gone; the journal has them."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                log.warning("Parsl did not end within %g s", timeout_s)

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._begin()
        except Exception as error:
            self._start_error = error
            return
        finally:
            self._started.set()
        while not self._stopping.is_set():
            self._watch()
            self._wake.wait(self._pause_s())
            self._wake.clear()
        self._end()

    def _watch(self) -> None:
        reason = self._reason_to_replace()
        if reason is not None and not self._stopping.is_set():
            log.error("%s; starting Parsl again, unfinished tasks run again", reason)
            self._replace()

    def _reason_to_replace(self) -> str | None:
        executor = self._executor
        if executor is None or executor.interchange_proc.poll() is not None:
            return "the interchange has ended"
        try:
            if executor.bad_state_is_set:
                self._engine.fail_all("NoWorkers", f"The workers cannot be used: {executor.executor_exception}")
                return "the interchange refused its workers"
            if not executor.takes_results:
                return "results are no longer taken"
            return self._look(executor)
        except _SILENCE as error:
            return f"the interchange does not answer ({type(error).__name__})"
        except Exception:
            log.exception("looking after the blocks failed, trying again")
            return None

    def _look(self, executor: Executor) -> str | None:
        """One round: who is there, are there enough blocks, does what Parsl believes still hold."""
        managers = executor.managers()
        executor.poll_facade()
        self._learn(executor, managers)
        if executor.access_is_lost:
            return "the nodes' way to us is lost"
        statuses = executor.status_facade
        alive = [block_id for block_id, status in statuses.items() if not status.terminal]
        per_block = executor.workers_per_node * self._config.engine.managers_per_block
        self._engine.expect(workers=self._fleet.workers, expected=int(per_block * max(1, len(alive))))
        if self._breaker.is_open and not alive and not managers and self._config.engine.on_block_failures == "fail":
            return self._refuse_tasks()
        self._give(executor)
        self._scale(executor, urgently=not alive and self._engine.outstanding() > 0)
        # Parsl misses a dead manager only after many heartbeats. Where it was the only one, we know better.
        working = [manager for manager in managers if manager["tasks"]]
        if working and all(_is_over(statuses, manager) for manager in managers):
            reason = "all blocks have ended while they had tasks"
            said = self._endings.of(manager["manager"] for manager in managers)
            # As the heartbeats of the dead managers would have it in the end.
            workers = sum(manager["worker_count"] for manager in managers)
            self._engine.all_nodes_lost(NodesLost(said or reason), running_calls=workers)
            return reason
        return None

    def _learn(self, executor: Executor, managers: Sequence[Mapping[str, Any]]) -> None:
        """Who is there, which blocks have ended and how, and what that means for the next."""
        blocks = executor.blocks
        executor.note_connected(managers)
        of = {manager["manager"]: executor.blocks_to_job_id.get(manager["block_id"]) for manager in managers}
        self._endings.seen({manager: block_id for manager, block_id in of.items() if block_id is not None})
        ended = blocks.take_ended(has_work=self._engine.load().calls > 0)
        self._endings.ended(ended)
        self._breaker.look()
        if any(block.block_id in self._roster.entries for block in ended):
            # The system did not say that it has ended, only nothing more of it.
            self._custody.look_soon()
        if blocks.may_have_lost_one and self._breaker.allows_blocks():
            blocks.may_have_lost_one = False
            self._custody.look_soon()
        self._note(Fleet(managers, blocks.shown(), self._troubles()))

    def _troubles(self) -> list[str]:
        trouble = self._breaker.trouble
        return [*self._custody.troubles, *([] if trouble is None else [trouble])]

    def _refuse_tasks(self) -> str | None:
        """Nothing will run them until somebody has mended something, so they fail. A reason to replace Parsl."""
        had_calls = self._engine.load().calls > 0
        if self._is_given:
            self._is_given = False
            if not had_calls:
                self._engine.use(None)
        if self._engine.outstanding():
            self._engine.fail_all("NoWorkers", self._breaker.verdict)
        # It still has them, and would run them when a block comes after all.
        return "no block brings workers" if had_calls else None

    def _give(self, executor: Executor) -> None:
        if not self._is_given:
            self._is_given = True
            self._engine.use(executor)

    def _scale(self, executor: Executor, *, urgently: bool) -> None:
        may_ask = self._custody.look(executor.blocks.living) and self._breaker.allows_blocks()
        if self._strategy is None or not (urgently or time.monotonic() >= self._next_strategy):
            return
        if not may_ask and not executor.blocks.living:
            # The first time the strategy asks for the initial blocks, which must not come to nothing.
            return
        if not self._has_room():
            # What a block needs to begin cannot be written; that its system fails at that says nothing against it.
            return
        self._next_strategy = time.monotonic() + self._config.engine.strategy_period_s
        self._strategy.strategize([executor])
        executor.forget_ended_blocks()

    def _has_room(self) -> bool:
        try:
            return shutil.disk_usage(self._runs_dir).free >= LEAST_ROOM_BYTES
        except OSError:
            return True

    def _pause_s(self) -> float:
        period = self._config.engine.strategy_period_s
        is_starting = any(block["state"] != "failed" for block in self._fleet.blocks) and not self._fleet.workers
        busy = self._engine.outstanding() > 0 or is_starting
        return min(period, BUSY_PERIOD_S) if busy else period

    # -- Parsl's lives ------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        # Parsl tells of every step at INFO, in its own words.
        logging.getLogger("parsl").setLevel(logging.WARNING)
        engine = self._config.engine
        run_dir = self._new_run_dir()
        blocks = Blocks(
            self._provider,
            engine,
            name=self._config.name,
            run_dir=run_dir,
            working_dir=Path(engine.working_dir or self._config.directory / "tasks_working_dir").expanduser(),
            poll_period_s=self._provider.poll_period_s or max(1, round(engine.strategy_period_s)),
            owner=self._owner,
            breaker=self._breaker,
            roster=self._roster,
        )
        address = engine.address or (None if self._provider.needs_network else "127.0.0.1")
        executor = Executor(engine, blocks, self._breaker, address=address, run_dir=run_dir, watcher=self._watcher)
        executor.demand = self._engine.outstanding
        executor.start()
        self._executor = executor
        self._strategy = Strategy(strategy="htex_auto_scale", max_idletime=engine.max_idletime_s)
        self._strategy.add_executors([executor])
        self._next_strategy = 0.0
        threading.Thread(target=self._wait_for_end, args=(executor.interchange_proc,), daemon=True).start()
        # As long as the breaker is open, nothing may be handed over that is to fail.
        self._is_given = not (self._breaker.is_open and engine.on_block_failures == "fail")
        if self._is_given:
            self._engine.use(executor)

    def _wait_for_end(self, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        self._wake.set()

    def _replace(self) -> None:
        for pause_s in itertools.chain(_RESTART_PAUSES_S, itertools.repeat(_RESTART_PAUSES_S[-1])):
            self._end()
            if self._stopping.wait(pause_s):
                return
            try:
                self._begin()
                return
            except Exception:
                log.exception("Parsl does not start")

    def _end(self) -> None:
        executor, self._executor = self._executor, None
        self._engine.use(None)
        is_last = self._stopping.is_set()
        self._note(Fleet(troubles=() if is_last else ("The endpoint's engine is being started again.",)))
        if executor is None:
            return
        try:
            executor.blocks.cancel_all()
            executor.shutdown(timeout=2.0)
        # Half of it may be gone already; what matters is that the rest goes too.
        except Exception:
            log.exception("ending Parsl's processes")
        if is_last:
            self._wait_for_blocks(executor.blocks)

    def _wait_for_blocks(self, blocks: Blocks) -> None:
        """Give the blocks a moment to be gone, and say which of them are left."""
        if blocks.may_have_lost_one or not all(entry.is_ending for entry in self._roster.entries.values()):
            self._custody.look_soon()
            self._custody.look([])
        deadline = time.monotonic() + END_PATIENCE_S
        while blocks.living and time.monotonic() < deadline:
            blocks.status(blocks.living)
            time.sleep(0.2)
        for trouble in self._custody.troubles:
            log.error("%s", trouble)

    def _note(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def _new_run_dir(self) -> Path:
        self._runs_dir.mkdir(parents=True, exist_ok=True)
        for old in sorted(path for path in self._runs_dir.iterdir() if path.is_dir())[: -RUNS_KEPT + 1]:
            shutil.rmtree(old, ignore_errors=True)
        while True:
            run_dir = self._runs_dir / f"{time.strftime('%Y%m%d-%H%M%S')}-{next(self._runs):03d}"
            # An earlier agent may have begun in the same second.
            with suppress(FileExistsError):
                run_dir.mkdir()
                return run_dir


def _is_over(statuses: Mapping[str, Any], manager: Mapping[str, Any]) -> bool:
    status = statuses.get(manager["block_id"])
    return status is not None and status.terminal
