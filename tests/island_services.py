"""A service on an island, in either setting, where Globus's programs look for one: on port 5000 of loopback."""

from __future__ import annotations

import contextlib
import json
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from islands import OURS, Island

READY_TIMEOUT_S = 120
COMMAND = OURS / "farcall-webservice"


class Service:
    """`farcall-webservice serve`."""

    def __init__(self, isle: Island, settings: Mapping[str, str]) -> None:
        self.isle = isle
        #: Variables of the service, for every process of it.
        self.settings = dict(settings)
        self._processes: list[subprocess.Popen[str]] = []

    @property
    def home(self) -> Path:
        return self.isle.home / ".farcall"

    @property
    def token(self) -> str:
        """The first user's."""
        token: str = json.loads((self.home / "credentials.json").read_text())["token"]
        return token

    @property
    def log(self) -> Path:
        return self.home / "service" / "service.log"

    def start(self) -> None:
        line = self._start("serve", stderr=subprocess.STDOUT)
        assert "ready at http://127.0.0.1:5000" in line, line

    def stop(self) -> None:
        with contextlib.ExitStack() as ending:
            for process in self._processes:
                ending.callback(self.isle.end, process, signal.SIGTERM)
            self._processes = []

    def command(self, *words: str) -> str:
        """Run `farcall-webservice` as its owner and return what it prints."""
        return self.isle.run(COMMAND, *words, env=self.settings).stdout

    def _start(self, *words: str, **popen: Any) -> str:
        """Start a process of the service; the first line that it writes."""
        process = self.isle.start(COMMAND, *words, env=self.settings, stdout=subprocess.PIPE, **popen)
        self._processes.append(process)
        return line_of(process, READY_TIMEOUT_S)


class LargerService(Service):
    """`farcall-webservice web` with two workers, and two `collect`, on an empty database."""

    def start(self) -> None:
        self.command("db", "upgrade")
        self.command("user", "add", "owner")
        with self.log.open("a") as log:
            for words in (("web", "--workers", "2"), ("collect",), ("collect",)):
                line = self._start(*words, stderr=log)
                assert "Farcall is ready" in line, line

    @cached_property
    def token(self) -> str:
        return self.command("token", "create", "owner").strip()

    @property
    def log(self) -> Path:
        return self.isle.folder / "larger.log"


def line_of(process: subprocess.Popen[str], timeout_s: float) -> str:
    """The next line that a process writes, or what there is of it after so long."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        return process.stdout.readline() if selector.select(timeout_s) else ""


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 90) -> None:
    """Look again and again until it is so: for what happens in programs that call nobody back."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"it did not come to pass that {what}"
        time.sleep(0.1)
