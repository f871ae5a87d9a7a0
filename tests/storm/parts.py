"""Processes that are started again when they end, as systemd does with ``Restart=always``."""

from __future__ import annotations

import logging
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil
import pytest
from tests.servers import PrivatePostgres, PrivateRabbitMQ

log = logging.getLogger(__name__)

#: As systemd's RestartSec would be set.
PAUSE_S = 1.0
READY_TIMEOUT_S = 120
STOP_TIMEOUT_S = 60


class Part:
    """A command on a host. What it writes goes into ``log``."""

    def __init__(
        self, name: str, command: Sequence[str | Path], *, environment: Mapping[str, str], log: Path, ready: str
    ) -> None:
        self.name = name
        self.log = log
        self._command = [str(word) for word in command]
        self._environment = dict(environment)
        self._ready = ready
        self._process: subprocess.Popen[str] | None = None
        self._stopping = threading.Event()
        self._pause_s = PAUSE_S
        self._thread = threading.Thread(target=self._keep_running, name=f"init-{name}", daemon=True)
        #: Exit codes of its ends, in order.
        self.ends: list[int] = []
        #: To be done when it has ended, before it is started again.
        self.before_start: Callable[[], None] | None = None

    @property
    def process(self) -> psutil.Process | None:
        """None while it does not run."""
        started = self._process
        if started is None or started.poll() is not None:
            return None
        try:
            return psutil.Process(started.pid)
        except psutil.NoSuchProcess:
            return None

    def start(self) -> None:
        """Start it and wait until it says that it is ready."""
        self._thread.start()
        waiting = threading.Event()
        for _ in range(READY_TIMEOUT_S * 10):
            if self.log.exists() and self._ready in self.log.read_text(errors="replace"):
                return
            waiting.wait(0.1)
        raise TimeoutError(f"{self.name} did not become ready; its log:\n{self.log.read_text()[-4000:]}")

    def kill(self, *, away_s: float = PAUSE_S) -> None:
        """kill -9, and start it again after so long."""
        self._pause_s = away_s
        if (process := self.process) is not None:
            process.kill()

    def stop(self) -> bool:
        """End it in order. Returns whether it did so when asked."""
        self._stopping.set()
        process = self.process
        in_order = True
        if process is not None:
            process.send_signal(self._stop_signal)
            try:
                process.wait(STOP_TIMEOUT_S)
            except psutil.TimeoutExpired:
                in_order = False
                process.kill()
        if self._thread.is_alive():
            self._thread.join(STOP_TIMEOUT_S)
        return in_order

    _stop_signal = signal.SIGTERM

    def _keep_running(self) -> None:
        while not self._stopping.is_set():
            try:
                process = self._launch()
            # What cannot be started, on a full disk for example, is started later.
            except (OSError, pytest.fail.Exception) as error:
                log.info("%s cannot be started: %s", self.name, str(error).splitlines()[0])
                self._stopping.wait(PAUSE_S)
                continue
            self._process = process
            code = process.wait()
            self.ends.append(code)
            pause_s, self._pause_s = self._pause_s, PAUSE_S
            log.info("%s ended with code %d", self.name, code)
            self._stopping.wait(pause_s)
            if self.before_start is not None and not self._stopping.is_set():
                self.before_start()
                self.before_start = None

    def _launch(self) -> subprocess.Popen[str]:
        with self.log.open("a") as output:
            return subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )


class ServerPart(Part):
    """A RabbitMQ or PostgreSQL."""

    def __init__(self, name: str, server: PrivateRabbitMQ | PrivatePostgres) -> None:
        super().__init__(name, [], environment={}, log=server.log, ready=server.ready_text)
        self.server = server
        self._stop_signal = server.stop_signal

    def _launch(self) -> subprocess.Popen[str]:
        self.server.start()
        assert self.server.process is not None
        return self.server.process
