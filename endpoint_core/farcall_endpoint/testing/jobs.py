"""The jobs of a fake batch system: a folder of files, so that programs that know nothing of each other share them.

It runs jobs as processes of this machine, as many at a time as it has slots, each under a keeper (``keeper``), and does
what :class:`Orders` say. What its commands are called, and what they print, is another module's matter: ``pbscommands``
is one, and a plugin for another batch system can bring its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

#: States of a job.
QUEUED, RUNNING, ENDED = "queued", "running", "ended"

#: What a keeper waits for.
KEEPERS_SIGNALS = frozenset({signal.SIGTERM, signal.SIGCHLD})


@dataclasses.dataclass
class Job:
    """One job, as its file tells of it."""

    name: str
    #: Where its output is wanted.
    stdout: str
    stderr: str
    number: int = -1
    #: A copy of its script, as that file may go.
    script: str = ""
    state: str = QUEUED
    #: All that its commands want to remember: the queue, resources, and so on.
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    walltime_s: float | None = None
    #: Why it waits, in the batch system's words.
    reason: str = ""
    #: Why it will never start, if that is so.
    impossible: str = ""
    #: Whether the commands are to know nothing of it.
    is_forgotten: bool = False
    #: The keeper, a process of its own.
    keeper: int | None = None
    submitted: float = 0.0
    started: float | None = None
    ended: float | None = None
    #: As a shell reports it. None while it runs, and for one that never ran.
    exit_code: int | None = None
    #: What ended it: ``itself``, ``walltime``, ``deleted`` or ``node``.
    ended_by: str = ""


@dataclasses.dataclass
class Orders:
    """What a test has told the batch system to do."""

    #: Jobs that run at a time.
    slots: int = 1000
    #: If there is one, no job starts, and this is why.
    hold: str = ""
    #: By command, what it prints to stderr and its exit code instead of doing anything.
    refusals: dict[str, tuple[str, int]] = dataclasses.field(default_factory=dict)
    #: Commands that find nobody to talk to.
    unreachable: list[str] = dataclasses.field(default_factory=list)
    #: Commands that do their work, and then lose the connection before they can say so.
    broken_off: list[str] = dataclasses.field(default_factory=list)
    #: Whether jobs that have ended are still known.
    history: bool = True
    #: What the commands that understand it are to be, such as an older version.
    dialect: str = ""


class Jobs:
    """The batch system itself. Every program that uses the folder makes one of these."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._jobs = folder / "jobs"
        self._jobs.mkdir(parents=True, exist_ok=True)

    # -- what is known ------------------------------------------------------------------------------------------------

    def all(self) -> list[Job]:
        """Every job that was ever accepted, the oldest first."""
        found = [self._read(path) for path in self._jobs.glob("*.json")]
        return sorted((job for job in found if job is not None), key=lambda job: job.number)

    def get(self, number: int) -> Job | None:
        return self._read(self._path(number))

    def orders(self) -> Orders:
        path = self.folder / "orders.json"
        return Orders(**json.loads(path.read_text())) if path.exists() else Orders()

    def give(self, orders: Orders) -> None:
        _write(self.folder / "orders.json", dataclasses.asdict(orders))

    # -- what happens -------------------------------------------------------------------------------------------------

    def submit(self, job: Job, script: str, complete: Callable[[Job], None] = lambda job: None) -> Job:
        """Accept a job under the next number; ``complete`` may add what depends on it. :meth:`schedule` starts it."""
        with self.locked():
            job.number = len(list(self._jobs.glob("*.json")))
            kept = self.folder / f"{job.number}.sh"
            kept.write_text(script)
            job.script = str(kept)
            job.submitted = time.time()
            complete(job)
            self.save(job)
        return job

    def schedule(self) -> None:
        """Start what may start: whoever changes something calls it, as there is no daemon."""
        with self.locked():
            orders = self.orders()
            jobs = self.all()
            free = orders.slots - sum(job.state == RUNNING for job in jobs)
            for job in jobs:
                if job.state != QUEUED:
                    continue
                if job.impossible or orders.hold or free <= 0:
                    job.reason = job.impossible or orders.hold or "Not enough free nodes available"
                else:
                    free -= 1
                    job.reason = ""
                    job.state = RUNNING
                    job.started = time.time()
                    job.keeper = self._start_keeper(job.number)
                self.save(job)

    def end(self, number: int, by: str) -> bool:
        """Have a job ended. Returns whether there was one that had not ended."""
        with self.locked():
            job = self.get(number)
            if job is None or job.state == ENDED:
                return False
            job.ended_by = by
            if job.state == QUEUED:
                job.state = ENDED
                job.ended = time.time()
            self.save(job)
        if job.keeper is not None:
            # It ends the job, and notes that itself.
            with contextlib.suppress(ProcessLookupError):
                os.kill(job.keeper, signal.SIGTERM)
        return True

    def forget(self, number: int) -> None:
        """Let the commands know nothing of a job any more; one that runs goes on."""
        with self.locked():
            job = self.get(number)
            if job is not None:
                job.is_forgotten = True
                self.save(job)

    def save(self, job: Job) -> None:
        _write(self._path(job.number), dataclasses.asdict(job))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def note_call(self, command: str, arguments: Sequence[str]) -> None:
        """So that a test can see what was asked, and how often."""
        with (self.folder / "calls").open("a") as calls:
            calls.write(json.dumps([command, *arguments]) + "\n")

    def wait_while_stalled(self, command: str) -> None:
        """Return once no test holds this command back."""
        path = self.folder / f"stall-{command}"
        if path.exists():
            with path.open() as gate:
                fcntl.flock(gate, fcntl.LOCK_SH)

    def _start_keeper(self, number: int) -> int:
        command = [sys.executable, "-P", "-m", f"{__package__}.keeper", str(self.folder), str(number)]
        # It is born with the signals held back that it will wait for: one might come before it can take it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, KEEPERS_SIGNALS)
        try:
            with (self.folder / "keepers.log").open("ab") as complaints:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=complaints,
                    stderr=complaints,
                    start_new_session=True,
                    cwd="/",
                )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        # Nobody here waits for it.
        process.returncode = 0
        return process.pid

    def _path(self, number: int) -> Path:
        return self._jobs / f"{number}.json"

    @staticmethod
    def _read(path: Path) -> Job | None:
        try:
            return Job(**json.loads(path.read_text()))
        except FileNotFoundError:
            return None


def _write(path: Path, value: dict[str, Any]) -> None:
    # Renamed at the end, so that nobody reads half of it. Whoever writes holds the lock.
    new = path.with_suffix(".new")
    new.write_text(json.dumps(value))
    new.rename(path)


if __name__ == "__main__":
    Jobs(Path(sys.argv[1])).schedule()
