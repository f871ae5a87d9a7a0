"""Shell commands as functions: they run on the worker, and their walltime ends all that they started."""

from __future__ import annotations

import contextlib
import keyword
import os
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from farcall import counterparts

#: What the shell command `timeout` answers for a command that took too long.
TIMED_OUT = 124
#: How long processes have between being asked to end and being ended.
GRACE_S = 3.0
#: Marks every process that one command started, wherever it went.
_MARK = "FARCALL_SHELL_MARK"
#: No line is looked for further back than this from the end of the output.
_MOST_BYTES = 4 * 1024 * 1024


@dataclass
class ShellResult:
    """How a command ended. ``stdout`` and ``stderr`` have the last lines, ``exception_name`` is set if it failed."""

    cmd: str
    stdout: str
    stderr: str
    returncode: int
    exception_name: str | None = None

    def __str__(self) -> str:
        shown = self.stdout if self.returncode == 0 else self.stderr
        return f"{self.cmd!r} returned {self.returncode}\n{shown}".rstrip()

    def __reduce__(self) -> tuple[Any, ...]:
        return counterparts.reduced(self)


class ShellFunction:
    """A command line to be submitted like a function; ``{name}`` in it is filled in from keyword arguments.

    ``stdout`` and ``stderr`` name files on the worker to append to; without them the output is only in the result,
    which holds its last ``snippet_lines`` lines. After ``walltime`` seconds every process that the command started is
    ended and ``returncode`` is 124. ``return_dict`` asks for a dictionary instead of a :class:`ShellResult`.
    """

    def __init__(
        self,
        cmd: str,
        stdout: str | None = None,
        stderr: str | None = None,
        walltime: float | None = None,
        snippet_lines: int = 1000,
        name: str | None = None,
        return_dict: bool = False,
    ) -> None:
        name = name or type(self).__name__
        if not name.isidentifier() or keyword.iskeyword(name):
            raise ValueError(f"{name!r} cannot be the name of a function")
        if walltime is not None and walltime < 0:
            raise ValueError(f"walltime is a number of seconds, not {walltime}")
        self.cmd = cmd
        self.stdout = stdout
        self.stderr = stderr
        self.walltime = walltime
        self.snippet_lines = snippet_lines
        self.__name__ = name
        self.return_dict = return_dict

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.cmd!r}, walltime={self.walltime!r}, name={self.__name__!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return counterparts.reduced(self)

    def __call__(self, **kwargs: Any) -> ShellResult | dict[str, Any]:
        """Run the command here: this is what the worker does."""
        command = self._command_line(**kwargs)
        directory = _run_directory()
        with _output(self.stdout, directory, "stdout") as out, _output(self.stderr, directory, "stderr") as err:
            starts = out.seek(0, os.SEEK_END), err.seek(0, os.SEEK_END)
            returncode, exception_name = _run(command, directory, out, err, self.walltime)
            result = ShellResult(
                command,
                _last_lines(out, starts[0], self.snippet_lines),
                _last_lines(err, starts[1], self.snippet_lines),
                returncode,
                exception_name,
            )
        return asdict(result) if self.return_dict else result

    def _command_line(self, **kwargs: Any) -> str:
        return self.cmd.format(**kwargs)


def _run(
    command: str, directory: Path, out: IO[bytes], err: IO[bytes], walltime_s: float | None
) -> tuple[int, str | None]:
    mark = uuid.uuid4().hex
    shell = "/bin/bash" if os.access("/bin/bash", os.X_OK) else "/bin/sh"
    process = subprocess.Popen(
        [shell, "-c", command],
        cwd=directory,
        env={**os.environ, _MARK: mark},
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=err,
        start_new_session=True,
    )
    try:
        returncode = process.wait(walltime_s)
    except subprocess.TimeoutExpired:
        _end(process, mark)
        return TIMED_OUT, "subprocess.TimeoutExpired"
    except BaseException:
        # The task itself was ended, by its own time limit or from outside.
        _end(process, mark)
        raise
    return returncode, None if returncode == 0 else "subprocess.CalledProcessError"


def _end(process: subprocess.Popen[bytes], mark: str) -> None:
    """Ask everything that the command started to end, and end what does not."""
    _signal_all(process, mark, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while _is_anything_left(process, mark) and time.monotonic() < deadline:
        time.sleep(0.02)
    # Twice: a process may have started another between being found and being ended.
    for _ in range(2):
        _signal_all(process, mark, signal.SIGKILL)
    process.wait()


def _signal_all(process: subprocess.Popen[bytes], mark: str, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
    # Those that left the process group for one of their own.
    for pid in _marked(mark):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _is_anything_left(process: subprocess.Popen[bytes], mark: str) -> bool:
    if process.poll() is None or any(True for _ in _marked(mark)):
        return True
    try:
        os.killpg(process.pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _marked(mark: str) -> Iterator[int]:
    """Processes with the mark in their environment. Only Linux tells; elsewhere the process group has to do."""
    wanted = f"{_MARK}={mark}".encode()
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if wanted in environment.read_bytes().split(b"\0"):
                yield int(environment.parent.name)


def _run_directory() -> Path:
    """The task's sandbox where the endpoint has made one, else where the worker is."""
    named = os.environ.get("FARCALL_TASK_SANDBOX_DIR") or os.environ.get("GC_TASK_SANDBOX_DIR")
    if not named:
        return Path.cwd()
    directory = Path(named)
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _output(name: str | None, directory: Path, stream: str) -> IO[bytes]:
    """The file that was asked for; in a sandbox one named after the task; else one that nobody sees."""
    task_id = os.environ.get("FARCALL_TASK_ID") or os.environ.get("GC_TASK_UUID")
    sandboxed = os.environ.get("FARCALL_TASK_SANDBOX_DIR") or os.environ.get("GC_TASK_SANDBOX_DIR")
    if name is None and not (sandboxed and task_id):
        return tempfile.TemporaryFile()
    path = directory / (name or f"{task_id}.{stream}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("a+b")


def _last_lines(file: IO[bytes], start: int, count: int) -> str:
    """The last ``count`` lines written since ``start``, without reading more of a large output than may be needed."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(start, end - _MOST_BYTES))
    lines = file.read().decode("utf-8", "replace").splitlines(keepends=True)
    return "".join(lines[-count:]) if count > 0 else ""
