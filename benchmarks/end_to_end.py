"""How fast a function comes back: latency, throughput, CPU and memory of the whole loop.

    python benchmarks/end_to_end.py                                   # starts a service and an endpoint of its own
    python benchmarks/end_to_end.py --service-url URL --endpoint ID   # measures one that runs (token: FARCALL_TOKEN)

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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

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
    service_pid: int | None = None
    agent_pid: int | None = None

    def processes(self) -> dict[str, list[psutil.Process]]:
        """By role: this one, and where we started them ourselves, all others."""
        found = {"client": [psutil.Process()]}
        if self.service_pid is not None and self.agent_pid is not None:
            service, agent = psutil.Process(self.service_pid), psutil.Process(self.agent_pid)
            found |= {"service": [service], "broker": service.children(recursive=True), "agent": [agent]}
            for child in agent.children(recursive=True):
                role = "interchange" if "interchange" in " ".join(child.cmdline()) else "manager and workers"
                found.setdefault(role, []).append(child)
        return found


@contextmanager
def own_loop(workers: int) -> Iterator[Loop]:
    """A service and an endpoint in a temporary home."""
    with tempfile.TemporaryDirectory(prefix="farcall-benchmark-") as home:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FARCALL_")}
        environment |= {"FARCALL_HOME": home, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
        directory = Path(home, "benchmark")

        def endpoint(*arguments: str) -> None:
            subprocess.run([BIN / "farcall-endpoint", *arguments], env=environment, check=True, capture_output=True)

        service = subprocess.Popen(
            [BIN / "farcall-webservice", "serve", "--port", "0"], env=environment, stdout=subprocess.PIPE, text=True
        )
        try:
            assert service.stdout is not None
            service.stdout.readline()
            endpoint("configure", "benchmark")
            (directory / "config.yaml").write_text(CONFIGURATION.format(workers=workers))
            endpoint("start", "benchmark")
            try:
                credentials = json.loads(Path(home, "credentials.json").read_text())
                endpoint_id = json.loads((directory / "endpoint.json").read_text())["endpoint_id"]
                agent_pid = json.loads((directory / "agent.pid").read_text())["pid"]
                yield Loop(credentials["service_url"], credentials["token"], endpoint_id, service.pid, agent_pid)
            finally:
                endpoint("stop", "benchmark")
        finally:
            service.terminate()
            service.wait(timeout=30)


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


def measure(loop: Loop, options: argparse.Namespace) -> None:
    from farcall import Client, Executor

    client = Client(service_url=loop.service_url, token=loop.token)
    with Executor(endpoint_id=loop.endpoint_id, client=client) as executor:
        for _ in range(50):
            executor.submit(noop, 0).result(timeout=120)
        wait([executor.submit(noop, i) for i in range(500)], timeout=120)
        meter = Meter(loop.processes())

        trips = [timed(lambda: executor.submit(noop, 0).result(timeout=120)) * 1e3 for _ in range(options.sequential)]
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
            cpu = {role: used - cpu_before[role] for role, used in meter.cpu_s().items()}
            shares = ", ".join(f"{role} {used / count * 1e6:.0f}" for role, used in cpu.items())
            print(
                f"burst of {count:,}: {count / elapsed:,.0f} tasks/s "
                f"({submitted:.2f} s to call submit, {elapsed:.2f} s in all); "
                f"CPU {sum(cpu.values()) / count * 1e6:.0f} us a task ({shares})"
            )
        meter.stop()
        print("peak memory: " + ", ".join(f"{role} {mb:.0f} MB" for role, mb in meter.peak_mb.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--service-url", help="a running service; needs --endpoint")
    parser.add_argument("--endpoint", help="the id of an endpoint of that service")
    parser.add_argument("--workers", type=int, default=2, help="workers of the endpoint that is started (default 2)")
    parser.add_argument("--sequential", type=int, default=300, help="round trips one after the other (default 300)")
    parser.add_argument("--bursts", type=int, nargs="*", default=[5000, 20000], help="tasks in each burst")
    options = parser.parse_args()
    if bool(options.service_url) != bool(options.endpoint):
        parser.error("--service-url and --endpoint go together")
    if options.service_url:
        measure(Loop(options.service_url, os.environ.get("FARCALL_TOKEN"), options.endpoint), options)
    else:
        with own_loop(options.workers) as loop:
            measure(loop, options)


if __name__ == "__main__":
    main()
