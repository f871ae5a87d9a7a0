"""CPU time, memory, and how long routes take to answer, while something else goes on."""

from __future__ import annotations

import multiprocessing
import statistics
import threading
import time
from collections import defaultdict
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import urllib3
from end_to_end import cpu_seconds
from running import RunningService

#: The routes must answer in this time; on a machine too busy for that, in so many times what this route takes at most.
ROUTE_MS, MEASURE, SLOWER = 100.0, "GET /v2/limits", 1.5


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
