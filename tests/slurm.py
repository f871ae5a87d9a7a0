"""A private Slurm for tests: the real one from the system's packages, on loopback, in one folder, for any user.

Its nodes are several slurmd on this machine. Each daemon runs under the warden of the local provider, so that nothing
of it outlives the tests, however they end: neither the daemons nor the jobs and what those have started.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from servers import free_ports

import farcall_provider_local

START_TIMEOUT_S = 60
COMMAND_TIMEOUT_S = 60

_WARDEN = Path(farcall_provider_local.__file__).with_name("warden.py")
_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin:/usr/local/sbin"
_PACKAGES = {
    "slurm": {"slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "sbatch": "slurm-wlm", "munged": "munge"},
    "slurmdbd": {"slurmdbd": "slurmdbd", "mariadbd": "mariadb-server", "mariadb-install-db": "mariadb-server"},
}

PARTITIONS = ("debug", "short")

#: The account that a Slurm with accounting has, and the limit of its quality of service ``tiny``.
ACCOUNT = "physics"
QOS_MOST_NODES = 1


def missing_slurm() -> str | None:
    """Why no Slurm can run here; None if it can."""
    return _missing("slurm")


def missing_accounting() -> str | None:
    """Why no Slurm with accounting can run here; None if it can."""
    return _missing("slurm") or _missing("slurmdbd")


def _missing(name: str) -> str | None:
    for program, package in _PACKAGES[name].items():
        if shutil.which(program, path=_PATH) is None:
            return f"{program} is not installed (on Debian and Ubuntu: apt-get install {package})"
    return None


def _user() -> str:
    """Who runs the tests, whatever the environment says."""
    return pwd.getpwuid(os.geteuid()).pw_name


class _Daemon:
    """A program under a warden that ends it with all that it has started."""

    def __init__(self, command: Sequence[str], *, log: Path, environment: dict[str, str]) -> None:
        self._command = list(command)
        self._log = log
        self._environment = environment
        self._lifeline: int | None = None
        self._warden: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        reading, self._lifeline = os.pipe()
        with self._log.open("ab") as log:
            self._warden = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-S",
                    _WARDEN,
                    str(reading),
                    "0",
                    "/bin/sh",
                    f"exec {shlex.join(self._command)}",
                ],
                env=self._environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(reading,),
                start_new_session=True,
            )
        os.close(reading)

    @property
    def is_running(self) -> bool:
        return self._warden is not None and self._warden.poll() is None

    def pids(self) -> list[int]:
        """The daemon's own process first, then those that it has started."""
        if self._warden is None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            return [child.pid for child in psutil.Process(self._warden.pid).children(recursive=True)]
        return []

    def stop(self) -> None:
        """In order; what it has started ends too."""
        for pid in self.pids()[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        if self._warden is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._warden.wait(COMMAND_TIMEOUT_S)
        self.kill()

    def kill(self) -> None:
        """At once, with all that it has started."""
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        if self._warden is not None:
            self._warden.wait(COMMAND_TIMEOUT_S)


class PrivateSlurm:
    """Nodes ``n1``, ``n2``, ... with some processors each; partitions ``debug`` (all) and ``short`` (n1, 2 minutes)."""

    def __init__(self, folder: Path, *, nodes: int, cpus: int, gpus: int, accounting: bool, min_job_age_s: int) -> None:
        self.folder = folder
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]
        #: What leads commands to it.
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        self.has_accounting = accounting
        self._cpus, self._gpus, self._min_job_age_s = cpus, gpus, min_job_age_s
        self._ports = free_ports(nodes + 3)
        self._all = {"LC_ALL": "C.UTF-8", "PATH": _PATH, "HOME": str(folder), **self.environment}
        for name in ("run", "log", "state", "munge"):
            (folder / name).mkdir(parents=True)
        (folder / "munge").chmod(0o711)
        key = folder / "munge" / "key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o600)
        self._configure()
        self._munged = self._daemon(
            "munged",
            "--foreground",
            "--force",
            "--num-threads=2",
            f"--key-file={key}",
            f"--socket={self._socket}",
            f"--pid-file={folder}/run/munged.pid",
            f"--log-file={folder}/log/munged.log",
            f"--seed-file={folder}/munge/seed",
        )
        self._database = [] if not accounting else [self._mariadbd(), self._daemon("slurmdbd", "-D")]
        self.controller = self._daemon("slurmctld", "-D")
        self.slurmd = {node: self._daemon("slurmd", "-D", "-N", node) for node in self.nodes}

    # -- what tests do ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start all of it, and wait until its nodes are ready for jobs."""
        self._munged.start()
        self._wait("munged", self._socket.exists)
        if self._database:
            self._start_accounting()
        self.controller.start()
        for slurmd in self.slurmd.values():
            slurmd.start()
        self._wait("slurmctld", self.is_ready)

    def is_ready(self) -> bool:
        """Whether all nodes wait for jobs."""
        ran = self.try_run("sinfo", "-h", "-N", "-p", "debug", "-t", "idle", "-o", "%N")
        return sorted(ran.stdout.split()) == self.nodes

    def run(self, *command: str) -> str:
        """What a command of Slurm prints; the test fails if it fails."""
        ran = self.try_run(*command)
        if ran.returncode:
            pytest.fail(f"{' '.join(command)}: {ran.returncode}\n{ran.stdout}{ran.stderr}")
        return ran.stdout.strip()

    def try_run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=self._all, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
        )

    def jobs(self) -> list[str]:
        """The ids of all jobs that have not ended."""
        return self.run("squeue", "-h", "-o", "%i").split()

    def update_node(self, node: str, state: str) -> None:
        self.run("scontrol", "update", f"nodename={node}", f"state={state}", "reason=a test")

    def update_partitions(self, state: str) -> None:
        for name in PARTITIONS:
            self.run("scontrol", "update", f"partitionname={name}", f"state={state}")

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Within, no job starts."""
        self.update_partitions("down")
        try:
            yield
        finally:
            self.update_partitions("up")

    @contextmanager
    def away(self) -> Iterator[None]:
        """Within, no command is answered. What runs goes on."""
        self.controller.stop()
        try:
            yield
        finally:
            self.controller.start()
            self._wait("slurmctld", self._answers)

    def heal(self) -> None:
        """As it was at first: no jobs, all daemons there, all nodes idle."""
        for daemon in (self.controller, *self.slurmd.values()):
            if not daemon.is_running:
                daemon.start()
        self._wait("slurmctld", self._answers)
        self.update_partitions("up")
        if jobs := self.jobs():
            self.run("scancel", *jobs)
        for line in self.run("sinfo", "-h", "-N", "-p", "debug", "-o", "%N %T").splitlines():
            node, state = line.split()
            if state.rstrip("*") in ("down", "drained", "draining", "fail"):
                self.try_run("scontrol", "update", f"nodename={node}", "state=resume")
        self._wait("nodes", lambda: not self.jobs() and self.is_ready())

    def close(self) -> None:
        for daemon in (*self.slurmd.values(), self.controller, *reversed(self._database), self._munged):
            daemon.kill()

    def _answers(self) -> bool:
        return self.try_run("scontrol", "ping").returncode == 0

    # -- how it is made -----------------------------------------------------------------------------------------------

    @property
    def _socket(self) -> Path:
        return self.folder / "munge" / "socket"

    def _daemon(self, program: str, *arguments: str) -> _Daemon:
        found = shutil.which(program, path=_PATH)
        assert found is not None
        name = f"{program}.{arguments[-1]}" if program == "slurmd" else program
        return _Daemon([found, *arguments], log=self.folder / "log" / f"{name}.out", environment=self._all)

    def _wait(self, what: str, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not is_so():
            if time.monotonic() > deadline:
                logs = "\n".join(f"{log}:\n{log.read_text()[-1000:]}" for log in (self.folder / "log").iterdir())
                pytest.fail(f"{what} of the private Slurm is not ready\n{logs}")
            time.sleep(0.05)

    def _configure(self) -> None:
        folder, user, host = self.folder, _user(), socket.gethostname().partition(".")[0]
        dbd, _, ctld, *nodes = self._ports
        accounting = (
            [
                "AccountingStorageType=accounting_storage/slurmdbd",
                "AccountingStorageHost=localhost",
                f"AccountingStoragePort={dbd}",
                # Without it the daemons of the accounting look for munge where the system's would be.
                f"AccountingStoragePass={self._socket}",
                "AccountingStorageEnforce=associations,limits,qos",
            ]
            if self.has_accounting
            else ["AccountingStorageType=accounting_storage/none"]
        )
        gpus = f"Gres=gpu:{self._gpus}" if self._gpus else ""
        lines = [
            "ClusterName=farcall",
            f"SlurmctldHost={host}(127.0.0.1)",
            f"SlurmctldPort={ctld}",
            f"SlurmUser={user}",
            f"SlurmdUser={user}",
            "AuthType=auth/munge",
            f"AuthInfo=socket={self._socket}",
            "CredType=cred/munge",
            f"StateSaveLocation={folder}/state",
            f"SlurmdSpoolDir={folder}/spool.%n",
            f"SlurmctldPidFile={folder}/run/slurmctld.pid",
            f"SlurmdPidFile={folder}/run/slurmd.%n.pid",
            f"SlurmctldLogFile={folder}/log/slurmctld.log",
            f"SlurmdLogFile={folder}/log/slurmd.%n.log",
            # A test machine may not let us make cgroups.
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "MpiDefault=none",
            # The nodes may have more than this machine.
            "SlurmdParameters=config_overrides",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_Core",
            "SchedulerType=sched/backfill",
            "SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=1,sched_min_interval=10000",
            # A node that was set down stays so.
            "ReturnToService=1",
            "SlurmctldTimeout=10",
            "SlurmdTimeout=10",
            "KillWait=2",
            "InactiveLimit=0",
            f"MinJobAge={self._min_job_age_s}",
            *accounting,
            *(["GresTypes=gpu"] if self._gpus else []),
            *(
                f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={self._cpus} Boards=1 "
                f"SocketsPerBoard=1 CoresPerSocket={self._cpus} ThreadsPerCore=1 RealMemory=4000 {gpus} State=UNKNOWN"
                for node, port in zip(self.nodes, nodes, strict=True)
            ),
            "PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=60 State=UP",
            f"PartitionName=short Nodes={self.nodes[0]} MaxTime=2 DefaultTime=1 State=UP",
        ]
        (folder / "slurm.conf").write_text("\n".join(lines) + "\n")
        if self._gpus:
            for number in range(self._gpus):
                # Any device will do.
                (folder / f"gpu{number}").symlink_to("/dev/null")
            (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-{self._gpus - 1}]\n")

    def _mariadbd(self) -> _Daemon:
        folder, user, port = self.folder, _user(), self._ports[1]
        (folder / "slurmdbd.conf").write_text(
            f"AuthType=auth/munge\nAuthInfo=socket={self._socket}\nDbdHost=localhost\nDbdPort={self._ports[0]}\n"
            f"SlurmUser={user}\nPidFile={folder}/run/slurmdbd.pid\nLogFile={folder}/log/slurmdbd.log\n"
            f"StorageType=accounting_storage/mysql\nStorageHost=127.0.0.1\nStoragePort={port}\n"
            "StorageUser=slurm\nStoragePass=slurm\nStorageLoc=slurm_acct\nCommitDelay=0\n"
        )
        (folder / "slurmdbd.conf").chmod(0o600)
        self._sql = folder / "run" / "sql"
        return self._daemon(
            "mariadbd",
            "--no-defaults",
            f"--datadir={folder}/db",
            f"--user={user}",
            f"--socket={self._sql}",
            f"--port={port}",
            "--bind-address=127.0.0.1",
            "--innodb-buffer-pool-size=64M",
            "--innodb-flush-log-at-trx-commit=0",
            "--innodb-lock-wait-timeout=900",
        )

    def _start_accounting(self) -> None:
        mariadbd, slurmdbd = self._database
        if not (self.folder / "db").exists():
            self.run(
                "mariadb-install-db",
                "--no-defaults",
                f"--datadir={self.folder}/db",
                f"--user={_user()}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
            )
        mariadbd.start()
        client = ("mariadb", "--no-defaults", "-u", "root", "-S", str(self._sql), "-e")
        self._wait("mariadbd", lambda: self.try_run(*client, "select 1").returncode == 0)
        self.run(
            *client,
            "create database slurm_acct; create user slurm@'127.0.0.1' identified by 'slurm'; "
            "grant all on slurm_acct.* to slurm@'127.0.0.1'; create user slurm@localhost identified by 'slurm'; "
            "grant all on slurm_acct.* to slurm@localhost",
        )
        slurmdbd.start()
        self._wait("slurmdbd", lambda: self.try_run("sacctmgr", "-n", "show", "cluster").returncode == 0)
        user = _user()
        for words in (
            "add cluster farcall",
            f"add account {ACCOUNT} cluster=farcall",
            f"add qos tiny maxtresperjob=node={QOS_MOST_NODES}",
            f"add user {user} account={ACCOUNT} cluster=farcall qos=normal,tiny",
            f"modify user {user} set defaultaccount={ACCOUNT} qos=normal,tiny",
        ):
            # Some of it is there from the beginning, which makes the command fail.
            self.try_run("sacctmgr", "-i", *words.split())


@contextmanager
def private_slurm(
    folder: Path,
    *,
    nodes: int = 3,
    cpus: int = 4,
    gpus: int = 0,
    accounting: bool = False,
    min_job_age_s: int = 300,
) -> Iterator[PrivateSlurm]:
    """A Slurm of one's own. Jobs that have ended stay in its lists for ``min_job_age_s``.

    With ``accounting`` there are a slurmdbd, an account and a quality of service for whoever runs the tests.
    """
    slurm = PrivateSlurm(folder, nodes=nodes, cpus=cpus, gpus=gpus, accounting=accounting, min_job_age_s=min_job_age_s)
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.close()
