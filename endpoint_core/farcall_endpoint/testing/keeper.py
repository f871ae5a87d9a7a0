"""Runs one job of a fake batch system and notes how it ended; :mod:`jobs` starts it as a program of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .jobs import ENDED, KEEPERS_SIGNALS, RUNNING, Job, Jobs

#: A job that is ended has so long until it is killed.
GRACE_S = 2.0

#: How often it is looked for what it has started meanwhile.
LOOK_AGAIN_S = 0.1


def main(folder: Path, number: int) -> None:
    jobs = Jobs(folder)
    # What it is sent is taken when there is time for it; its starter has seen to it that nothing came too early.
    signal.pthread_sigmask(signal.SIG_BLOCK, KEEPERS_SIGNALS)
    with jobs.locked():
        # The one who started this process has noted it by now.
        job = jobs.get(number)
    if job is not None:
        _keep(jobs, job)


def _keep(jobs: Jobs, job: Job) -> None:
    with contextlib.ExitStack() as stack:
        # The files appear where they are wanted when the job has ended, as with most batch systems.
        spool = [jobs.folder / f"{job.number}.{end}" for end in ("out", "err")]
        sinks = [stack.enter_context(path.open("wb")) for path in spool]
        process = _start(job, *sinks)
        is_over = not _wait(process, job.walltime_s, until_told=True)
        if is_over:
            sinks[1].write(b"=>> PBS: job killed: walltime %d exceeded limit %d\n" % ((int(job.walltime_s or 0),) * 2))
            sinks[1].flush()
        if process.poll() is None:
            _end(process)
        # Also what a job that has ended by itself has left.
        _signal_session(process.pid, signal.SIGKILL)
        process.wait()
    for path, wanted in zip(spool, (job.stdout, job.stderr), strict=True):
        _deliver(path, wanted)
    _note(jobs, job.number, process.returncode, "walltime" if is_over else "")


def _start(job: Job, stdout: Any, stderr: Any) -> subprocess.Popen[bytes]:
    home = os.environ.get("HOME", "/")
    return subprocess.Popen(
        ["/bin/bash", job.script],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        # Of its own, as on a node.
        env={"HOME": home, "PATH": "/usr/local/bin:/usr/bin:/bin", **job.environment},
        cwd=home,
        start_new_session=True,
        # There is but one thread.
        preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, KEEPERS_SIGNALS),  # noqa: PLW1509
    )


def _wait(process: subprocess.Popen[bytes], timeout_s: float | None, *, until_told: bool) -> bool:
    """Wait until the job has ended, or is to be ended. Returns whether that was in time."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while process.poll() is None:
        if deadline is None:
            number: int | None = signal.sigwait(KEEPERS_SIGNALS)
        else:
            taken = signal.sigtimedwait(KEEPERS_SIGNALS, max(0.0, deadline - time.monotonic()))
            number = None if taken is None else taken.si_signo
        if number is None:
            return process.poll() is not None
        if number == signal.SIGTERM and until_told:
            return True
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask all that belongs to a job to end; what it starts meanwhile is asked too, and nothing twice."""
    deadline = time.monotonic() + GRACE_S
    asked: set[int] = set()
    while time.monotonic() < deadline:
        asked |= _signal_session(process.pid, signal.SIGTERM, spared=asked)
        if _wait(process, LOOK_AGAIN_S, until_told=False):
            return


def _signal_session(session: int, number: signal.Signals, spared: Collection[int] = ()) -> set[int]:
    """A process group is not enough: a shell may give each background job its own. Returns whom it was sent to."""
    found = set()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and int(entry.name) not in spared:
            # One that ends while we look is of no interest.
            with contextlib.suppress(OSError):
                if os.getsid(int(entry.name)) == session:
                    os.kill(int(entry.name), number)
                    found.add(int(entry.name))
    return found


def _deliver(path: Path, wanted: str) -> None:
    # Where it cannot be delivered it stays here; a batch system would send a mail.
    with contextlib.suppress(OSError):
        if wanted:
            Path(wanted).write_bytes(path.read_bytes())
        path.unlink()


def _note(jobs: Jobs, number: int, returncode: int, ended_by: str) -> None:
    with jobs.locked():
        job = jobs.get(number)
        # It may have been forgotten.
        if job is not None and job.state == RUNNING:
            job.state = ENDED
            job.ended = time.time()
            job.exit_code = returncode if returncode >= 0 else 128 - returncode
            job.ended_by = ended_by or job.ended_by or "itself"
            jobs.save(job)
    jobs.schedule()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
