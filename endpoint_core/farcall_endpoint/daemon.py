"""Start and stop an endpoint's agent: in the foreground, or as a process of its own that outlives the terminal."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import psutil

from farcall.errors import FarcallError
from farcall.exits import exit_code_of

from . import directories, logfile, pidfile
from .pidfile import State

log = logging.getLogger(__name__)

#: An orderly stop takes the agent about ten seconds at worst; then it is killed.
_STOP_PATIENCE_S = 20.0

#: What the system says of a disk that takes nothing more.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})

#: Somebody to be told what is going on, a sentence at a time.
Tell = Callable[[str], None]


class NotHere(FarcallError, RuntimeError):
    """The agent runs on another machine that shares the directory."""


@dataclasses.dataclass(frozen=True)
class Started:
    """How a start went."""

    exit_code: int
    #: Whether an agent runs now because of it.
    is_ready: bool = False
    #: The end of what the agent logged, where it did not say itself why it failed.
    last_words: Sequence[str] = ()


def run_agent(directory: Path, ready_descriptor: int | None) -> int:
    """Be the agent, until it is stopped. Returns the exit code."""
    ready = None if ready_descriptor is None else logfile.ReadyPipe(ready_descriptor)
    logfile.start_logging(directory / directories.LOG_NAME, ready)
    try:
        with pidfile.held(directory):
            return _run_agent(directory, ready)
    except pidfile.AlreadyRunning as error:
        log.warning("%s", error)
        return 0
    except pidfile.NotWritable as error:
        log.error("%s", error)
        return exit_code_of(error)


def _run_agent(directory: Path, ready: logfile.ReadyPipe | None) -> int:
    # Late: Parsl takes half a second to import, and no other command needs it.
    from .agent import Agent
    from .loading import load_config

    try:
        return Agent(load_config(directory)).run(on_ready=ready.ready if ready else lambda: None)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        understood = pidfile.NotWritable(error.filename or directory, error)
        log.error("%s", understood)
        return exit_code_of(understood)
    except FarcallError as error:
        # An end that was understood: agent.pid goes, and the endpoint is not called disconnected.
        log.error("%s", error)
        return exit_code_of(error)


def start(directory: Path, tell: Tell) -> Started:
    """Start the agent in the background and wait until it is ready, or has failed."""
    reading, writing = os.pipe()
    log_path = directory / directories.LOG_NAME
    with log_path.open("ab") as sink:
        logged_before = sink.tell()
        agent = subprocess.Popen(
            [sys.executable, "-m", "farcall_endpoint", "start", directory.name, "--ready-fd", str(writing)],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            pass_fds=(writing,),
            start_new_session=True,
        )
    os.close(writing)
    try:
        with os.fdopen(reading, encoding="utf-8") as pipe:
            is_ready, is_explained = _listen(pipe, tell)
        if is_ready:
            return Started(0, is_ready=True)
        exit_code = _exit_code(agent.wait())
    except KeyboardInterrupt:
        agent.terminate()
        agent.wait()
        raise
    if exit_code == 0 or is_explained:
        return Started(exit_code)
    return Started(exit_code, last_words=_logged_since(logged_before, log_path)[-10:])


def _listen(pipe: Iterable[str], tell: Tell) -> tuple[bool, bool]:
    """Pass on what the agent says. Returns whether it is ready, and whether it said why it is not."""
    is_explained = False
    for line in pipe:
        if line.rstrip("\n") == logfile.READY:
            return True, False
        is_explained = is_explained or line.startswith(logfile.FAILURE)
        tell(line.removeprefix(logfile.FAILURE).removeprefix(logfile.WARNING).rstrip("\n"))
    return False, is_explained


def _logged_since(position: int, path: Path) -> list[str]:
    with path.open("rb") as source:
        source.seek(position)
        return source.read().decode(errors="replace").splitlines()


def stop(directory: Path, tell: Tell) -> None:
    """Stop the agent and wait until it is down. Of one that does not run, remove what it may have left."""
    name, state = directory.name, pidfile.state_of(directory)
    if state is State.DISCONNECTED:
        clean_up(directory, tell)
    elif state is not State.RUNNING:
        tell(f"The endpoint {name!r} is not running.")
    else:
        _stop_running(directory, tell)


def clean_up(directory: Path, tell: Tell) -> None:
    """Make an endpoint whose agent ended without a goodbye look stopped again."""
    holder = pidfile.read_holder(directory)
    pidfile.clean_up(directory)
    if holder is None or holder.is_here:
        tell(f"The endpoint {directory.name!r} was not stopped in an orderly way; its directory is cleaned up.")
    else:
        tell(
            f"The endpoint {directory.name!r} last ran on {holder.hostname} and was not stopped in an orderly way; "
            "its directory is cleaned up. If it does still run there, the service will not let a second one in."
        )


def _stop_running(directory: Path, tell: Tell) -> None:
    name, holder = directory.name, pidfile.read_holder(directory)
    if holder is None:
        raise NotHere(f"the endpoint {name!r} is just starting; try again")
    if not holder.is_here:
        raise NotHere(
            f"the endpoint {name!r} runs on {holder.hostname}, not on this machine: "
            f"stop it there, or with: farcall-endpoint stop {name} --remote"
        )
    try:
        agent = psutil.Process(holder.pid)
        family = [*agent.children(recursive=True), agent]
        agent.terminate()
        psutil.wait_procs([agent], timeout=_STOP_PATIENCE_S)
    except psutil.NoSuchProcess:
        family = []
    left = [process for process in family if process.is_running()]
    if pidfile.state_of(directory) is State.RUNNING:
        _kill(left)
        tell(f"The endpoint {name!r} did not stop within {_STOP_PATIENCE_S:.0f} seconds and was killed.")
        pidfile.clean_up(directory)
        return
    if pidfile.state_of(directory) is State.DISCONNECTED:
        pidfile.clean_up(directory)
    tell(f"The endpoint {name!r} is stopped.")


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=5)


def _exit_code(returncode: int) -> int:
    """As a shell reports it."""
    return returncode if returncode >= 0 else 128 - returncode
