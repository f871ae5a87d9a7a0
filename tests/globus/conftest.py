"""Everything of a whole installation, on an island: broker, service, endpoints, and users with either SDK."""

from __future__ import annotations

import json
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from islands import OURS, THEIRS, Island, island, missing_for_islands
from servers import PrivateRabbitMQ, needs, private_rabbitmq

PROGRAMS = Path(__file__).parent / "programs"
READY_TIMEOUT_S = 60
#: What unmodified programs are told, and nothing else.
GLOBUS = {
    "GLOBUS_SDK_ENVIRONMENT": "local",
    "GLOBUS_SDK_SERVICE_URL_AUTH": "http://localhost:5000/auth/",
    "PATH": f"{THEIRS}:/usr/local/bin:/usr/bin:/bin",
}


def missing_globus() -> str | None:
    if (THEIRS / "globus-compute-endpoint").exists():
        return None
    return "Globus Compute is not in .venv-globus (`make .venv-globus/installed` puts it there)"


@pytest.fixture(scope="session")
def isle() -> Iterator[Island]:
    """One island for all of these tests."""
    needs("globus", missing_globus)
    needs("netns", missing_for_islands)
    needs("rabbitmq")
    with island() as made:
        yield made


@pytest.fixture(scope="session")
def broker(isle: Island) -> Iterator[PrivateRabbitMQ]:
    with private_rabbitmq(isle.writable("rabbitmq"), prefix=isle.prefix) as running:
        yield running


@dataclass
class Service:
    """`farcall-webservice serve` where Globus's programs look for it: on port 5000 of loopback."""

    isle: Island
    arguments: list[str]
    process: subprocess.Popen[str] = field(init=False)

    @property
    def home(self) -> Path:
        return self.isle.home / ".farcall"

    @property
    def token(self) -> str:
        token: str = json.loads((self.home / "credentials.json").read_text())["token"]
        return token

    @property
    def log(self) -> Path:
        return self.home / "service" / "service.log"

    def start(self) -> None:
        command = [OURS / "farcall-webservice", "serve", *self.arguments]
        self.process = self.isle.start(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        line = line_of(self.process, READY_TIMEOUT_S)
        assert "ready at http://127.0.0.1:5000" in line, line

    def stop(self) -> None:
        self.isle.end(self.process, signal.SIGTERM)

    def command(self, *words: str) -> str:
        """Run `farcall-webservice` as its owner and return what it prints."""
        return self.isle.run(OURS / "farcall-webservice", *words).stdout


def line_of(process: subprocess.Popen[str], timeout_s: float) -> str:
    """The next line that a process writes, or what there is of it after so long."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        return process.stdout.readline() if selector.select(timeout_s) else ""


@pytest.fixture(scope="session")
def service(isle: Island, broker: PrivateRabbitMQ) -> Iterator[Service]:
    running = Service(isle, ["--broker-url", broker.url])
    running.start()
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def as_client(service: Service) -> dict[str, str]:
    """The environment of a user of Globus Compute: what they change, and nothing else."""
    lines = service.command("client", "create", "owner").split()
    client_id, secret = (line.partition("=")[2] for line in lines)
    return {**GLOBUS, "GLOBUS_COMPUTE_CLIENT_ID": client_id, "GLOBUS_COMPUTE_CLIENT_SECRET": secret}


@pytest.fixture(scope="session")
def our_endpoint(service: Service) -> Iterator[str]:
    """The id of an endpoint of ours."""
    isle = service.isle
    isle.run(OURS / "farcall-endpoint", "configure", "ours")
    (service.home / "ours" / "config.yaml").write_text(OUR_CONFIGURATION)
    isle.run(OURS / "farcall-endpoint", "start", "ours")
    try:
        yield json.loads((service.home / "ours" / "endpoint.json").read_text())["endpoint_id"]
    finally:
        isle.run(OURS / "farcall-endpoint", "stop", "ours", check=False)


OUR_CONFIGURATION = """\
heartbeat_period: 2
engine:
  max_workers_per_node: 2
  provider: {type: local, init_blocks: 1, min_blocks: 1, max_blocks: 1}
"""


@dataclass
class TheirEndpoint:
    """An endpoint of Globus Compute, driven by its own commands."""

    isle: Island
    environment: dict[str, str]
    name: str
    id: str = ""

    @property
    def directory(self) -> Path:
        return self.isle.home / ".globus_compute" / self.name

    def command(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        program = THEIRS / "globus-compute-endpoint"
        return self.isle.run(program, *words, env=self.environment, check=check, timeout_s=60)

    def start(self, *options: str) -> None:
        self.command("start", self.name, "--detach", *options)
        wait_until((self.directory / "endpoint.json").exists, f"{self.name} has registered")
        self.id = json.loads((self.directory / "endpoint.json").read_text())["endpoint_id"]

    def children(self) -> list[Path]:
        """The directories of its user endpoints."""
        return sorted(self.directory.parent.glob(f"uep.{self.id}.*"))

    def stop(self, *options: str) -> None:
        self.command("stop", self.name, *options, check=False)


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 45) -> None:
    """Look again and again until it is so: for what happens in programs that call nobody back."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"it did not come to pass that {what}"
        time.sleep(0.1)


@pytest.fixture(scope="session")
def new_endpoint(isle: Island, as_client: dict[str, str]) -> Callable[[str], TheirEndpoint]:
    """Makes an endpoint of Globus Compute by its name; configuring and starting it is the test's."""
    return lambda name: TheirEndpoint(isle, as_client, name)


@pytest.fixture(scope="session")
def their_endpoint_is_running() -> Callable[[TheirEndpoint, bool], None]:
    """Waits until an endpoint runs, or until it does not, going by what its own `list` says."""

    def wait(endpoint: TheirEndpoint, wanted: bool) -> None:
        def is_so() -> bool:
            rows = [line for line in endpoint.command("list").stdout.splitlines() if f" {endpoint.name} " in line]
            return any("Running" in row for row in rows) == wanted

        wait_until(is_so, f"{endpoint.name} is {'running' if wanted else 'stopped'}")

    return wait


@pytest.fixture(scope="session")
def their_endpoint(new_endpoint: Callable[[str], TheirEndpoint]) -> Iterator[str]:
    """The id of an unmodified endpoint with the files that `configure` writes."""
    running = new_endpoint("theirs")
    running.command("configure", "theirs")
    running.start()
    try:
        yield running.id
    finally:
        running.stop()


class Session:
    """A program that runs flows with one SDK."""

    def __init__(self, isle: Island, sdk: str, environment: dict[str, str]) -> None:
        self._isle = isle
        self._python = (OURS if sdk == "farcall" else THEIRS) / "python"
        self._environment = {**environment, "FLOWS_SDK": sdk}
        self._process: subprocess.Popen[str] | None = None

    def run(self, flow: str, endpoint_id: str, timeout_s: int = 90) -> None:
        """Run one flow; raises what it says if it fails."""
        process = self._started()
        assert process.stdin is not None
        process.stdin.write(json.dumps({"flow": flow, "endpoint_id": endpoint_id, "timeout_s": timeout_s}) + "\n")
        process.stdin.flush()
        answer = line_of(process, timeout_s + 10)
        if not answer:
            self.end()
            pytest.fail(f"{flow}: no answer after {timeout_s} s")
        failure = json.loads(answer)["failure"]
        if failure:
            pytest.fail(f"{flow}:\n{failure}", pytrace=False)

    def end(self) -> None:
        if self._process is not None:
            self._isle.end(self._process, signal.SIGKILL)
            self._process = None

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._process = self._isle.start(
                self._python,
                PROGRAMS / "session.py",
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        return self._process


@pytest.fixture(scope="session")
def sessions(service: Service, as_client: dict[str, str]) -> Iterator[dict[str, Session]]:
    """By the name of the SDK."""
    made = {
        "farcall": Session(service.isle, "farcall", {}),
        "globus": Session(service.isle, "globus", as_client),
        "globus with a token": Session(service.isle, "globus", {"FLOWS_TOKEN": service.token}),
    }
    try:
        yield made
    finally:
        for session in made.values():
            session.end()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A failure shows what service and endpoints have to say."""
    report = yield
    isle = getattr(item, "funcargs", {}).get("isle")
    if report.failed and isle is not None:
        for log in sorted([*isle.home.glob(".farcall/**/*.log"), *isle.home.glob(".globus_compute/**/*.log")]):
            lines = log.read_text(errors="replace").splitlines()[-40:]
            report.sections.append((str(log.relative_to(isle.home)), "\n".join(lines)))
    return report
