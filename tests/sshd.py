"""A private sshd for tests, which lets in whoever runs the tests, with throw-away keys and a home in one folder."""

from __future__ import annotations

import contextlib
import getpass
import os
import select
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from servers import _plain_environment, _Server, free_ports

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")


def missing_sshd() -> str | None:
    """Why a test that needs ``ssh`` cannot run here; None if it can."""
    for program in (SSHD, shutil.which("ssh-keygen")):
        if program is None:
            return "sshd is not installed (on Debian and Ubuntu: apt-get install openssh-server)"
    return None


def has_ended(pid: int, *, within_s: float = 60.0) -> bool:
    """Whether a process ends in time that is nobody's child here; who is to collect it does not matter."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], within_s)[0])
    finally:
        os.close(fd)


def new_key(path: Path, *, kind: str = "ed25519", passphrase: str = "") -> Path:
    """A new private key, with its public one beside it."""
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", path.name, "-f", path], check=True)
    return path


class PrivateSshd(_Server):
    """One server; everything of it is in ``folder``, and so is the home of who logs in."""

    ready_text = "Server listening"

    def __init__(
        self,
        folder: Path,
        *,
        prefix: Sequence[str | Path] = (),
        host: str = "127.0.0.1",
        settings: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.host, self.user = folder, host, getpass.getuser()
        self.port = free_ports(1)[0]
        #: A key that opens it, and the file in which it is known.
        self.key, self.known_hosts = new_key(folder / "key"), folder / "known_hosts"
        self.home = folder / "home"
        self.home.mkdir()
        self._authorized = folder / "authorized_keys"
        self._authorized.write_text(self.key.with_suffix(".pub").read_text())
        self.host_key = new_key(folder / "host_key")
        self.known_hosts.write_text(self.known_as(self.host_key))
        given = {
            "Port": str(self.port),
            "ListenAddress": host,
            "HostKey": str(self.host_key),
            "PidFile": "none",
            "AuthorizedKeysFile": str(self._authorized),
            "PermitRootLogin": "yes",
            "StrictModes": "no",
            "UsePAM": "no",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "SetEnv": f"HOME={self.home}",
            **(settings or {}),
        }
        configuration = folder / "sshd_config"
        configuration.write_text("".join(f"{name} {value}\n" for name, value in given.items()))
        command = [SSHD, "-D", "-e", "-f", configuration]
        super().__init__([*prefix, *_with_a_run_folder(command)], log=folder / "log", environment=_plain_environment())

    def known_as(self, host_key: Path) -> str:
        """A line of a file of known hosts."""
        kind, key, *_ = host_key.with_suffix(".pub").read_text().split()
        return f"[{self.host}]:{self.port} {kind} {key}\n"

    def let_in(self, key: Path) -> None:
        """Another key opens it too."""
        with self._authorized.open("a") as file:
            file.write(key.with_suffix(".pub").read_text())

    @property
    def options(self) -> dict[str, Any]:
        """The keys of ``SshOptions`` by which this server is reached."""
        return {
            "host": self.host,
            "port": self.port,
            "key": str(self.key),
            "agent": False,
            "known_hosts": str(self.known_hosts),
            "config": None,
        }

    def drop_connections(self) -> int:
        """Kill what serves each connection, as when one breaks; how many processes that were."""
        assert self.process is not None
        serving = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name().startswith("sshd"):
                    process.kill()
                    serving.append(process)
        psutil.wait_procs(serving, timeout=10)
        return len(serving)


@contextmanager
def private_sshd(folder: Path, **options: Any) -> Iterator[PrivateSshd]:
    """One of one's own, with the arguments of :class:`PrivateSshd`."""
    server = PrivateSshd(folder, **options)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def _with_a_run_folder(command: Sequence[str | Path | None]) -> list[str]:
    words = [str(word) for word in command]
    if os.geteuid():
        return words
    # For root it wants /run/sshd, which only the system's own service makes. In a namespace nothing of it stays.
    script = f"mount -t tmpfs none /run && mkdir -m 755 /run/sshd && exec {shlex.join(words)}"
    return ["unshare", "--mount", "sh", "-c", script]
