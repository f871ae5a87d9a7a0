"""What the service bears: a million tasks that wait, hundreds of executors at once, a thousand endpoints.

    python benchmarks/load.py --part queue --setting embedded larger        # minutes
    python benchmarks/load.py --part executors endpoints --setting embedded

`queue` submits `--tasks` tasks to an endpoint that is stopped, starts it, and waits for all results, while another
process asks the routes that lists and displays use. `executors` lets 300 executors of 3 processes work at once.
`endpoints` lets 1,000 endpoints that are only simulated take tasks and send heartbeats beside a real one.

Figures depend on the machine: what counts is how they change within one run, and CPU time more than time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import urllib3
from end_to_end import BIN, SETTINGS, cpu_seconds

from farcall import Client, Executor
from farcall.wire import pack_buffers

# What starts services and servers for the tests starts them here too.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from crowds import SimulatedEndpoints, executors_at_once
from running import RunningService

CONFIGURATION = """\
heartbeat_period: 10
engine:
  max_workers_per_node: 2
  provider: {type: local, init_blocks: 1, min_blocks: 1, max_blocks: 1}
"""
TASKS_PER_REQUEST = 2000
RESULTS_PER_REQUEST = 1000
#: The last hundred thousand submits take no more than so much longer than the first.
SUBMIT_RATIO = 1.25
#: The routes must answer in this time; on a machine too busy for that, in so many times what this route takes at most.
ROUTE_MS, MEASURE, SLOWER = 100.0, "GET /v2/limits", 1.5


def twice(x):
    return 2 * x


# -- what is measured --------------------------------------------------------------------------------------------------


class Processes:
    """CPU time and memory by role: those that were started, and what these have started."""

    def __init__(self, roots: dict[str, list[int]]) -> None:
        self.roots = dict(roots)
        self.peak_mb: dict[str, float] = defaultdict(float)
        self.now_mb: dict[str, float] = {}
        self.highest_mb: dict[str, float] = defaultdict(float)
        self._done = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()

    def members(self) -> dict[str, list[psutil.Process]]:
        counted = {pid for pids in self.roots.values() for pid in pids}
        found: dict[str, list[psutil.Process]] = {}
        for role, pids in list(self.roots.items()):
            own = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
            children = [child for process in own for child in process.children(recursive=True)]
            found[role] = own + [child for child in children if child.pid not in counted]
        return found

    def cpu_s(self) -> dict[str, float]:
        return {role: sum(map(cpu_seconds, members)) for role, members in self.members().items()}

    def stop(self) -> None:
        self._done.set()
        self._sampler.join()

    def _sample(self) -> None:
        while not self._done.wait(2.0):
            self.sample()

    def sample(self) -> None:
        for role, members in self.members().items():
            self.now_mb[role] = sum(_status_mb(process.pid, "smaps_rollup", "Pss:") for process in members)
            self.peak_mb[role] = max(self.peak_mb[role], self.now_mb[role])
            highest = max((_status_mb(process.pid, "status", "VmHWM:") for process in members), default=0.0)
            self.highest_mb[role] = max(self.highest_mb[role], highest)


def _status_mb(pid: int, file: str, name: str) -> float:
    try:
        lines = Path("/proc", str(pid), file).read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1000 for line in lines if line.startswith(name)), 0.0)


class Prober:
    """Asks the routes in turn, in a process of its own, and remembers how long each answer took."""

    def __init__(self, service: RunningService, routes: dict[str, str], *, pause_s: float = 0.05) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_probe, args=(service.url, service.token, routes, pause_s, theirs))
        self._process.start()

    def phase(self, name: str) -> None:
        """What is asked from now on counts for this phase."""
        self._pipe.send(name)

    def stop(self) -> dict[tuple[str, str], list[float]]:
        """Milliseconds by phase and route."""
        self._pipe.send(None)
        times: dict[tuple[str, str], list[float]] = self._pipe.recv()
        self._process.join()
        return times


def _probe(url: str, token: str, routes: dict[str, str], pause_s: float, pipe: Connection) -> None:
    http = urllib3.PoolManager(headers={"Authorization": f"Bearer {token}"})
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    phase: str | None = "start"
    while True:
        for name, path in routes.items():
            if pipe.poll(pause_s):
                phase = pipe.recv()
                if phase is None:
                    pipe.send(dict(times))
                    return
            began = time.perf_counter()
            answer = http.request("GET", url + path)
            times[phase, name].append((time.perf_counter() - began) * 1e3)
            assert answer.status == 200, (path, answer.status, answer.data[:500])


def print_latencies(times: dict[tuple[str, str], list[float]], phases: list[str]) -> bool:
    """Print them; whether all were quick enough, or hardly slower than what reads nothing that grows."""
    quick = True
    print(f"{'':14}{'route':34}{'asked':>7}{'p50 ms':>9}{'p99 ms':>9}{'most':>9}")
    for phase in phases:
        for (of, name), values in times.items():
            if of == phase and len(values) > 1:
                p99 = statistics.quantiles(values, n=100, method="inclusive")[98]
                measure = times.get((phase, MEASURE), [0.0])
                slow = "" if p99 < max(ROUTE_MS, SLOWER * max(measure)) else "  SLOW"
                quick = quick and not slow
                print(
                    f"{phase:14}{name:34}{len(values):7}{statistics.median(values):9.1f}{p99:9.1f}{max(values):9.1f}{slow}"
                )
    return quick


def print_memory(processes: Processes) -> None:
    processes.sample()
    print(f"{'memory, MB':14}{'peak':>9}{'at the end':>12}{'largest process':>17}")
    for role, peak in processes.peak_mb.items():
        print(f"{role:14}{peak:9.0f}{processes.now_mb[role]:12.0f}{processes.highest_mb[role]:17.0f}")


def print_cpu(what: str, before: dict[str, float], after: dict[str, float], count: int) -> float:
    used = {role: (seconds - before.get(role, 0.0)) / count * 1e6 for role, seconds in after.items()}
    print(f"CPU of {what}, us a task: " + ", ".join(f"{role} {us:.0f}" for role, us in used.items() if us >= 0.5))
    return sum(used.values())


# -- a service and an endpoint -----------------------------------------------------------------------------------------


@dataclass
class Place:
    """A service with an endpoint, which is stopped at first."""

    service: RunningService
    client: Client
    roots: dict[str, list[int]]
    endpoint_id: str
    directory: Path

    def endpoint(self, *arguments: str) -> None:
        command = [BIN / "farcall-endpoint", *arguments]
        subprocess.run(command, env=self.service.environment, check=True, capture_output=True)

    def agent_pid(self) -> int:
        return int(json.loads((self.directory / "agent.pid").read_text())["pid"])


@contextmanager
def place(setting: str) -> Iterator[Place]:
    with (
        tempfile.TemporaryDirectory(prefix="farcall-load-") as home,
        SETTINGS[setting](Path(home)) as (service, roots),
    ):
        made = Place(service, Client(service_url=service.url, token=service.token), roots, "", Path(home, "real"))
        made.endpoint("configure", "real")
        (made.directory / "config.yaml").write_text(CONFIGURATION)
        made.endpoint("start", "real")
        made.endpoint_id = json.loads((made.directory / "endpoint.json").read_text())["endpoint_id"]
        made.endpoint("stop", "real")
        try:
            yield made
        finally:
            made.endpoint("stop", "real")


def disk_mb(home: Path) -> str:
    sizes = {path.name: path.stat().st_size / 1e6 for path in home.glob("**/*.sqlite*") if path.exists()}
    return ", ".join(f"{name} {size:.0f} MB" for name, size in sorted(sizes.items()) if size >= 1)


# -- the parts ---------------------------------------------------------------------------------------------------------


class Queue:
    """A million tasks for an endpoint that is offline; then it comes."""

    def __init__(self, here: Place, options: argparse.Namespace) -> None:
        self.here, self.count, self.pause_s = here, options.tasks, options.wait
        self.client = here.client
        self.function_id = self.client.register_function(twice)
        self.tenth = max(TASKS_PER_REQUEST, self.count // 10 // TASKS_PER_REQUEST * TASKS_PER_REQUEST)
        self.processes = Processes(here.roots)
        self.prober: Prober

    def run(self) -> bool:
        group_id, ratio = self.submit()
        self.prober.phase("waiting")
        time.sleep(self.pause_s)
        print(f"on disk: {disk_mb(self.here.service.home)}")
        print_memory(self.processes)
        self.prober.phase("draining")
        cpu, began = self.processes.cpu_s(), time.perf_counter()
        self.here.endpoint("start", "real")
        self.processes.roots["agent"] = [self.here.agent_pid()]
        self.drain(group_id)
        elapsed = time.perf_counter() - began
        print(f"drained {self.count:,} in {elapsed:.0f} s: {self.count / elapsed:,.0f} tasks/s")
        print_cpu("draining", cpu, self.processes.cpu_s(), self.count)
        self.prober.phase("drained")
        time.sleep(min(5.0, self.pause_s))
        quick = print_latencies(self.prober.stop(), ["submitting", "waiting", "draining", "drained"])
        print_memory(self.processes)
        self.processes.stop()
        return quick and ratio < SUBMIT_RATIO

    def submit(self) -> tuple[str, float]:
        """Submit all. Their group, and the CPU time of a task among the last by that of one among the first."""
        path, group_id = f"/v3/endpoints/{self.here.endpoint_id}/submit", None
        rates: list[tuple[float, float]] = []
        cpu, began = self.processes.cpu_s(), time.perf_counter()
        for first in range(0, self.count, TASKS_PER_REQUEST):
            values = range(first, min(first + TASKS_PER_REQUEST, self.count))
            body = {"tasks": {self.function_id: self.payloads(values)}}
            answer = self.client.transport.post(path, body | ({"task_group_id": group_id} if group_id else {}))
            if group_id is None:
                group_id = answer["task_group_id"]
                self.prober = self.probe(group_id, answer["tasks"][self.function_id][0])
            if values.stop % self.tenth == 0:
                now, used = time.perf_counter(), self.processes.cpu_s()
                cpu_us = print_cpu(f"submitting up to {values.stop:,}", cpu, used, self.tenth)
                rates.append((self.tenth / (now - began), cpu_us))
                print(f"  {self.tenth / (now - began):,.0f} tasks/s", flush=True)
                cpu, began = used, now
        assert group_id is not None
        ratio = rates[-1][1] / rates[0][1]
        print(
            f"the last {self.tenth:,} submits against the first: rate {rates[-1][0] / rates[0][0]:.2f}, "
            f"CPU a task {ratio:.2f}"
        )
        return group_id, ratio

    def payloads(self, values: range) -> list[str]:
        write = self.client.serializer.serialize_data
        no_keywords = write({})
        return [pack_buffers((write((value,)), no_keywords)) for value in values]

    def probe(self, group_id: str, task_id: str) -> Prober:
        routes = {
            MEASURE: "/v2/limits",
            "GET /v2/tasks": "/v2/tasks?limit=100",
            "GET /v2/tasks?state=running": "/v2/tasks?limit=100&state=running",
            "GET /v2/tasks/{id}": f"/v2/tasks/{task_id}",
            "GET /v2/endpoints/{id}/status": f"/v2/endpoints/{self.here.endpoint_id}/status",
            "GET /v2/taskgroup/{id}/results": f"/v2/taskgroup/{group_id}/results?limit=100",
        }
        prober = Prober(self.here.service, routes)
        prober.phase("submitting")
        return prober

    def drain(self, group_id: str) -> None:
        """Wait for all results, each of which has to be right, and to come once."""
        missing = bytearray(b"\1" * self.count)
        cursor, taken, to_say, said_at = 0, 0, self.tenth, time.perf_counter()
        while taken < self.count:
            answer = self.client.transport.get(
                f"/v2/taskgroup/{group_id}/results", params={"after": cursor, "limit": RESULTS_PER_REQUEST, "wait": 20}
            )
            for document in answer["results"]:
                value = self.client.serializer.deserialize(document["result"])
                assert value % 2 == 0 and missing[value // 2], f"a result is wrong or came twice: {document}"
                missing[value // 2] = 0
            cursor, taken = answer["cursor"], taken + len(answer["results"])
            if taken >= to_say:
                now = time.perf_counter()
                rate = (taken - to_say + self.tenth) / (now - said_at)
                print(f"  drained {taken:,}: {rate:,.0f} tasks/s; {disk_mb(self.here.service.home)}", flush=True)
                to_say, said_at = taken + self.tenth, now
        assert not any(missing), "a result did not come"


def queue(setting: str, options: argparse.Namespace) -> bool:
    with place(setting) as here:
        return Queue(here, options).run()


def executors(setting: str, options: argparse.Namespace) -> bool:
    """Hundreds of executors at once, in three processes."""
    with place(setting) as here:
        here.endpoint("start", "real")
        processes = Processes({**here.roots, "agent": [here.agent_pid()]})
        each = options.executors // 3
        for tasks in (1, options.tasks_each):
            cpu = processes.cpu_s()
            seconds = executors_at_once(
                here.service.environment, here.endpoint_id, processes=3, executors=each, tasks=tasks
            )
            print(
                f"{3 * each} executors of 3 processes with {tasks} tasks each: all results right; the processes took "
                + ", ".join(f"{one:.1f} s" for one in seconds)
            )
            print_cpu("that", cpu, processes.cpu_s(), 3 * each * tasks)
        print_memory(processes)
        processes.stop()
    return True


def endpoints(setting: str, options: argparse.Namespace) -> bool:
    """A thousand simulated endpoints beside a real one."""
    with place(setting) as here:
        here.endpoint("start", "real")
        processes = Processes({**here.roots, "agent": [here.agent_pid()]})
        client = here.client
        with Executor(here.endpoint_id, client=client) as executor:
            executor.submit(twice, 1).result(timeout=120)
            alone = _trips(executor, options.trips)
            routes = {
                MEASURE: "/v2/limits",
                "GET /v2/tasks": "/v2/tasks?limit=100",
                "GET /v2/endpoints/{id}/status": f"/v2/endpoints/{here.endpoint_id}/status",
                "GET /v2/endpoints": "/v2/endpoints",
            }
            prober = Prober(here.service, routes)
            began = time.perf_counter()
            crowd = SimulatedEndpoints(client.transport, options.endpoints, heartbeat_period_s=options.heartbeat_period)
            print(
                f"{options.endpoints} registrations: {options.endpoints / (time.perf_counter() - began):,.0f} a second"
            )
            with crowd.running():
                while not _all_online(client, crowd.ids[-50:]):
                    time.sleep(0.5)
                prober.phase("heartbeats")
                cpu, began = processes.cpu_s(), time.perf_counter()
                time.sleep(options.wait)
                used, seconds = processes.cpu_s(), time.perf_counter() - began
                shares = {role: (used[role] - cpu[role]) / seconds * 100 for role in cpu}
                print(
                    f"{options.endpoints} endpoints with a heartbeat each {options.heartbeat_period:g} s: CPU of "
                    + ", ".join(f"{role} {share:.0f} %" for role, share in shares.items())
                )
                prober.phase("tasks too")
                began = time.perf_counter()
                function_id = client.register_function(twice)
                total = _give_tasks(client, crowd.ids, function_id, options.tasks_each)
                print(
                    f"{total:,} tasks on {len(crowd.ids)} endpoints: "
                    f"{total / (time.perf_counter() - began):,.0f} tasks/s, all results right"
                )
                beside = _trips(executor, options.trips)
            print(
                f"a task of the real endpoint, p50: {statistics.median(alone):.1f} ms alone, "
                f"{statistics.median(beside):.1f} ms beside the others' heartbeats"
            )
            quick = print_latencies(prober.stop(), ["heartbeats", "tasks too"])
        print_memory(processes)
        processes.stop()
    return quick


def _trips(executor: Executor, count: int) -> list[float]:
    times = []
    for value in range(count):
        began = time.perf_counter()
        assert executor.submit(twice, value).result(timeout=120) == 2 * value
        times.append((time.perf_counter() - began) * 1e3)
    return times


def _all_online(client: Client, endpoint_ids: list[str]) -> bool:
    return all(client.get_endpoint_status(each)["status"] == "online" for each in endpoint_ids)


def _give_tasks(client: Client, endpoint_ids: list[str], function_id: str, each: int) -> int:
    """Submit to all of them, and wait for what comes back: simulated endpoints return their arguments."""
    group_id, expected = None, {}
    for number, endpoint_id in enumerate(endpoint_ids):
        payloads = [f"{number}.{place}" for place in range(each)]
        body = {"tasks": {function_id: payloads}} | ({"task_group_id": group_id} if group_id else {})
        answer = client.transport.post(f"/v3/endpoints/{endpoint_id}/submit", body)
        group_id = answer["task_group_id"]
        expected.update(zip(answer["tasks"][function_id], payloads, strict=True))
    total, cursor = len(expected), 0
    while expected:
        answer = client.transport.get(
            f"/v2/taskgroup/{group_id}/results", params={"after": cursor, "limit": 1000, "wait": 20}
        )
        cursor = answer["cursor"]
        for document in answer["results"]:
            assert expected.pop(document["task_id"]) == document["result"], f"a result is wrong: {document}"
    return total


PARTS: dict[str, Callable[[str, argparse.Namespace], bool]] = {
    "queue": queue,
    "executors": executors,
    "endpoints": endpoints,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--setting", nargs="+", choices=SETTINGS, default=["embedded"], help="default: embedded")
    parser.add_argument("--tasks", type=int, default=1_000_000, help="of `queue` (default 1,000,000)")
    parser.add_argument("--wait", type=float, default=15, help="seconds in which nothing else happens (default 15)")
    parser.add_argument("--executors", type=int, default=300, help="of `executors` (default 300)")
    parser.add_argument("--endpoints", type=int, default=1000, help="of `endpoints` (default 1,000)")
    parser.add_argument("--heartbeat-period", type=float, default=10, help="of `endpoints`, in seconds (default 10)")
    parser.add_argument("--tasks-each", type=int, default=10, help="of each executor and endpoint (default 10)")
    parser.add_argument("--trips", type=int, default=200, help="of a lone task, of `endpoints` (default 200)")
    options = parser.parse_args()
    os.environ.pop("FARCALL_SERVICE_URL", None)
    good = True
    for setting in options.setting:
        for part in options.part:
            print(f"-- {part}, {setting}", flush=True)
            good = PARTS[part](setting, options) and good
    print("within the limits" if good else "NOT within the limits")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
