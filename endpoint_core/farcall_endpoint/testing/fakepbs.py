"""A PBS for tests: its commands in a folder, jobs that really run, and trouble on demand."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import select
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from .jobs import ENDED, Job, Jobs, Orders

COMMANDS = ("qsub", "qstat", "qselect", "qdel")


class FakePbs:
    """The commands of OpenPBS in :attr:`bin`, for ``PATH``. Leaving it as a context ends every job.

    ::

        with FakePbs(tmp_path) as pbs:
            monkeypatch.setenv("PATH", pbs.path)
            pbs.hold("Not enough free nodes available")
            block_id = provider.submit(spec)
            assert len(pbs.jobs) == 1

    Jobs get an environment of their own, as on a node: what they need is to be in ``worker_init``.
    """

    def __init__(self, folder: Path) -> None:
        self._jobs = Jobs(folder)
        self.bin = folder / "bin"
        self.bin.mkdir(exist_ok=True)
        for command in COMMANDS:
            self.add_command(command, f"{__package__}.pbscommands")

    def __enter__(self) -> FakePbs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- what a test looks at -----------------------------------------------------------------------------------------

    @property
    def path(self) -> str:
        """``PATH`` with the commands first."""
        return f"{self.bin}{os.pathsep}{os.environ.get('PATH', os.defpath)}"

    @property
    def jobs(self) -> list[Job]:
        """Every job that was ever accepted, the oldest first."""
        return self._jobs.all()

    @property
    def living(self) -> list[Job]:
        """Those that wait or run."""
        return [job for job in self.jobs if job.state != ENDED]

    def calls(self, command: str) -> list[list[str]]:
        """The arguments of each call of a command, in order."""
        path = self._jobs.folder / "calls"
        found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [arguments for name, *arguments in found if name == command]

    def wait_until_ended(self, job: Job, patience_s: float = 30) -> Job:
        """The job once it has ended. Raises TimeoutError if it does not."""
        current = self._jobs.get(job.number)
        assert current is not None
        if current.keeper is not None:
            _wait_until_gone(current.keeper, patience_s)
        return self._jobs.get(job.number) or current

    # -- what a test tells it -----------------------------------------------------------------------------------------

    def speak(self, dialect: str) -> None:
        """Be another PBS: ``torque``, ``old``, or ``slurm``, which is none; see ``pbscommands``."""
        self._order(dialect=dialect)

    def hold(self, reason: str) -> None:
        """From now on no job starts; ``qstat`` tells the reason."""
        self._order(hold=reason)
        self._schedule()

    def release(self) -> None:
        """Let jobs start again."""
        self._order(hold="")
        self._schedule()

    def limit(self, slots: int) -> None:
        """Only so many jobs run at a time."""
        self._order(slots=slots)
        self._schedule()

    def refuse(self, command: str, text: str, exit_code: int) -> None:
        """From now on a command fails like that, and does nothing."""
        self._order(refusals={**self._jobs.orders().refusals, command: (text, exit_code)})

    def accept(self, command: str) -> None:
        """Undo :meth:`refuse`."""
        refusals = self._jobs.orders().refusals
        self._order(refusals={name: refusal for name, refusal in refusals.items() if name != command})

    def go_away(self, *commands: str) -> None:
        """From now on these commands, or all, find no server."""
        self._order(unreachable=list(commands or COMMANDS))

    def come_back(self) -> None:
        """Undo :meth:`go_away` and :meth:`break_off`."""
        self._order(unreachable=[], broken_off=[])

    def break_off(self, *commands: str) -> None:
        """From now on these do their work, and lose the connection before they can say so."""
        self._order(broken_off=list(commands))

    def forget_ended_jobs(self) -> None:
        """From now on jobs are unknown once they have ended, as where no history is kept."""
        self._order(history=False)

    def lose(self, job: Job) -> None:
        """Know nothing of a job any more, while it runs on."""
        self._jobs.forget(job.number)

    def delete(self, job: Job) -> None:
        """As somebody who deletes a job with ``qdel``."""
        self._jobs.end(job.number, "deleted")
        self._schedule()

    def lose_node(self, job: Job) -> None:
        """End a job as the loss of its node does."""
        self._jobs.end(job.number, "node")
        self._schedule()

    @contextlib.contextmanager
    def holding(self, reason: str = "Not enough free nodes available") -> Iterator[None]:
        """Within, no job starts."""
        self.hold(reason)
        try:
            yield
        finally:
            self.release()

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Within, no command finds a server."""
        self.go_away()
        try:
            yield
        finally:
            self.come_back()

    @contextlib.contextmanager
    def stalled(self, command: str) -> Iterator[None]:
        """Within, calls of a command do not end; they go on afterwards."""
        gate_path = self._jobs.folder / f"stall-{command}"
        with gate_path.open("w") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            try:
                yield
            finally:
                gate_path.unlink()

    def add_command(self, name: str, module: str) -> None:
        """Add or replace a command: a module that is run with the folder, the command's name and its arguments."""
        program = self.bin / name
        run = shlex.join([sys.executable, "-P", "-m", module, str(self._jobs.folder), name])
        program.write_text(f'#!/bin/sh\nexec {run} "$@"\n')
        program.chmod(0o755)

    def close(self) -> None:
        """End every job, and wait until all of them are gone."""
        self._order(hold="the test has ended")
        for job in self.living:
            self._jobs.end(job.number, "deleted")
        for job in self.jobs:
            if job.keeper is not None:
                _wait_until_gone(job.keeper, 30)

    def _order(self, **changes: object) -> None:
        with self._jobs.locked():
            orders: Orders = dataclasses.replace(self._jobs.orders(), **changes)  # type: ignore[arg-type]
            self._jobs.give(orders)

    def _schedule(self) -> None:
        # In another process, so that the keepers it starts are no children of the test.
        subprocess.run([sys.executable, "-P", "-m", f"{__package__}.jobs", self._jobs.folder], check=True)


def _wait_until_gone(pid: int, patience_s: float) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if not select.select([handle], [], [], patience_s)[0]:
            raise TimeoutError(f"the keeper {pid} of a job does not end")
    finally:
        os.close(handle)
