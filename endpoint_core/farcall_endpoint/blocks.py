"""Between Parsl and our providers: blocks asked for, watched and ended."""

from __future__ import annotations

import dataclasses
import logging
import shlex
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from parsl.jobs.states import JobState, JobStatus
from parsl.providers.base import ExecutionProvider

from .breaker import Breaker
from .config import EngineConfig
from .launchers import Launcher, launch
from .provider import Access, BlockSpec, BlockState, Provider, SystemUnavailable
from .roster import Roster

log = logging.getLogger(__name__)

#: A block that its system has not known for so long has ended.
UNKNOWN_FOR_S = 120.0

#: A block that ends so soon after its workers have connected came to nothing, unless its tasks are to blame.
QUICK_S = 10.0

#: Of what is shown of a block.
MOST_MESSAGE_CHARACTERS = 2000

_JOB_STATES = {
    BlockState.PENDING: JobState.PENDING,
    BlockState.RUNNING: JobState.RUNNING,
    BlockState.DONE: JobState.COMPLETED,
    BlockState.FAILED: JobState.FAILED,
    BlockState.CANCELLED: JobState.CANCELLED,
}


@dataclasses.dataclass(frozen=True)
class Ended:
    """A block that has ended."""

    block_id: str
    state: str
    #: What it printed, and how it ended in the system's words.
    said: str
    #: How long it had workers, in seconds; None if none ever connected.
    worked_s: float | None
    #: Whether we wanted it to end.
    is_cancelled: bool


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
        owner: str = "",
        breaker: Breaker | None = None,
        roster: Roster | None = None,
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
        self._owner = owner
        self._provider = provider
        self._config = config
        self._run_dir = run_dir
        #: The same as the nodes see it.
        self._directory = str(run_dir)
        self._poll_period_s = poll_period_s
        self._working_dir = working_dir
        self._container = config.container
        usual = provider.launcher if config.managers_per_block > 1 else "single"
        self._launch = launch(config.launcher or Launcher(usual))
        self._breaker = breaker or Breaker()
        self._roster = roster or Roster()
        self._lock = threading.Lock()
        self._statuses: dict[str, JobStatus] = {}
        self._unknown_since: dict[str, float] = {}
        #: When workers of a block were first seen.
        self._connected: dict[str, float] = {}
        self._present: Collection[str] = ()
        self._cancelled: set[str] = set()
        self._untold: list[str] = []
        #: Whether a block may be there of which we do not know: the answer to a submit has not come.
        self.may_have_lost_one = False

    def give_access(self, ports: Sequence[int]) -> Access | None:
        """As the provider's; blocks run in a directory over there from now on."""
        access = self._provider.give_access(self._run_dir, ports)
        if access is not None:
            self._directory = access.directory
            self._working_dir = Path(self._config.working_dir or access.working_dir or access.directory)
        return access

    @property
    def needs_network(self) -> bool:
        """As the provider's."""
        return self._provider.needs_network

    @property
    def access_is_lost(self) -> bool:
        return self._provider.access_is_lost

    @property
    def label(self) -> str:
        return "farcall"

    @property
    def status_polling_interval(self) -> int:
        return self._poll_period_s

    def submit(self, command: str, tasks_per_node: int, job_name: str = "farcall") -> str:
        directory = _quoted_path(self._working_dir)
        if self._container is not None:
            command = self._container.around(command, [self._directory, str(self._working_dir)])
        launched = self._launch(command, self.nodes_per_block)
        spec = BlockSpec(
            command=f"mkdir -p {directory} && cd {directory} && {launched}",
            # Parsl's name ends in the block's number.
            name=f"farcall.{self._name}.{job_name.rpartition('-')[2]}",
            run_dir=self._run_dir,
            owner=self._owner,
            nodes=self._config.nodes_per_block,
            walltime_s=self._config.walltime_s,
            worker_init=self._config.worker_init,
        )
        block_id = self._submitted(spec)
        log.info("block %s was submitted", block_id)
        with self._lock:
            self._statuses[block_id] = JobStatus(JobState.PENDING)
        self._roster.add(block_id)
        return block_id

    def _submitted(self, spec: BlockSpec) -> str:
        try:
            block_id = self._provider.submit(spec)
        except SystemUnavailable as error:
            self._breaker.unavailable(str(error))
            self.may_have_lost_one = True
            raise
        except Exception as error:
            self._breaker.failed(f"No block could be asked for: {error}", others_work=bool(self._present))
            raise
        self._breaker.available()
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
        """End blocks. Of each whether the system has taken that; if not, Parsl tries again while it wants fewer."""
        ids = [str(job_id) for job_id in job_ids]
        if not ids:
            return []
        log.info("ending blocks %s", ", ".join(ids))
        try:
            self._provider.cancel(ids)
        # A stranger's code, or a scheduler that does not answer.
        except Exception as error:
            log.warning("blocks %s cannot be ended: %s", ", ".join(ids), error)
            self._roster.cannot_end(ids, str(error))
            return [False] * len(ids)
        self._cancelled.update(ids)
        self._roster.ending(ids)
        return [True] * len(ids)

    def cancel_all(self) -> None:
        """End every block that has not ended."""
        self.cancel(self.living)

    @property
    def living(self) -> list[str]:
        """The blocks that have not ended, as far as is known."""
        with self._lock:
            return [block_id for block_id, status in self._statuses.items() if not status.terminal]

    def connected(self, ever: Collection[str], present: Collection[str]) -> None:
        """Of these blocks workers have connected, and of those they are here now."""
        new = [block_id for block_id in ever if block_id not in self._connected]
        self._connected.update(dict.fromkeys(new, time.monotonic()))
        self._present = present
        self._roster.connected(block_id for block_id in new if block_id in self._roster.entries)

    def take_ended(self, *, has_work: bool) -> list[Ended]:
        """The blocks that have ended since this was last asked for. The breaker has been told of them.

        ``has_work`` says whether tasks are with the workers: the end of a block may then be theirs. To be asked after
        :meth:`connected`, and that after :meth:`status`.
        """
        ended = self._take_ended()
        for block in ended:
            if block.is_cancelled:
                continue
            said = block.said or "(it said nothing)"
            if block.worked_s is None:
                self._breaker.failed(f"Block {block.block_id} ended before a worker of it had connected: {said}")
            elif block.worked_s < QUICK_S:
                words = f"Block {block.block_id} ended as soon as its workers had connected: {said}"
                (self._breaker.suspected if has_work else self._breaker.failed)(words)
        now = time.monotonic()
        # Managers are missed only a while after their block has ended.
        present = set(self._present).intersection(self.living)
        if any(now - self._connected[block_id] >= QUICK_S for block_id in present):
            self._breaker.worked()
        elif present and has_work:
            self._breaker.promised()
        return ended

    def _take_ended(self) -> list[Ended]:
        untold, self._untold = self._untold, []
        now = time.monotonic()
        with self._lock:
            return [
                Ended(
                    block_id,
                    self._statuses[block_id].status_name,
                    self._statuses[block_id].message or "",
                    worked_s=now - self._connected[block_id] if block_id in self._connected else None,
                    is_cancelled=block_id in self._cancelled or self._statuses[block_id].state == JobState.CANCELLED,
                )
                for block_id in untold
            ]

    def shown(self) -> list[dict[str, str]]:
        """The blocks that have not ended, and the last that failed, for people: ``id``, ``state`` and ``message``."""
        with self._lock:
            failed = [key for key, status in self._statuses.items() if status.state == JobState.FAILED][-1:]
            shown = {key: status for key, status in self._statuses.items() if not status.terminal or key in failed}
        return [
            {
                "id": key,
                # Its workers may be here before its system is asked again.
                "state": "running" if key in self._present and not status.terminal else status.status_name.lower(),
                "message": (status.message or self._reason(key, status))[-MOST_MESSAGE_CHARACTERS:],
            }
            for key, status in shown.items()
        ]

    def forget(self, job_ids: Sequence[object]) -> None:
        """Nobody will ask about these again."""
        with self._lock:
            for job_id in job_ids:
                self._statuses.pop(str(job_id), None)
                self._connected.pop(str(job_id), None)
                self._cancelled.discard(str(job_id))

    def _reason(self, block_id: str, status: JobStatus) -> str:
        if status.terminal:
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

    def _output(self, block_id: str) -> str:
        try:
            return self._provider.output(block_id)
        # A stranger's code, or a machine that is out of reach. That the block has ended must not get lost with that.
        except Exception as error:
            log.warning("what block %s printed cannot be read: %s: %s", block_id, type(error).__name__, error)
            return f"[what it printed cannot be read: {error}]"

    def _note(self, block_id: str, state: BlockState) -> None:
        earlier = self._statuses[block_id]
        if state is BlockState.UNKNOWN:
            since = self._unknown_since.setdefault(block_id, time.monotonic())
            # Whoever has workers here lives, whatever its system knows.
            if block_id in self._present or time.monotonic() - since < UNKNOWN_FOR_S:
                return
            status = JobStatus(JobState.FAILED, f"the system has not known block {block_id} for {UNKNOWN_FOR_S:g} s")
        else:
            self._unknown_since.pop(block_id, None)
            status = JobStatus(_JOB_STATES[state], self._output(block_id) if state.has_ended else None)
            if state.has_ended:
                self._roster.ended([block_id])
        if status.state != earlier.state:
            log.info("block %s is %s", block_id, status.status_name.lower())
        with self._lock:
            self._statuses[block_id] = status
            if status.terminal:
                self._untold.append(block_id)


def _quoted_path(path: Path) -> str:
    """For ``sh``, which knows where ``~`` is on its machine."""
    words = str(path)
    return '"$HOME"' + shlex.quote(words[1:]) if words.startswith("~/") else shlex.quote(words)
