"""A real service and a real endpoint, started as a user starts them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
#: Much more than it takes, but tests run beside others.
READY_TIMEOUT_S = STOP_TIMEOUT_S = 90


@dataclass
class RunningService:
    """A service, as a user starts it, and what a client of its first user needs."""

    home: Path
    #: `farcall-webservice serve`; in the larger setting `farcall-webservice web`.
    process: subprocess.Popen[str]
    url: str
    token: str
    environment: dict[str, str] = field(repr=False)
    #: `farcall-webservice collect`, in the larger setting.
    collectors: list[subprocess.Popen[str]] = field(default_factory=list)

    def stop(self, with_signal: int = signal.SIGTERM) -> int:
        self.process.send_signal(with_signal)
        return self.process.wait(timeout=STOP_TIMEOUT_S)


def environment_for(home: Path, **extra: str) -> dict[str, str]:
    """This process's environment without anything that would lead to another service."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FARCALL_", "FUNCX_", "GLOBUS_"))}
    return {**kept, "FARCALL_HOME": str(home), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **extra}


@contextmanager
def running_service(home: Path, port: int = 0, **extra: str) -> Iterator[RunningService]:
    """Start a service on ``home``; ``extra`` goes into its environment. Stopped at the end of the block."""
    environment = environment_for(home, **extra)
    process = subprocess.Popen(
        [BIN / "farcall-webservice", "serve", "--port", str(port)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if "ready at " not in (line := _first_line(process)):
        process.kill()
        pytest.fail(f"the service did not become ready: {line}{process.communicate()[1]}")
    credentials = json.loads((home / "credentials.json").read_text())
    service = RunningService(home, process, credentials["service_url"], credentials["token"], environment)
    try:
        yield service
    finally:
        if process.poll() is None:
            service.stop()
        process.communicate()


def _first_line(process: subprocess.Popen[str]) -> str:
    watchdog = threading.Timer(READY_TIMEOUT_S, process.kill)
    watchdog.start()
    assert process.stdout is not None
    line = process.stdout.readline()
    watchdog.cancel()
    return line


@contextmanager
def running_part(
    home: Path, environment: dict[str, str], *arguments: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A `farcall-webservice ...` that is ready, and the line in which it said so. It logs into ``home``."""
    with (home / f"{arguments[0]}.log").open("a") as log:
        process = subprocess.Popen(
            [BIN / "farcall-webservice", *arguments], env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        )
    if "ready" not in (line := _first_line(process)):
        process.kill()
        process.communicate()
        pytest.fail(f"{arguments[0]} did not become ready: {line}{Path(log.name).read_text()}")
    try:
        yield process, line
    finally:
        process.terminate()
        process.communicate(timeout=STOP_TIMEOUT_S)


@contextmanager
def running_larger_service(
    home: Path,
    *,
    database_url: str,
    broker_url: str,
    port: int = 0,
    workers: int = 2,
    collectors: int = 2,
    **extra: str,
) -> Iterator[RunningService]:
    """The larger setting: `web` with workers and several `collect`, on an empty database and a virtual host."""
    environment = environment_for(
        home,
        FARCALL_DATABASE_URL=database_url,
        FARCALL_BROKER_URL=broker_url,
        FARCALL_WORKERS=str(workers),
        FARCALL_PORT=str(port),
        **extra,
    )

    def command(*arguments: str) -> str:
        done = subprocess.run(
            [BIN / "farcall-webservice", *arguments], env=environment, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    command("db", "upgrade")
    command("user", "add", "owner")
    token = command("token", "create", "owner")
    with ExitStack() as running:
        process, line = running.enter_context(running_part(home, environment, "web"))
        url = line.split()[4]
        environment |= {"FARCALL_SERVICE_URL": url, "FARCALL_TOKEN": token}
        service = RunningService(home, process, url, token, environment)
        for _ in range(collectors):
            service.collectors.append(running.enter_context(running_part(home, environment, "collect"))[0])
        yield service


@dataclass
class RunningEndpoint:
    """An endpoint that was started with `farcall-endpoint start`."""

    id: str
    name: str
    home: Path
    run: Callable[..., subprocess.CompletedProcess[str]]

    @property
    def directory(self) -> Path:
        return self.home / self.name


def endpoint_command(home: Path, environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`farcall-endpoint ...` on this home; fails the test on an exit code other than 0 unless ``check=False``."""

    def run(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [BIN / "farcall-endpoint", *arguments],
            check=False,
            env=environment,
            capture_output=True,
            text=True,
            timeout=READY_TIMEOUT_S,
        )
        if check and done.returncode:
            pytest.fail(f"farcall-endpoint {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    return run


CONFIGURATION = """\
heartbeat_period: 2
engine:
  max_workers_per_node: 2
  job_status_kwargs: {max_idletime: 300, strategy_period: 1}
  provider: {type: local, init_blocks: 1, min_blocks: 1, max_blocks: 1}
"""


@contextmanager
def running_endpoint(
    service: RunningService, name: str = "default", configuration: str = CONFIGURATION
) -> Iterator[RunningEndpoint]:
    """Configure and start an endpoint of ``service``'s owner, on the same home. Stopped at the end of the block."""
    run = endpoint_command(service.home, service.environment)
    directory = service.home / name
    if not directory.exists():
        run("configure", name)
        (directory / "config.yaml").write_text(configuration)
    run("start", name)
    endpoint_id = json.loads((directory / "endpoint.json").read_text())["endpoint_id"]
    try:
        yield RunningEndpoint(endpoint_id, name, service.home, run)
    finally:
        run("stop", name)
