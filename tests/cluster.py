"""A small cluster behind a jump host, of network namespaces: its node reaches its login node and nothing else.

    this machine --(a socket)--> jump host --- login node --- compute node

Nothing of it is seen on this machine's own network, and all of it ends with the test.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
from servers import _end_with_the_tests
from sshd import PrivateSshd, missing_sshd, private_sshd

from farcall_endpoint.relaying import LOADER

JUMP, LOGIN, LOGIN_INSIDE, NODE = "10.91.1.1", "10.91.1.2", "10.91.2.1", "10.91.2.2"


def missing_for_cluster() -> str | None:
    """Why there can be no such cluster here; None if there can."""
    if os.geteuid():
        return "only root can make hosts of network namespaces that sshd runs on"
    for tool in ("unshare", "nsenter", "ip"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    tried = subprocess.run(["unshare", "--net", "true"], check=False, capture_output=True, text=True)
    return f"namespaces are not allowed here: {tried.stderr.strip()}" if tried.returncode else missing_sshd()


class Host:
    """A machine, as far as the network is concerned."""

    def __init__(self, holder: subprocess.Popen[str]) -> None:
        self.pid = holder.pid
        self.network = Path(f"/proc/{holder.pid}/ns/net").readlink()
        self.prefix = ["nsenter", f"--target={holder.pid}", "--net", "--"]
        self.run("ip", "link", "set", "lo", "up")

    def run(self, *command: str) -> None:
        subprocess.run([*self.prefix, *command], check=True, capture_output=True)

    def cable_to(self, other: Host, ours: str, theirs: str) -> None:
        name = f"to{other.pid}"
        self.run("ip", "link", "add", name, "type", "veth", "peer", "name", f"to{self.pid}", "netns", str(other.pid))
        for host, address, port in ((self, ours, name), (other, theirs, f"to{self.pid}")):
            host.run("ip", "address", "add", f"{address}/24", "dev", port)
            host.run("ip", "link", "set", port, "up")

    def processes(self) -> set[int]:
        """Of all that run here, but for what makes it a host."""
        found = set()
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                if process.pid != self.pid and Path(f"/proc/{process.pid}/ns/net").readlink() == self.network:
                    found.add(process.pid)
        return found


class JumpSshd(PrivateSshd):
    """An sshd that is connected to from this machine, and connects from another: one process a connection."""

    def start(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._serving: list[subprocess.Popen[bytes]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection, self.log.open("ab") as log:
                    command = [word for word in self._command if word != "-D"]
                    command[-1] = command[-1].replace("sshd -D", "sshd -i")
                    process = subprocess.Popen(
                        command,
                        stdin=connection,
                        stdout=connection,
                        stderr=log,
                        env=self._environment,
                        preexec_fn=_end_with_the_tests,  # noqa: PLW1509 -- one call of the C library
                    )
                self._serving.append(process)

    def drop_connections(self) -> int:
        dropped = 0
        for process in self._serving:
            if process.poll() is None:
                for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        each.kill()
                process.wait()
                dropped += 1
        return dropped

    def kill(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop_connections()


#: The commands of its batch system, which runs a job as a process on the node.
TINYBATCH = """\
#!{python}
import os, pathlib, signal, subprocess, sys

spool, node = pathlib.Path({spool!r}), {node!r}


def runs(pid):
    try:
        return pathlib.Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


if sys.argv[1] == "submit":
    script, out, err = sys.argv[2:]
    command = ["nsenter", "--target=" + node, "--net", "--", "bash", script]
    with open(out, "w") as stdout, open(err, "w") as stderr:
        job = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True
        )
    (spool / str(job.pid)).touch()
    print(job.pid)
elif sys.argv[1] == "list":
    print(" ".join(job.name for job in spool.iterdir() if runs(job.name)))
elif sys.argv[1] == "end":
    for job in sys.argv[2:]:
        if runs(job):
            os.killpg(int(job), signal.SIGTERM)
"""

#: The plugin that drives it.
PLUGIN = """\
from farcall_endpoint.batch import BatchProvider, BatchConfig, Job
from farcall_endpoint.hookspecs import hookimpl
from farcall_endpoint.provider import BlockState


class TinyProvider(BatchProvider):
    Config = BatchConfig
    commands = {"tinybatch": ["tinybatch", "list"]}

    def head(self, spec, files):
        return []

    def submit_command(self, files):
        return ["tinybatch", "submit", files.script, files.stdout, files.stderr]

    def block_id(self, printed):
        return str(int(printed))

    def look(self, block_ids):
        running = self.ask(["tinybatch", "list"]).split()
        return {key: Job(BlockState.RUNNING, "on the node") for key in block_ids if key in running}

    def cancel_command(self, block_ids):
        return ["tinybatch", "end", *block_ids]

    def is_refusal(self, ran):
        return True


@hookimpl
def farcall_providers():
    return {"tiny": TinyProvider}
"""


class Cluster:
    """What there is to be seen of it, and to be done to it."""

    def __init__(self, folder: Path, hosts: Sequence[Host], jump: JumpSshd, login: PrivateSshd) -> None:
        self.jump_host, self.login_host, self.node = hosts
        self.jump, self.login = jump, login
        self.spool = folder / "spool"
        self.spool.mkdir()
        #: For PYTHONPATH: where the plugin is installed.
        self.plugins = folder / "plugins"
        _install(self.plugins)
        self._bin = folder / "bin"
        self._bin.mkdir()
        command = self._bin / "tinybatch"
        command.write_text(TINYBATCH.format(python=sys.executable, spool=str(self.spool), node=str(self.node.pid)))
        command.chmod(0o755)

    @property
    def options(self) -> dict[str, Any]:
        """For the key ``ssh`` of a configuration."""
        known = self.login.folder / "both"
        known.write_text(self.login.known_hosts.read_text() + self.jump.known_hosts.read_text())
        return {
            **self.login.options,
            "known_hosts": str(known),
            "proxy_jump": f"{self.jump.user}@127.0.0.1:{self.jump.port}",
            "init": f"export PATH={self._bin}:$PATH",
        }

    @property
    def jobs(self) -> list[str]:
        """The ids of all jobs that there ever were."""
        return sorted(path.name for path in self.spool.iterdir())

    def processes(self) -> set[int]:
        """Of all that run on its hosts."""
        return {pid for host in (self.jump_host, self.login_host, self.node) for pid in host.processes()}

    def end_relays(self) -> int:
        """Kill what runs on the login node for an agent; how many processes that were."""
        ended = 0
        for pid in self.login_host.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if LOADER in process.cmdline():
                    process.kill()
                    ended += 1
        return ended


@contextmanager
def small_cluster(folder: Path) -> Iterator[Cluster]:
    """Make it, with an account for whoever runs the tests."""
    with ExitStack() as cleaning:
        hosts = [Host(cleaning.enter_context(_namespace())) for _ in range(3)]
        jump_host, login_host, node = hosts
        jump_host.cable_to(login_host, JUMP, LOGIN)
        login_host.cable_to(node, LOGIN_INSIDE, NODE)
        login = cleaning.enter_context(private_sshd(folder / "login", prefix=login_host.prefix, host=LOGIN))
        jump = JumpSshd(folder / "jump", prefix=jump_host.prefix)
        jump.start()
        cleaning.callback(jump.kill)
        login.let_in(jump.key)
        jump.let_in(login.key)
        yield Cluster(folder, hosts, jump, login)


@contextmanager
def _namespace() -> Iterator[subprocess.Popen[str]]:
    """A process with a network of its own, which lives as long as the process does."""
    holder = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo ready; exec sleep infinity"],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=_end_with_the_tests,  # noqa: PLW1509 -- one call of the C library
    )
    with holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "ready\n"
            yield holder
        finally:
            holder.kill()


def _install(folder: Path) -> None:
    info = folder / "farcall_provider_tiny-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "farcall_provider_tiny.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: farcall-provider-tiny\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        textwrap.dedent("""\
            [farcall]
            tiny = farcall_provider_tiny
            """)
    )
