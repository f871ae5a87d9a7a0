"""Each process in turn is killed (-9) while tasks run: every task ends once, with the right value."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, as_completed
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
from running import RunningEndpoint, RunningService, endpoint_command, running_endpoint, running_service
from servers import free_ports

from farcall import Client, Executor

TASKS = 600
TIMEOUT_S = 100


def slow_double(x):
    import time

    time.sleep(0.005)
    return 2 * x


@contextmanager
def loop(home: Path) -> Iterator[tuple[RunningService, RunningEndpoint, Executor]]:
    """A service and an endpoint that the test may break, and an executor whose first task has come back."""
    with ExitStack() as stack:
        # A port that stays free while the service is down.
        service = stack.enter_context(running_service(home, port=free_ports(1)[0]))
        endpoint = stack.enter_context(running_endpoint(service))
        client = Client(service_url=service.url, token=service.token)
        executor = stack.enter_context(Executor(endpoint_id=endpoint.id, client=client))
        assert executor.submit(slow_double, 1).result(TIMEOUT_S) == 2
        yield service, endpoint, executor


def agent_of(endpoint: RunningEndpoint) -> psutil.Process:
    return psutil.Process(json.loads((endpoint.directory / "agent.pid").read_text())["pid"])


def descendants(process: psutil.Process, mark: str) -> list[psutil.Process]:
    found = []
    for child in process.children(recursive=True):
        try:
            if mark in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def submit_and_strike(executor: Executor, strike: Callable[[], None]) -> list[int]:
    """Submit tasks, do the harm when a tenth has come back, and return all values in the order of submission."""
    futures: list[Future[int]] = [executor.submit(slow_double, x) for x in range(TASKS)]
    for done, _ in enumerate(as_completed(futures, TIMEOUT_S)):
        if done == TASKS // 10:
            strike()
            break
    return [future.result(TIMEOUT_S) for future in futures]


EXPECTED = [2 * x for x in range(TASKS)]


@pytest.mark.parametrize("mark", ["interchange", "warden", "farcall_endpoint.pool", "spawn_main"])
def test_a_killed_process_of_the_engine_costs_no_task(tmp_path: Path, mark: str) -> None:
    with loop(tmp_path) as (_, endpoint, executor):
        victims = descendants(agent_of(endpoint), mark)
        assert victims, f"no process with {mark} in its command line"

        assert submit_and_strike(executor, victims[-1].kill) == EXPECTED

        assert executor.submit(slow_double, 21).result(TIMEOUT_S) == 42


def test_a_killed_broker_costs_no_task(tmp_path: Path) -> None:
    with loop(tmp_path) as (service, _, executor):
        (broker,) = psutil.Process(service.process.pid).children()

        assert submit_and_strike(executor, broker.kill) == EXPECTED


def test_a_killed_agent_leaves_nothing_and_its_successor_finishes_the_work(tmp_path: Path) -> None:
    with loop(tmp_path) as (service, endpoint, executor):
        agent = agent_of(endpoint)
        family = agent.children(recursive=True)

        def strike() -> None:
            agent.kill()
            _, alive = psutil.wait_procs(family, timeout=30)
            assert not alive
            run = endpoint_command(service.home, service.environment)
            (listed,) = json.loads(run("list", "--json").stdout)
            assert "Disconnected" in listed.values()
            run("start", endpoint.name)

        assert submit_and_strike(executor, strike) == EXPECTED


def test_a_killed_service_costs_no_task_once_it_is_started_again(tmp_path: Path) -> None:
    with ExitStack() as later, loop(tmp_path) as (service, _, executor):

        def strike() -> None:
            service.stop(signal.SIGKILL)
            port = int(service.url.rpartition(":")[2])
            later.enter_context(running_service(tmp_path, port=port))

        assert submit_and_strike(executor, strike) == EXPECTED
