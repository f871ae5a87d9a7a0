"""Tasks between their submit and their end: cancelled, looked at, bounded."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, as_completed
from pathlib import Path

import pytest
from running import RunningEndpoint, RunningService

from farcall import Client, Executor, FarcallFuture, TaskCancelled
from farcall.wire import TaskState

TIMEOUT_S = 60
FARCALL = Path(sys.executable).parent / "farcall"


def sleeping(seconds):
    import time

    time.sleep(seconds)
    return seconds


@pytest.fixture
def client(service: RunningService) -> Client:
    return Client(service_url=service.url, token=service.token)


@pytest.fixture
def executor(client: Client, endpoint: RunningEndpoint) -> Iterator[Executor]:
    with Executor(endpoint_id=endpoint.id, client=client) as executor:
        yield executor
        executor.shutdown(cancel_futures=True)


@pytest.fixture
def nowhere(client: Client) -> str:
    """An endpoint that is never online."""
    return str(client.register_endpoint("nowhere", None)["endpoint_id"])


def reach(future: FarcallFuture, state: TaskState) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while (now := future.state()) is not state:
        assert time.monotonic() < deadline, f"{now}: {future.reason()}"
        time.sleep(0.05)


def farcall(service: RunningService, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [FARCALL, *words], env=service.environment, check=False, capture_output=True, text=True, timeout=TIMEOUT_S
    )


def test_a_running_task_is_cancelled_and_its_endpoint_goes_on(executor: Executor) -> None:
    future = executor.submit(sleeping, 5)
    reach(future, TaskState.RUNNING)

    assert future.cancel()

    with pytest.raises(CancelledError):
        future.result(TIMEOUT_S)
    assert executor.submit(sleeping, 0).result(TIMEOUT_S) == 0


def test_all_of_many_are_cancelled_and_each_is_done(client: Client, nowhere: str) -> None:
    with Executor(nowhere, client) as executor:
        futures = [executor.submit(sleeping, x) for x in range(2_000)]

        executor.shutdown(cancel_futures=True)

        assert all(future.cancelled() for future in as_completed(futures, timeout=TIMEOUT_S))
    tasks = client.tasks(task_group_id=executor.task_group_id, endpoint_id=nowhere)
    assert {task["status"] for task in tasks} <= {"cancelled"}


def test_a_cancel_from_a_shell_reaches_the_future(service: RunningService, client: Client, nowhere: str) -> None:
    with Executor(nowhere, client) as executor:
        future = executor.submit(sleeping, 1)
        reach(future, TaskState.WAITING_FOR_EP)
        assert future.reason()

        assert farcall(service, "cancel", str(future.task_id)).returncode == 0

        with pytest.raises(CancelledError):
            future.result(TIMEOUT_S)
        with pytest.raises(TaskCancelled):
            client.get_result(str(future.task_id))
        shown = json.loads(farcall(service, "status", "--json", str(future.task_id)).stdout)
        assert shown["status"] == "cancelled"
        assert farcall(service, "logs", "-f", str(future.task_id)).stderr.startswith("The task")


def test_a_group_is_cancelled(client: Client, nowhere: str) -> None:
    batch = client.create_batch()
    function_id = client.register_function(sleeping)
    for x in range(100):
        batch.add(function_id, (x,))
    run = client.batch_run(nowhere, batch)

    assert client.cancel(task_group_id=run["task_group_id"])["cancelled"] == 100
    assert all(said["cancelled"] for said in client.cancel(run).values())


def test_a_cancelled_await_cancels_the_task(client: Client, nowhere: str) -> None:
    async def leaving(future: FarcallFuture) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await future

    with Executor(nowhere, client) as executor:
        future = executor.submit(sleeping, 1)
        reach(future, TaskState.WAITING_FOR_EP)

        asyncio.run(leaving(future))

        assert future.cancelled()
        with pytest.raises(TaskCancelled):
            client.get_result(str(future.task_id), timeout=TIMEOUT_S)


def test_options_of_tasks_are_taken_and_bounded(service: RunningService, client: Client, executor: Executor) -> None:
    assert executor.with_options(max_retries=0, timeout_s=60).submit(sleeping, 0).result(TIMEOUT_S) == 0
    limits = json.loads(farcall(service, "limits", "--json").stdout)
    assert limits == client.get_limits()
    assert farcall(service, "whoami").stdout.startswith("name")
