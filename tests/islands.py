"""An island: a network with nothing but loopback, in which everything runs as an unprivileged user.

A network namespace has no way out, so a call to an outside host fails there; a process namespace ends everything that
was started in it when its first process ends. Nothing of it outlives the test process.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

CHECKOUT = Path(__file__).parents[1]
#: The commands of this checkout, and those of the unmodified packages.
OURS, THEIRS = CHECKOUT / ".venv" / "bin", CHECKOUT / ".venv-globus" / "bin"
#: Debian's `nobody`, whoever we are.
NOBODY = 65534
FIRST_PROCESS = Path(__file__).parent / "globus" / "programs" / "island.py"
#: Names that are no outside host: the machine's own may not be known where only loopback is.
OWN_NAMES = {platform.node(), "localhost"}
TOOLS = ("unshare", "nsenter", "ip", "mount", "setpriv")


class Island:
    """What is started here cannot reach anything else."""

    def __init__(self, folder: Path, pid: int, *, by_root: bool) -> None:
        self.folder = folder
        #: Of the user that programs here run as.
        self.home = folder / "home"
        self._pid = pid
        self._by_root = by_root
        self.environment = {
            "HOME": str(self.home),
            "USER": "nobody",
            "LOGNAME": "nobody",
            "PATH": os.pathsep.join([str(OURS), "/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"]),
            "LANG": "C.UTF-8",
            "TMPDIR": str(self.writable("tmp")),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.writable("home")

    @property
    def prefix(self) -> list[str]:
        """What precedes a command so that it runs here, as the unprivileged user."""
        enter = ["nsenter", f"--target={self._pid}", "--net", "--pid", "--mount", "--wdns=/"]
        if self._by_root:
            user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"]
        else:
            # In its own namespace we are root; in one more inside that we are somebody without any privilege.
            enter += ["--user", "--preserve-credentials"]
            user = ["unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}"]
        return [*enter, "--", *user]

    def start(
        self, *command: str | Path, env: Mapping[str, str] | None = None, **popen: object
    ) -> subprocess.Popen[str]:
        """Run a command; ``env`` goes over the environment that every program here has."""
        environment = {**self.environment, **(env or {})}
        return subprocess.Popen([*self.prefix, *command], env=environment, text=True, **popen)  # type: ignore[call-overload, no-any-return]

    def run(
        self,
        *command: str | Path,
        env: Mapping[str, str] | None = None,
        check: bool = True,
        timeout_s: float = 60,
        stdin: str = "",
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end. An exit code other than 0 fails the test unless ``check`` is False."""
        done = subprocess.run(
            [*self.prefix, *command],
            check=False,
            env={**self.environment, **(env or {})},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        words = " ".join(str(word) for word in command)
        assert not check or done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def end(self, process: subprocess.Popen[str], number: int) -> int:
        """Send a signal to what :meth:`start` started, and wait until it has ended."""
        # `nsenter` waits for the command, which is its only child, and passes no signal on.
        for command in psutil.Process(process.pid).children() if process.poll() is None else []:
            command.send_signal(number)
        try:
            return process.wait(timeout=30)
        finally:
            process.kill()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()

    def names_asked_for(self) -> list[str]:
        """Every name that a program here has tried to resolve."""
        log = self.folder / "names"
        return log.read_text().split() if log.exists() else []

    def writable(self, name: str) -> Path:
        """A folder in which the programs here may write."""
        path = self.folder / name
        path.mkdir(exist_ok=True)
        if self._by_root:
            os.chown(path, NOBODY, NOBODY)
        return path


def missing_for_islands(*more_tools: str) -> str | None:
    """Why there can be no island on this machine, or no use of these tools on one; None if there can."""
    absent = [tool for tool in (*TOOLS, *more_tools) if shutil.which(tool) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    tried = subprocess.run([*_unshare(), "true"], check=False, capture_output=True, text=True, timeout=20)
    return f"namespaces are not allowed here: {tried.stderr.strip()}" if tried.returncode else None


@contextmanager
def island() -> Iterator[Island]:
    """Make an island, and end it with everything in it."""
    # Not pytest's own temporary folder, into which only its owner can look.
    folder = Path(tempfile.mkdtemp(prefix="farcall-island-"))
    folder.chmod(0o755)
    first = subprocess.Popen(
        [*_unshare(), sys.executable, FIRST_PROCESS, folder, CHECKOUT, sys.base_prefix],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "ready\n", f"no island: {first.poll()}"
        (inside,) = psutil.Process(first.pid).children()
        yield Island(folder, inside.pid, by_root=os.geteuid() == 0)
    finally:
        first.communicate()
        shutil.rmtree(folder, ignore_errors=True)


def _unshare() -> list[str]:
    own = ["--user", "--map-root-user"] if os.geteuid() else []
    return ["unshare", *own, "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
