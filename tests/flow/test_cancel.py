"""A task is cancelled wherever it is: not yet at its endpoint, waiting there, running, or just ending."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from os import cpu_count, getloadavg
from pathlib import Path
from time import monotonic, sleep
from time import time as now
from typing import Any

import psutil
import pytest
from running import CONFIGURATION, RunningEndpoint, RunningService, running_endpoint

from farcall import Client
from farcall.auth import FixedToken
from farcall.transport import Transport

TIMEOUT_S = 90

#: How soon a worker must have room for another task when the one that it runs is cancelled.
SLOT_BACK_S = 5.0
#: The same where so much else is running that everything takes longer; three of these are the grace.
SLOT_BACK_ON_A_BUSY_MACHINE_S = 15.0

ENDS = ("success", "failed", "cancelled")

ONE_WORKER = CONFIGURATION.replace("max_workers_per_node: 2", "max_workers_per_node: 1")


def double(x):
    return 2 * x


def leave_a_mark(path):
    with open(path, "w") as file:  # noqa: PTH123 - what it uses must be there on the worker
        file.write("it ran")


def sleep_for(seconds):
    import time

    time.sleep(seconds)
    return seconds


def hold_on(path):
    """Run for ever with a child and a grandchild, all deaf to TERM, and say who they are."""
    import os
    import signal
    import time

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for _ in range(2):
        if os.fork():
            break
    with open(path, "a") as file:  # noqa: PTH123 - what it uses must be there on the worker
        file.write(f"{os.getpid()}\n")
    while True:
        time.sleep(60)


def tell_the_time(_):
    import time

    return time.time()


def pids_in(path: Path) -> list[int]:
    """Of all three processes of `hold_on`; empty until they are there."""
    pids = [int(pid) for pid in path.read_text().split()] if path.exists() else []
    return pids if len(pids) == 3 else []


class Canceller:
    """Tasks of one endpoint, and how to cancel them."""

    def __init__(self, service: RunningService, endpoint_id: str) -> None:
        self.client = Client(service_url=service.url, token=service.token)
        self.endpoint_id = endpoint_id
        self._transport = Transport(service.url, FixedToken(service.token))

    def submit(self, function: Callable[..., Any], *arguments: Any) -> list[str]:
        """A task for each argument."""
        batch = self.client.create_batch()
        function_id = self.client.register_function(function)
        for argument in arguments:
            batch.add(function_id, (argument,))
        answer = self.client.batch_run(self.endpoint_id, batch)
        return list(answer["tasks"][function_id])

    def start_s(self) -> float:
        """How long a task takes until it starts where nothing is in its way."""
        asked_at = now()
        (task_id,) = self.submit(tell_the_time, None)
        self.wait_for(task_id, "success")
        return float(self.client.get_result(task_id)) - asked_at

    def cancel(self, task_id: str) -> dict[str, Any]:
        return dict(self._transport.post(f"/v2/tasks/{task_id}/cancel"))

    def status(self, task_id: str) -> dict[str, Any]:
        return dict(self._transport.get(f"/v2/tasks/{task_id}"))

    def wait_for(self, task_id: str, *states: str) -> dict[str, Any]:
        return wait_until(lambda: self._if_in(task_id, states), f"task {task_id} to be {states}")

    def _if_in(self, task_id: str, states: tuple[str, ...]) -> dict[str, Any] | None:
        document = self.status(task_id)
        assert document["status"] in states or document["status"] not in ENDS, document
        return document if document["status"] in states else None


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """For what nobody tells of."""
    end = monotonic() + TIMEOUT_S
    while not (found := condition()):
        assert monotonic() < end, f"waited in vain for {what}"
        sleep(0.05)
    return found


@pytest.fixture(scope="module")
def one_worker(service: RunningService) -> Iterator[RunningEndpoint]:
    with running_endpoint(service, "one-worker", ONE_WORKER) as running:
        yield running


def unconfirmed(service: RunningService, endpoint_id: str) -> list[str]:
    transport = Transport(service.url, FixedToken(service.token))
    return list(transport.get(f"/v3/endpoints/{endpoint_id}/cancellations", params={"limit": 10})["task_ids"])


def test_a_task_cancelled_while_its_endpoint_is_offline_is_not_run_when_it_comes(
    service: RunningService, one_worker: RunningEndpoint, tmp_path: Path
) -> None:
    tasks = Canceller(service, one_worker.id)
    (first,) = tasks.submit(double, 1)
    tasks.wait_for(first, "success")
    one_worker.run("stop", one_worker.name)
    mark = tmp_path / "mark"
    (cancelled,) = tasks.submit(leave_a_mark, str(mark))

    said, again = tasks.cancel(cancelled), tasks.cancel(cancelled)

    assert (said["status"], said["cancelled"]) == ("cancelled", True)
    assert (again["status"], again["cancelled"]) == ("cancelled", True)
    one_worker.run("start", one_worker.name)
    (last,) = tasks.submit(double, 2)
    tasks.wait_for(last, "success")
    assert not mark.exists()
    assert tasks.status(cancelled)["status"] == "cancelled"
    wait_until(lambda: not unconfirmed(service, one_worker.id), "the endpoint to confirm")


def test_a_task_that_waits_for_a_worker_is_cancelled_and_the_one_that_runs_is_not(
    service: RunningService, one_worker: RunningEndpoint, tmp_path: Path
) -> None:
    tasks = Canceller(service, one_worker.id)
    (running,) = tasks.submit(sleep_for, 8)
    tasks.wait_for(running, "running", "success")
    marks = [tmp_path / str(number) for number in range(5)]
    waiting = tasks.submit(leave_a_mark, *map(str, marks))
    tasks.wait_for(waiting[-1], "waiting-for-nodes", "waiting-for-launch")

    for task_id in waiting:
        assert tasks.cancel(task_id)["cancelled"]

    tasks.wait_for(running, "success")
    (last,) = tasks.submit(double, 2)
    tasks.wait_for(last, "success")
    assert not any(mark.exists() for mark in marks)


def test_the_processes_of_a_task_that_runs_are_killed_and_its_worker_is_soon_free_again(
    service: RunningService, one_worker: RunningEndpoint, tmp_path: Path
) -> None:
    tasks = Canceller(service, one_worker.id)
    tasks.wait_for(*tasks.submit(tell_the_time, None), "success")
    usual_s = tasks.start_s()
    took = []

    # The machine may be busy with other things just then.
    while len(took) < 3 and min(took, default=SLOT_BACK_S) >= SLOT_BACK_S:
        who = tmp_path / f"who-{len(took)}"
        (deaf,) = tasks.submit(hold_on, str(who))
        running = tasks.wait_for(deaf, "running")
        processes = [psutil.Process(pid) for pid in wait_until(lambda who=who: pids_in(who), "the task's processes")]
        (after,) = tasks.submit(tell_the_time, None)
        asked_at = now()
        tasks.cancel(deaf)
        tasks.wait_for(after, "success")
        # What any task takes on its way counts for nothing here.
        took.append(tasks.client.get_result(after) - asked_at - usual_s)

        _, alive = psutil.wait_procs(processes, timeout=10)
        assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
        assert tasks.status(deaf)["status"] == "cancelled"
        assert "on " in json.dumps(running["history"])
    is_busy = (getloadavg()[0] / (cpu_count() or 1)) > 1
    assert min(took) < (SLOT_BACK_ON_A_BUSY_MACHINE_S if is_busy else SLOT_BACK_S), took


def test_one_task_of_a_call_is_cancelled_and_the_others_have_their_results(
    service: RunningService, one_worker: RunningEndpoint
) -> None:
    tasks = Canceller(service, one_worker.id)
    # So that many travel together.
    known = tasks.submit(sleep_for, *[0] * 300)
    for task_id in known:
        tasks.wait_for(task_id, "success")
    together = tasks.submit(sleep_for, *[*[0] * 20, 600, *[0] * 20])
    stuck = together[20]
    tasks.wait_for(stuck, "running")

    tasks.cancel(stuck)

    for task_id in together:
        tasks.wait_for(task_id, "cancelled" if task_id == stuck else "success")


def test_a_task_that_ends_as_it_is_cancelled_has_one_end(service: RunningService, one_worker: RunningEndpoint) -> None:
    tasks = Canceller(service, one_worker.id)
    ends = {"success": 0, "cancelled": 0}

    for round_number in range(10):
        ids = tasks.submit(sleep_for, *[0.001 * number for number in range(30)])
        for task_id in ids:
            said = tasks.cancel(task_id)
            found = tasks.wait_for(task_id, "success", "cancelled")["status"]
            assert said["cancelled"] == (found == "cancelled"), f"round {round_number}: {said}"
            assert tasks.cancel(task_id)["cancelled"] == said["cancelled"]
            ends[found] += 1

    (last,) = tasks.submit(double, 2)
    tasks.wait_for(last, "success")
    assert ends["cancelled"]
    assert sum(ends.values()) == 300
