"""Everything of a whole installation, on an island: broker, service, endpoints, and users with either SDK."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from island_services import LargerService, Service, line_of, wait_until
from islands import OURS, THEIRS, Island, island, missing_for_islands
from servers import PrivateRabbitMQ, needs, private_postgres, private_rabbitmq

PROGRAMS = Path(__file__).parent / "programs"
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
    folder = isle.writable("rabbitmq")
    with private_rabbitmq(folder, prefix=isle.prefix) as running:
        yield running


@pytest.fixture(scope="session")
def service(request: pytest.FixtureRequest, isle: Island, broker: PrivateRabbitMQ) -> Iterator[Service]:
    """In one process; in several if that is its parameter, ``larger``."""
    with contextlib.ExitStack() as stack:
        if getattr(request, "param", "") == "larger":
            needs("postgres")
            database = stack.enter_context(private_postgres(isle.writable("postgres"), prefix=isle.prefix))
            running: Service = LargerService(
                isle,
                {
                    "FARCALL_DATABASE_URL": database.url,
                    "FARCALL_BROKER_URL": broker.vhost("larger"),
                    "FARCALL_BROKER_ADMIN_URL": broker.management_url,
                },
            )
        else:
            running = Service(isle, {"FARCALL_BROKER_URL": broker.url})
        stack.callback(running.stop)
        running.start()
        yield running


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


@pytest.fixture(scope="session")
def new_endpoint(isle: Island, as_client: dict[str, str]) -> Callable[[str], TheirEndpoint]:
    """Makes an endpoint of Globus Compute by its name; configuring and starting it is the test's."""
    return lambda name: TheirEndpoint(isle, as_client, name)


@pytest.fixture(scope="session")
def new_lively_endpoint(new_endpoint: Callable[[str], TheirEndpoint]) -> Callable[[str], TheirEndpoint]:
    """Starts one whose children start quickly, say often that they live, and end when they have nothing to do."""

    def start(name: str) -> TheirEndpoint:
        endpoint = new_endpoint(name)
        endpoint.command("configure", name)
        (endpoint.directory / "user_config_template.yaml.j2").write_text(LIVELY_TEMPLATE)
        (endpoint.directory / "user_config_schema.json").write_text(json.dumps(LIVELY_SCHEMA))
        (endpoint.directory / "config.yaml").write_text("display_name: A lively one\nheartbeat_period: 5\n")
        endpoint.start()
        return endpoint

    return start


LIVELY_TEMPLATE = """\
endpoint_setup: ""
engine:
  type: {{ engine|default("ThreadPoolEngine") }}
  max_workers: {{ workers|default(2) }}
heartbeat_period: 5
idle_heartbeats_soft: 1
"""
LIVELY_SCHEMA = {"type": "object", "properties": {"workers": {"type": "integer"}, "engine": {"type": "string"}}}


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
        patterns = ("larger.log", "home/.farcall/**/*.log", "home/.globus_compute/**/*.log")
        for log in sorted(log for pattern in patterns for log in isle.folder.glob(pattern)):
            lines = log.read_text(errors="replace").splitlines()[-40:]
            report.sections.append((str(log.relative_to(isle.folder)), "\n".join(lines)))
    return report
