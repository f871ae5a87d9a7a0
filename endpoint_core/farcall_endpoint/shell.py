"""Run commands where a batch system's commands are: on this machine, or on one that is reached some other way."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

from .provider import Access, Finding, SystemUnavailable

#: How long writing or reading a small file may take; shared file systems can be slow.
FILE_TIMEOUT_S = 60.0

#: What a shell says of a command that is not there.
NOT_FOUND = 127


@dataclasses.dataclass(frozen=True)
class Ran:
    """A command that has ended."""

    #: As a shell reports it: 128 and the number of the signal that killed it.
    exit_code: int
    stdout: str
    stderr: str

    @property
    def said(self) -> str:
        """What it printed and how it ended, for people: stderr, or stdout where that is empty."""
        printed = self.stderr.strip() or self.stdout.strip()
        return f"{printed} [exit code {self.exit_code}]".strip()


class Shell(ABC):
    """Where commands run. Its methods are called from several threads."""

    #: For sentences, such as ``this machine`` or ``alice@login.example.org``.
    place: str

    #: Whether :meth:`give_access` brings nodes to ports of 127.0.0.1; if not, they need an address of this machine.
    gives_access: bool = False

    @abstractmethod
    def run(self, command: Sequence[str], *, stdin: bytes = b"", timeout_s: float) -> Ran:
        """Run a program, found through PATH, to its end, with its arguments taken as they are.

        One that is not there ends with 127, as in a shell. Raises :class:`SystemUnavailable` if the machine cannot
        be reached, or the program does not end in time; it may have done its work then.
        """

    def close(self) -> None:  # noqa: B027 - nothing is held here
        """Let go of a connection."""

    def write(self, path: str, content: bytes) -> None:
        """Make a file that its owner alone can read, and the directories above it.

        Raises :class:`SystemUnavailable` with what kept it from being written.
        """
        # Renamed at the end, so that half a file is never seen.
        script = 'umask 077; mkdir -p "${1%/*}" && cat > "$1.new" && mv "$1.new" "$1"'
        self._must(["sh", "-c", script, "sh", path], f"{path} cannot be written", stdin=content)

    def give_access(self, run_dir: Path, ports: Sequence[int]) -> Access | None:
        """As a provider's :meth:`Provider.give_access`, for the nodes of the system whose commands run here."""
        return None

    @property
    def access_is_lost(self) -> bool:
        """As a provider's :attr:`Provider.access_is_lost`."""
        return False

    def examine(self) -> Iterator[Finding]:
        """What can be wrong with the way to the machine, for ``doctor``."""
        return iter(())

    def tail(self, path: str, most_bytes: int) -> str:
        """The end of a file; empty if there is none."""
        ran = self.run(["tail", "-c", str(most_bytes), path], timeout_s=FILE_TIMEOUT_S)
        return ran.stdout if ran.exit_code == 0 else ""

    def remove(self, paths: Sequence[str]) -> None:
        """Remove files; those that are not there are as they should be."""
        if paths:
            self.run(["rm", "-f", *paths], timeout_s=FILE_TIMEOUT_S)

    def _must(self, command: Sequence[str], what: str, *, stdin: bytes = b"") -> None:
        ran = self.run(command, stdin=stdin, timeout_s=FILE_TIMEOUT_S)
        if ran.exit_code:
            raise SystemUnavailable(f"{what} on {self.place}: {ran.said}")


def name_of(command: Sequence[str]) -> str:
    """The program that is meant, where ``env`` only takes variables from it.

    >>> name_of(["env", "-u", "TOKEN", "squeue", "--me"]), name_of(["tail", "file"])
    ('squeue', 'tail')
    """
    words = list(command)
    if words[:1] == ["env"]:
        words = words[1:]
        while words[:1] == ["-u"]:
            words = words[2:]
    return words[0] if words else "env"


class LocalShell(Shell):
    """This machine."""

    place = "this machine"

    def run(self, command: Sequence[str], *, stdin: bytes = b"", timeout_s: float) -> Ran:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except FileNotFoundError:
            return Ran(NOT_FOUND, "", f"{command[0]}: command not found")
        except PermissionError as error:
            return Ran(NOT_FOUND - 1, "", f"{command[0]}: {error.strerror}")
        except OSError as error:
            raise SystemUnavailable(f"{command[0]} cannot be started on {self.place}: {error}") from error
        with process:
            try:
                stdout, stderr = process.communicate(stdin, timeout=timeout_s)
            except subprocess.TimeoutExpired:
                # It, and what it has started: either could keep the pipes open.
                os.killpg(process.pid, signal.SIGKILL)
                raise SystemUnavailable(
                    f"{name_of(command)} on {self.place} did not end within {timeout_s:g} s and was killed"
                ) from None
        code = process.returncode
        return Ran(code if code >= 0 else 128 - code, stdout.decode(errors="replace"), stderr.decode(errors="replace"))
