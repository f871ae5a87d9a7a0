"""How fast a function comes back: latency, throughput, CPU and memory of the whole loop.

    python benchmarks/end_to_end.py                                   # starts a service and an endpoint of its own
    python benchmarks/end_to_end.py --setting embedded larger         # one after the other, and their ratio
    python benchmarks/end_to_end.py --service-url URL --endpoint ID   # measures one that runs (token: FARCALL_TOKEN)

The setting `larger` is `web` with two workers and one `collect` on a RabbitMQ and a PostgreSQL that are started for it,
with their data on this disk; both have to be installed.

Sequential round trips give the latency; bursts of no-ops, all submitted at once and all waited for, the throughput.
CPU is user and system time of this process and of every process below it (the broker, the service, the agent, the
engine and its workers), per task; with --service-url only this process can be seen. Figures depend on the machine:
compare runs of one machine, one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

# What starts services and servers for the tests starts them here too.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from running import RunningService, running_larger_service, running_service
from servers import private_postgres, private_rabbitmq

BIN = Path(sys.executable).parent
CONFIGURATION = """\
engine:
  max_workers_per_node: {workers}
  provider: {{type: local, init_blocks: 1, min_blocks: 1, max_blocks: 1}}
"""


def noop(x):
    return x


@dataclass
class Loop:
    """What is measured, and the processes of it that can be seen."""

    service_url: str
    token: str | None
    endpoint_id: str
    #: The service's processes by role, where we started them ourselves.
    roles: dict[str, list[int]] = field(default_factory=dict)
    agent_pid: int | None = None

    def processes(self) -> dict[str, list[psutil.Process]]:
        """By role: this one, and where we started them ourselves, all others, with what they have started."""
        found = {"client": [psutil.Process()]}
        counted = {pid for pids in self.roles.values() for pid in pids}
        for role, pids in self.roles.items():
            family = [child for pid in pids for child in psutil.Process(pid).children(recursive=True)]
            own = [child for child in family if child.pid not in counted]
            found[role] = [*map(psutil.Process, pids), *own]
        if self.agent_pid is not None:
            agent = psutil.Process(self.agent_pid)
            found["agent"] = [agent]
            for child in agent.children(recursive=True):
                role = "interchange" if "interchange" in " ".join(child.cmdline()) else "manager and workers"
                found.setdefault(role, []).append(child)
        return found


@contextmanager
def own_loop(setting: str, workers: int) -> Iterator[Loop]:
    """A service and an endpoint in a temporary home."""
    with (
        tempfile.TemporaryDirectory(prefix="farcall-benchmark-") as home,
        SETTINGS[setting](Path(home)) as (service, roles),
    ):
        directory = Path(home, "benchmark")

        def endpoint(*arguments: str) -> None:
            command = [BIN / "farcall-endpoint", *arguments]
            subprocess.run(command, env=service.environment, check=True, capture_output=True)

        endpoint("configure", "benchmark")
        (directory / "config.yaml").write_text(CONFIGURATION.format(workers=workers))
        endpoint("start", "benchmark")
        try:
            endpoint_id = json.loads((directory / "endpoint.json").read_text())["endpoint_id"]
            agent_pid = json.loads((directory / "agent.pid").read_text())["pid"]
            yield Loop(service.url, service.token, endpoint_id, roles, agent_pid)
        finally:
            endpoint("stop", "benchmark")


#: A service, and its processes by role; those that these start belong to them.
Started = tuple[RunningService, dict[str, list[int]]]


@contextmanager
def embedded(home: Path) -> Iterator[Started]:
    with running_service(home) as service:
        broker = [child.pid for child in psutil.Process(service.process.pid).children()]
        yield service, {"service": [service.process.pid], "broker": broker}


@contextmanager
def larger(home: Path) -> Iterator[Started]:
    """Several processes, whose servers write to the disk as they would for anybody."""
    durable = {"fsync": "on", "full_page_writes": "on"}
    with (
        private_rabbitmq(home / "rabbitmq") as rabbitmq,
        private_postgres(home / "postgres", settings=durable) as postgres,
        running_larger_service(
            home, database_url=postgres.database(), broker_url=rabbitmq.url, collectors=1
        ) as service,
    ):
        assert rabbitmq.process is not None and postgres.process is not None
        own = [service.process.pid, *(collector.pid for collector in service.collectors)]
        yield service, {"service": own, "broker": [rabbitmq.process.pid], "database": [postgres.process.pid]}


SETTINGS: dict[str, Callable[[Path], AbstractContextManager[Started]]] = {"embedded": embedded, "larger": larger}


class Meter:
    """CPU seconds and peak memory of a set of processes, by role."""

    def __init__(self, roles: dict[str, list[psutil.Process]]) -> None:
        self._roles = roles
        self.peak_mb: dict[str, float] = {}
        self._done = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()

    def cpu_s(self) -> dict[str, float]:
        return {role: sum(map(cpu_seconds, members)) for role, members in self._roles.items()}

    def stop(self) -> None:
        self._done.set()
        self._sampler.join()

    def _sample(self) -> None:
        while not self._done.wait(0.5):
            for role, members in self._roles.items():
                self.peak_mb[role] = max(self.peak_mb.get(role, 0.0), sum(map(resident_mb, members)))


def cpu_seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def resident_mb(process: psutil.Process) -> float:
    try:
        return float(process.memory_info().rss) / 1e6
    except psutil.Error:
        return 0.0


def percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def measure(loop: Loop, options: argparse.Namespace) -> dict[str, float]:
    """Print what one loop does, and return it by name."""
    from farcall import Client, Executor

    client = Client(service_url=loop.service_url, token=loop.token)
    with Executor(endpoint_id=loop.endpoint_id, client=client) as executor:
        for _ in range(50):
            executor.submit(noop, 0).result(timeout=120)
        wait([executor.submit(noop, i) for i in range(500)], timeout=120)
        meter = Meter(loop.processes())

        trips = [timed(lambda: executor.submit(noop, 0).result(timeout=120)) * 1e3 for _ in range(options.sequential)]
        figures = {"round trips, p50 ms": percentile(trips, 50)}
        print(
            f"{options.sequential} sequential round trips: "
            f"p50 {percentile(trips, 50):.1f} ms, p99 {percentile(trips, 99):.1f} ms"
        )

        for count in options.bursts:
            cpu_before = meter.cpu_s()
            began = time.perf_counter()
            futures = [executor.submit(noop, i) for i in range(count)]
            submitted = time.perf_counter() - began
            values = [future.result(timeout=600) for future in futures]
            elapsed = time.perf_counter() - began
            assert values == list(range(count)), "a result is wrong"
            figures[f"burst of {count:,}, tasks/s"] = count / elapsed
            cpu = {role: used - cpu_before[role] for role, used in meter.cpu_s().items()}
            shares = ", ".join(f"{role} {used / count * 1e6:.0f}" for role, used in cpu.items())
            print(
                f"burst of {count:,}: {count / elapsed:,.0f} tasks/s "
                f"({submitted:.2f} s to call submit, {elapsed:.2f} s in all); "
                f"CPU {sum(cpu.values()) / count * 1e6:.0f} us a task ({shares})"
            )
        meter.stop()
        print("peak memory: " + ", ".join(f"{role} {mb:.0f} MB" for role, mb in meter.peak_mb.items()))
    return figures


def compare(measured: dict[str, dict[str, float]]) -> None:
    first, *others = measured
    for other in others:
        for name, value in measured[other].items():
            print(f"{name}: {other} is {value / measured[first][name]:.2f} times {first}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--service-url", help="a running service; needs --endpoint")
    parser.add_argument("--endpoint", help="the id of an endpoint of that service")
    parser.add_argument("--workers", type=int, default=2, help="workers of the endpoint that is started (default 2)")
    parser.add_argument(
        "--setting",
        nargs="+",
        choices=SETTINGS,
        default=["embedded"],
        help="the service that is started (default embedded); several are compared with the first",
    )
    parser.add_argument("--sequential", type=int, default=300, help="round trips one after the other (default 300)")
    parser.add_argument("--bursts", type=int, nargs="*", default=[5000, 20000], help="tasks in each burst")
    options = parser.parse_args()
    if bool(options.service_url) != bool(options.endpoint):
        parser.error("--service-url and --endpoint go together")
    if options.service_url:
        measure(Loop(options.service_url, os.environ.get("FARCALL_TOKEN"), options.endpoint), options)
    else:
        measured = {}
        for setting in options.setting:
            print(f"-- {setting}")
            with own_loop(setting, options.workers) as loop:
                measured[setting] = measure(loop, options)
        compare(measured)


if __name__ == "__main__":
    main()
