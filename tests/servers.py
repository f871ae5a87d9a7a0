"""Private servers for tests: RabbitMQ and PostgreSQL from the system's packages, on loopback and in one folder."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import itertools
import json
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest
import urllib3

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1

#: Below those that the kernel chooses (`net.ipv4.ip_local_port_range`), above those that have meanings.
_PORTS = range(16_000, 32_000)

START_TIMEOUT_S = 90
STOP_TIMEOUT_S = 60

_RABBITMQ_FOLDERS = (Path("/usr/lib/rabbitmq/bin"), Path("/usr/local/lib/rabbitmq/bin"))
_POSTGRES_FOLDERS = tuple(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True))


def missing_server(name: str) -> str | None:
    """Why a test that needs ``name`` (``rabbitmq`` or ``postgres``) cannot run here; None if it can."""
    try:
        reason = _REASONS[name]
    except KeyError:
        raise ValueError(f"no server is called {name!r}; known: {', '.join(_REASONS)}") from None
    return reason()


def needs(name: str, missing: Callable[[], str | None] | None = None) -> None:
    """Skip the test, with the reason, where ``name`` is missing; fail it if FARCALL_TEST_REQUIRE lists the name.

    ``missing`` answers for names that :func:`missing_server` does not know.
    """
    reason = missing() if missing is not None else missing_server(name)
    if reason is None:
        return
    required = {each.strip() for each in os.environ.get("FARCALL_TEST_REQUIRE", "").split(",")}
    if name in required:
        pytest.fail(f"FARCALL_TEST_REQUIRE lists {name}, but {reason}", pytrace=False)
    pytest.skip(f"{name}: {reason}")


def free_ports(count: int) -> list[int]:
    """So many different ports of 127.0.0.1 that nobody uses.

    They stay free until they are used, and while a server is down: no connection gets one of them by itself, which
    those that the kernel would choose here are not safe from on a busy machine.
    """
    found: list[int] = []
    while len(found) < count:
        # Chance, so that tests beside this one hardly find the same.
        port = random.SystemRandom().choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found += [] if port in found else [port]
    return found


class _Server:
    """A process that says in its output when it is ready."""

    #: What it says.
    ready_text: str
    stop_signal = signal.SIGTERM

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        log: Path,
        environment: dict[str, str],
        as_user: pwd.struct_passwd | None = None,
    ) -> None:
        self._command = [str(each) for each in command]
        self._environment = environment
        self._as_user = as_user
        self.log = log
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it, or start it again with what it kept, and wait until it is ready."""
        self.process = _popen(self._command, self._environment, self._as_user)
        ready = threading.Event()
        threading.Thread(target=self._follow, args=(self.process, ready), daemon=True).start()
        if not ready.wait(START_TIMEOUT_S) or self.process.poll() is not None:
            self.kill()
            pytest.fail(f"{self._command[0]} did not become ready:\n{self.log.read_text()[-4000:]}")

    def _follow(self, process: subprocess.Popen[str], ready: threading.Event) -> None:
        assert process.stdout is not None
        with self.log.open("a") as log, process.stdout:
            for line in process.stdout:
                log.write(line)
                log.flush()
                if self.ready_text in line:
                    ready.set()
        process.wait()
        ready.set()

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def stop(self) -> None:
        """End it in order; it keeps what it has. Stopping one that has ended is no error."""
        if self.is_running:
            assert self.process is not None
            self.process.send_signal(self.stop_signal)
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """kill -9, with all that it has started."""
        if self.process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self.process.pid)
            family = [parent, *parent.children(recursive=True)]
            # The parent first, so that it starts no child anew.
            for each in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
            self.process.wait()
            psutil.wait_procs(family, timeout=10)


def _popen(
    command: Sequence[str], environment: dict[str, str], as_user: pwd.struct_passwd | None = None
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        env=environment,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        # Ctrl-C on the terminal is for the tests, which then stop the server.
        start_new_session=True,
        preexec_fn=_end_with_the_tests,  # noqa: PLW1509 -- one call of the C library, which takes no lock
        user=as_user.pw_uid if as_user else None,
        group=as_user.pw_gid if as_user else None,
        extra_groups=[] if as_user else None,
    )


def _end_with_the_tests() -> None:
    """Also when they are killed, and can stop nothing any more."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGINT)


def _plain_environment(**more: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "TZ", "TMPDIR") if name in os.environ}
    return {"LC_ALL": "C.UTF-8", **kept, **more}


def _find(program: str, folders: Sequence[Path]) -> Path | None:
    for folder in folders:
        if os.access(folder / program, os.X_OK):
            return folder / program
    found = shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
    return Path(found) if found else None


# -- RabbitMQ ---------------------------------------------------------------------------------------------------------


def _missing_rabbitmq() -> str | None:
    for program in ("rabbitmq-server", "epmd"):
        if _find(program, _RABBITMQ_FOLDERS) is None:
            return f"{program} is not installed (on Debian and Ubuntu: apt-get install rabbitmq-server)"
    return None


class PrivateRabbitMQ(_Server):
    """A node with one user; everything it writes is in ``folder``."""

    ready_text = "Server startup complete"

    def __init__(self, folder: Path, *, prefix: Sequence[str], host: str = "127.0.0.1") -> None:
        server = _find("rabbitmq-server", _RABBITMQ_FOLDERS)
        assert server is not None
        self._prefix = list(prefix)
        self._ctl = server.with_name("rabbitmqctl")
        port, dist_port, ctl_port, epmd_port, management_port = free_ports(5)
        password = secrets.token_hex(8)
        self._account = f"farcall:{password}"
        #: Understood alike by kombu and by pika.
        self.url = f"amqp://farcall:{password}@{host}:{port}/%2F"
        #: Of its management API.
        self.management_url = f"http://farcall:{password}@127.0.0.1:{management_port}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.default = {host}:{port}\n"
            f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {management_port}\n"
            f"default_user = farcall\ndefault_pass = {password}\n"
            "log.console = true\nlog.file = false\ndisk_free_limit.absolute = 50MB\n"
        )
        (folder / "enabled_plugins").write_text("[rabbitmq_management].\n")
        environment = _plain_environment(
            # Erlang keeps its cookie there.
            HOME=str(folder),
            RABBITMQ_NODENAME=f"farcall-{port}@localhost",
            RABBITMQ_CONF_ENV_FILE=str(folder / "none.conf"),
            RABBITMQ_CONFIG_FILE=str(folder / "rabbitmq.conf"),
            RABBITMQ_ENABLED_PLUGINS_FILE=str(folder / "enabled_plugins"),
            RABBITMQ_MNESIA_BASE=str(folder / "mnesia"),
            RABBITMQ_LOG_BASE=str(folder / "log"),
            RABBITMQ_GENERATED_CONFIG_DIR=str(folder / "config"),
            RABBITMQ_PID_FILE=str(folder / "pid"),
            RABBITMQ_DIST_PORT=str(dist_port),
            RABBITMQ_CTL_DIST_PORT_MIN=str(ctl_port),
            RABBITMQ_CTL_DIST_PORT_MAX=str(ctl_port),
            RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="+S 2:2 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}",
            # Its start script then becomes the node instead of waiting for it.
            RUNNING_UNDER_SYSTEMD="true",
            ERL_EPMD_PORT=str(epmd_port),
            ERL_EPMD_ADDRESS="127.0.0.1",
        )
        super().__init__([*prefix, str(server)], log=folder / "rabbitmq.log", environment=environment)
        self._names: subprocess.Popen[str] | None = None

    def start(self) -> None:
        if self._names is None or self._names.poll() is not None:
            # Otherwise the node starts the name server itself, as a daemon that nobody ends.
            epmd = _find("epmd", _RABBITMQ_FOLDERS)
            self._names = _popen([*self._prefix, str(epmd)], self._environment)
        super().start()

    def ctl(self, *arguments: str) -> str:
        """Run ``rabbitmqctl`` on this node and return what it says."""
        done = subprocess.run(
            [*self._prefix, str(self._ctl), *arguments],
            env=self._environment,
            cwd="/",
            capture_output=True,
            text=True,
            timeout=STOP_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            pytest.fail(f"rabbitmqctl {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def vhost(self, name: str) -> str:
        """Add a virtual host, where tests cannot see each other's queues; returns its URL."""
        quoted = quote(name, safe="")
        if self._prefix:
            # We may not be where its management API can be reached.
            self.ctl("add_vhost", name)
            self.ctl("set_permissions", "-p", name, "farcall", ".*", ".*", ".*")
        else:
            self._manage("PUT", f"vhosts/{quoted}")
            rights = {"configure": ".*", "write": ".*", "read": ".*"}
            self._manage("PUT", f"permissions/{quoted}/farcall", json.dumps(rights))
        return self.url.removesuffix("%2F") + quoted

    def drop_vhost(self, url: str) -> None:
        """Remove what :meth:`vhost` made."""
        self._manage("DELETE", f"vhosts/{url.rpartition('/')[2]}")

    def _manage(self, method: str, path: str, body: str | None = None) -> None:
        """Ask its management API, which takes a hundredth of the time that `rabbitmqctl` takes to start."""
        http = urllib3.PoolManager(headers=urllib3.make_headers(basic_auth=self._account), timeout=STOP_TIMEOUT_S)
        answer = http.request(method, f"http://{self.management_url.rpartition('@')[2]}/api/{path}", body=body)
        if answer.status >= 400:
            pytest.fail(f"{method} {path}: {answer.status}\n{answer.data.decode(errors='replace')}")

    def close(self) -> None:
        # Not in order, which takes seconds: nobody is to use again what it has.
        self.kill()
        if self._names is not None:
            self._names.kill()
            self._names.wait()
            if self._names.stdout is not None:
                self._names.stdout.close()


@contextmanager
def private_rabbitmq(
    folder: Path, *, prefix: Sequence[str] = (), host: str = "127.0.0.1", start: bool = True
) -> Iterator[PrivateRabbitMQ]:
    """A RabbitMQ of one's own. ``prefix`` goes before each command, for example to enter a network namespace.

    ``host`` is the address on which it listens. Without ``start`` it is for the caller to start.
    """
    server = PrivateRabbitMQ(folder, prefix=prefix, host=host)
    try:
        if start:
            server.start()
        yield server
    finally:
        server.close()


# -- PostgreSQL -------------------------------------------------------------------------------------------------------


def _missing_postgres() -> str | None:
    for program in ("initdb", "postgres"):
        if _find(program, _POSTGRES_FOLDERS) is None:
            return f"{program} is not installed (on Debian and Ubuntu: apt-get install postgresql)"
    if importlib.util.find_spec("psycopg") is None:
        return "the module psycopg is not installed (pip install 'farcall-webservice[postgres]')"
    return None


class PrivatePostgres(_Server):
    """A cluster with one superuser ``farcall``, who needs no password."""

    ready_text = "database system is ready to accept connections"
    #: To disconnect everybody instead of waiting until they have gone.
    stop_signal = signal.SIGINT

    def __init__(
        self, folder: Path, *, prefix: Sequence[str], settings: dict[str, str], host: str = "127.0.0.1"
    ) -> None:
        self._initdb = _find("initdb", _POSTGRES_FOLDERS)
        server = _find("postgres", _POSTGRES_FOLDERS)
        assert self._initdb is not None and server is not None
        self.port = free_ports(1)[0]
        self._host = host
        #: The database that is always there; see :meth:`database`.
        self.url = self._url("postgres")
        self._data = folder / "data"
        self._numbers = itertools.count(1)
        given = {
            "listen_addresses": host,
            "port": str(self.port),
            "unix_socket_directories": "",
            # Only a power cut could lose something.
            "fsync": "off",
            "full_page_writes": "off",
            **settings,
        }
        options = [argument for name, value in given.items() for argument in ("-c", f"{name}={value}")]
        super().__init__(
            [*prefix, str(server), "-D", str(self._data), *options],
            log=folder / "postgres.log",
            environment=_plain_environment(HOME=str(folder)),
            as_user=None if prefix else _ordinary_user(),
        )
        self._prefix = list(prefix)

    def _url(self, name: str) -> str:
        return f"postgresql://farcall@{self._host}:{self.port}/{name}"

    def initialise(self) -> None:
        """Make the cluster's files."""
        process = _popen(
            [
                *self._prefix,
                str(self._initdb),
                "-D",
                str(self._data),
                "-U",
                "farcall",
                "-A",
                "trust",
                "-N",
                "-E",
                "UTF8",
                "--locale=C",
            ],
            self._environment,
            self._as_user,
        )
        said, _ = process.communicate(timeout=START_TIMEOUT_S)
        if process.returncode:
            pytest.fail(f"initdb: {process.returncode}\n{said}")
        if self._host != "127.0.0.1":
            with (self._data / "pg_hba.conf").open("a") as rules:
                rules.write("host all all samenet trust\n")

    def database(self, like: str | None = None) -> str:
        """The URL of a new database: empty, or a copy of one to which nobody is connected."""
        import psycopg

        name = f"farcall_{next(self._numbers)}"
        template = like.rpartition("/")[2] if like is not None else "template1"
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'.encode())
        return self._url(name)

    def drop(self, url: str) -> None:
        """Remove a database that :meth:`database` made, whoever is still connected to it."""
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{url.rpartition("/")[2]}" WITH (FORCE)'.encode())

    def close(self) -> None:
        self.stop()
        self._remove_shared_memory()

    def _remove_shared_memory(self) -> None:
        """A killed server leaves a segment, which its successor on the same data would remove."""
        try:
            segment = (self._data / "postmaster.pid").read_text().splitlines()[6].split()[1]
        except (OSError, IndexError):
            return
        subprocess.run(["ipcrm", "-m", segment], check=False, capture_output=True)


def _ordinary_user() -> pwd.struct_passwd | None:
    """Who runs PostgreSQL, which refuses root; None = whoever runs the tests."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise AssertionError("this machine has neither a user postgres nor a user nobody")


@contextmanager
def private_postgres(
    folder: Path,
    *,
    prefix: Sequence[str] = (),
    settings: dict[str, str] | None = None,
    host: str = "127.0.0.1",
    start: bool = True,
) -> Iterator[PrivatePostgres]:
    """A PostgreSQL of one's own. ``settings`` are added to its configuration.

    ``host`` is the address on which it listens. Without ``start`` it is for the caller to start.

    A ``prefix`` must make an ordinary user of root, who may write into ``folder``.

    The files of a server that is started by root are in a folder of their own outside ``folder``, whose parents
    the server's user most likely may not enter; it is removed at the end.
    """
    with contextlib.ExitStack() as cleaning:
        user = None if prefix else _ordinary_user()
        if user is not None:
            folder = Path(cleaning.enter_context(tempfile.TemporaryDirectory(prefix="farcall-postgres-")))
            os.chown(folder, user.pw_uid, user.pw_gid)
        folder.mkdir(parents=True, exist_ok=True)
        server = PrivatePostgres(folder, prefix=prefix, settings=settings or {}, host=host)
        cleaning.callback(server.close)
        server.initialise()
        if start:
            server.start()
        yield server


_REASONS: dict[str, Callable[[], str | None]] = {"rabbitmq": _missing_rabbitmq, "postgres": _missing_postgres}
