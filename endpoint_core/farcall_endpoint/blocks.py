"""Between Parsl and our providers: blocks asked for, watched and ended, and what to do if they all fail."""

from __future__ import annotations

import logging
import shlex
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from parsl import launchers
from parsl.jobs.states import JobState, JobStatus
from parsl.providers.base import ExecutionProvider

from farcall.errors import ConfigurationError

from .config import EngineConfig
from .provider import BlockSpec, BlockState, Provider

log = logging.getLogger(__name__)

#: Blocks that end in a row without a worker having connected, after which something must be wrong with all of them.
FAILURES_IN_A_ROW = 3

#: How long no block is started then; doubled each time until a worker connects.
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 60.0, 900.0

#: A block that its system has not known for so long has ended.
UNKNOWN_FOR_S = 120.0

#: Of what is shown of a block.
MOST_MESSAGE_CHARACTERS = 2000

_JOB_STATES = {
    BlockState.PENDING: JobState.PENDING,
    BlockState.RUNNING: JobState.RUNNING,
    BlockState.DONE: JobState.COMPLETED,
    BlockState.FAILED: JobState.FAILED,
    BlockState.CANCELLED: JobState.CANCELLED,
}


class Blocks(ExecutionProvider):  # type: ignore[misc]  # Parsl brings no types
    """One of our providers, as Parsl's executor wants it."""

    def __init__(
        self,
        provider: Provider,
        config: EngineConfig,
        *,
        name: str,
        run_dir: Path,
        working_dir: Path,
        poll_period_s: int,
    ) -> None:
        self.init_blocks = config.init_blocks
        self.min_blocks = config.min_blocks
        self.max_blocks = config.max_blocks
        # Of what Parsl counts as nodes: those with a manager of their own.
        self.nodes_per_block = config.managers_per_block
        self.parallelism = config.parallelism
        self.script_dir = str(run_dir)
        self.resources: dict[object, Any] = {}
        self.cores_per_node = None
        self.mem_per_node = None
        self._name = name
        self._provider = provider
        self._config = config
        self._run_dir = run_dir
        self._poll_period_s = poll_period_s
        self._working_dir = working_dir
        self._launch = _launcher(config.launcher)
        self._container = config.container
        self._lock = threading.Lock()
        self._statuses: dict[str, JobStatus] = {}
        self._unknown_since: dict[str, float] = {}
        self._refusal: str | None = None

    @property
    def label(self) -> str:
        return "farcall"

    @property
    def status_polling_interval(self) -> int:
        return self._poll_period_s

    def submit(self, command: str, tasks_per_node: int, job_name: str = "farcall") -> str:
        directory = shlex.quote(str(self._working_dir))
        if self._container is not None:
            command = self._container.around(command, [str(self._run_dir), str(self._working_dir)])
        launched = self._launch(command, tasks_per_node, self.nodes_per_block)
        spec = BlockSpec(
            command=f"mkdir -p {directory} && cd {directory} && {launched}",
            # Parsl's name ends in the block's number.
            name=f"farcall.{self._name}.{job_name.rpartition('-')[2]}",
            run_dir=self._run_dir,
            nodes=self._config.nodes_per_block,
            walltime_s=self._config.walltime_s,
            worker_init=self._config.worker_init,
        )
        try:
            block_id = self._provider.submit(spec)
        except Exception as error:
            self._refusal = f"No block could be asked for: {error}"
            raise
        self._refusal = None
        log.info("block %s was submitted", block_id)
        with self._lock:
            self._statuses[block_id] = JobStatus(JobState.PENDING)
        return block_id

    def status(self, job_ids: Sequence[object]) -> list[JobStatus]:
        """The state of each block. One that has ended is not asked about again."""
        ids = [str(job_id) for job_id in job_ids]
        open_ids = [block_id for block_id in ids if not self._statuses[block_id].terminal]
        for block_id, state in self._states(open_ids).items():
            self._note(block_id, state)
        # Copies: the executor marks the ones it is given.
        return [JobStatus(self._statuses[block_id].state, self._statuses[block_id].message) for block_id in ids]

    def cancel(self, job_ids: Sequence[object]) -> list[bool]:
        ids = [str(job_id) for job_id in job_ids]
        if ids:
            log.info("ending blocks %s", ", ".join(ids))
            self._provider.cancel(ids)
        return [True] * len(ids)

    def cancel_all(self) -> None:
        """End every block that has not ended."""
        with self._lock:
            ids = [block_id for block_id, status in self._statuses.items() if not status.terminal]
        self.cancel(ids)

    def shown(self) -> list[dict[str, str]]:
        """The blocks that have not ended, and the last that failed, for people: ``id``, ``state`` and ``message``."""
        with self._lock:
            failed = [key for key, status in self._statuses.items() if status.state == JobState.FAILED][-1:]
            shown = {key: status for key, status in self._statuses.items() if not status.terminal or key in failed}
        return [
            {
                "id": key,
                "state": status.status_name.lower(),
                "message": (status.message or self._reason(key, status))[-MOST_MESSAGE_CHARACTERS:],
            }
            for key, status in shown.items()
        ]

    @property
    def refusal(self) -> str | None:
        """What the system said when it was last asked for a block, if it said no."""
        return self._refusal

    def forget(self, job_ids: Sequence[object]) -> None:
        """Nobody will ask about these again."""
        with self._lock:
            for job_id in job_ids:
                self._statuses.pop(str(job_id), None)

    def _reason(self, block_id: str, status: JobStatus) -> str:
        if status.state != JobState.PENDING:
            return ""
        try:
            return self._provider.reason(block_id)
        # A stranger's code.
        except Exception as error:
            log.warning("the provider cannot say why block %s waits: %s: %s", block_id, type(error).__name__, error)
            return ""

    def _states(self, ids: Sequence[str]) -> Mapping[str, BlockState]:
        if not ids:
            return {}
        try:
            return self._provider.states(ids)
        # A stranger's code, and a scheduler that may be down for a while; what we knew of the blocks still holds.
        except Exception as error:
            log.warning("the provider cannot say how its blocks are: %s: %s", type(error).__name__, error)
            return {}

    def _note(self, block_id: str, state: BlockState) -> None:
        earlier = self._statuses[block_id]
        if state is BlockState.UNKNOWN:
            since = self._unknown_since.setdefault(block_id, time.monotonic())
            if time.monotonic() - since < UNKNOWN_FOR_S:
                return
            status = JobStatus(JobState.FAILED, f"the system has not known block {block_id} for {UNKNOWN_FOR_S:g} s")
        else:
            self._unknown_since.pop(block_id, None)
            status = JobStatus(_JOB_STATES[state], self._provider.output(block_id) if state.has_ended else None)
        if status.state != earlier.state:
            log.info("block %s is %s", block_id, status.status_name.lower())
        with self._lock:
            self._statuses[block_id] = status


class Breaker:
    """Stops the asking for blocks when none of them comes to work, and says why; tries again after a while."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._backoff_s = FIRST_BACKOFF_S
        self._closed_until = 0.0
        self._trouble = ""

    def begin(self) -> None:
        """Parsl starts anew, and counts its blocks from 0."""
        self._seen.clear()

    def allows_blocks(self) -> bool:
        return time.monotonic() >= self._closed_until

    @property
    def trouble(self) -> str | None:
        """Why no blocks are asked for; None if they are."""
        return None if self.allows_blocks() else self._trouble

    def observe(self, statuses: Mapping[str, JobStatus], *, managers: int) -> str | None:
        """Look at all blocks. What the failed ones said, if that is a reason to stop; else None."""
        if managers:
            self._seen.update(statuses)
            self._backoff_s = FIRST_BACKOFF_S
            return None
        # Parsl calls a block missing that has ended without a manager having connected.
        missing = [
            key for key, status in statuses.items() if status.state == JobState.MISSING and key not in self._seen
        ]
        if len(missing) < FAILURES_IN_A_ROW:
            return None
        self._seen.update(missing)
        self._closed_until = time.monotonic() + self._backoff_s
        log.error("%d blocks in a row ended before a worker connected; the next in %g s", len(missing), self._backoff_s)
        backoff_s = self._backoff_s
        self._backoff_s = min(2 * self._backoff_s, LONGEST_BACKOFF_S)
        last = statuses[max(missing, key=int)]
        sentence = (
            f"{len(missing)} blocks in a row ended before a worker of theirs had connected. The last of them said:\n"
            f"{last.message or '(nothing)'}"
        )
        again = (datetime.now() + timedelta(seconds=backoff_s)).astimezone().isoformat(timespec="seconds")
        self._trouble = f"No block is asked for until {again}: {sentence}"
        return f"No worker could be started for this task: {sentence}"


def _launcher(name: str | None) -> launchers.base.Launcher:
    if name is None:
        return launchers.SimpleLauncher()
    kind = getattr(launchers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, launchers.base.Launcher)):
        known = ", ".join(sorted(key for key in vars(launchers) if key.endswith("Launcher")))
        raise ConfigurationError(f"there is no launcher called {name!r}; there are: {known}")
    return kind()
