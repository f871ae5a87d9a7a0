"""An endpoint whose blocks are jobs of a real Slurm: functions come back, and nothing stays in the queue."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
from running import RunningEndpoint, RunningService, running_endpoint
from servers import needs
from slurm import PrivateSlurm, missing_slurm, private_slurm

from farcall import Client, Executor

pytestmark = pytest.mark.settings("embedded")

TIMEOUT_S = 90

CONFIGURATION = """\
heartbeat_period: 2
engine:
  max_workers_per_node: 2
  {engine}
  job_status_kwargs: {{max_idletime: 300, strategy_period: 1}}
  provider:
    type: slurm
    exclusive: false
    walltime: "01:00:00"
    {provider}
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateSlurm]:
    needs("slurm", missing_slurm)
    with private_slurm(tmp_path_factory.mktemp("slurm"), gpus=2) as slurm:
        yield slurm


def executor_on(service: RunningService, endpoint: RunningEndpoint) -> Executor:
    return Executor(endpoint_id=endpoint.id, client=Client(service_url=service.url, token=service.token))


def endpoint_on(
    slurm: PrivateSlurm, service: RunningService, name: str, *, engine: str = "encrypted: true", provider: str
):  # type: ignore[no-untyped-def]
    there = dataclasses.replace(service, environment={**service.environment, **slurm.environment})
    return running_endpoint(there, name, CONFIGURATION.format(engine=engine, provider=provider))


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    """Slurm can only be asked, so this asks again and again."""
    deadline = time.monotonic() + TIMEOUT_S
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def where(seconds):
    import os
    import time

    time.sleep(seconds)
    return os.environ["SLURM_JOB_ID"], os.environ["SLURMD_NODENAME"], os.environ.get("CUDA_VISIBLE_DEVICES")


def test_functions_run_in_a_job_and_stop_leaves_none(service: RunningService, slurm: PrivateSlurm) -> None:
    with endpoint_on(slurm, service, "slurm-one", provider="max_blocks: 1") as endpoint:
        with executor_on(service, endpoint) as executor:
            places = list(executor.map(where, [0] * 20, timeout=TIMEOUT_S))
        jobs = slurm.jobs()
        shown = endpoint.run("status", "slurm-one").stdout

    assert {job for job, _, _ in places} == set(jobs)
    assert jobs[0] in shown
    assert slurm.jobs() == []


def test_functions_run_on_all_nodes_of_a_block(service: RunningService, slurm: PrivateSlurm) -> None:
    two_nodes = "nodes_per_block: 2\n    cores_per_node: 2"
    with endpoint_on(slurm, service, "slurm-two", provider=two_nodes) as endpoint:
        with executor_on(service, endpoint) as executor:
            seen: set[str] = set()
            wait_until(
                lambda: (
                    seen.update(node for _, node, _ in executor.map(where, [0.2] * 8, timeout=TIMEOUT_S))
                    or len(seen) == 2
                ),
                f"functions run on {seen} only",
            )
        assert len(slurm.jobs()) == 1

    assert slurm.jobs() == []


def test_each_worker_has_a_gpu_of_its_own_among_those_of_the_block(
    service: RunningService, slurm: PrivateSlurm
) -> None:
    # On every node, somebody else has the first.
    others = [
        slurm.run("sbatch", "--parsable", "-w", node, "--gpus=1", "-o", "/dev/null", "--wrap", "sleep 600")
        for node in slurm.nodes
    ]
    wait_until(lambda: slurm.run("squeue", "-h", "-t", "R", "-o", "%i").split() != [], "no job of the others runs")

    with (
        endpoint_on(
            slurm, service, "slurm-gpu", engine="available_accelerators: 2", provider="gpus_per_node: 1"
        ) as endpoint,
        executor_on(service, endpoint) as executor,
    ):
        devices = {device for _, _, device in executor.map(where, [0.1] * 6, timeout=TIMEOUT_S)}

    slurm.run("scancel", *others)
    assert devices == {"1"}


def test_blocks_come_with_the_load_and_a_job_that_was_ended_costs_no_task(
    service: RunningService, slurm: PrivateSlurm
) -> None:
    slurm.heal()
    with (
        endpoint_on(
            slurm,
            service,
            "slurm-more",
            engine="heartbeat_threshold: 6",
            provider="max_blocks: 2\n    init_blocks: 0",
        ) as endpoint,
        executor_on(service, endpoint) as executor,
    ):
        futures = [executor.submit(where, 2) for _ in range(10)]
        wait_until(lambda: len(slurm.run("squeue", "-h", "-t", "R", "-o", "%i").split()) == 2, "not two blocks")
        # Only one that has begun to work.
        first = futures[0].result(TIMEOUT_S)[0]
        slurm.run("scancel", first)

        assert len([future.result(TIMEOUT_S) for future in futures]) == 10

    assert slurm.jobs() == []


def test_an_agent_that_was_killed_leaves_no_job_behind_once_another_has_come(
    service: RunningService, slurm: PrivateSlurm
) -> None:
    name = "slurm-killed"
    with endpoint_on(slurm, service, name, provider="max_blocks: 1") as endpoint:
        with executor_on(service, endpoint) as executor:
            first, _, _ = executor.submit(where, 0).result(TIMEOUT_S)
            agent = psutil.Process(json.loads((endpoint.directory / "agent.pid").read_text())["pid"])
            agent.kill()
            agent.wait(TIMEOUT_S)
            endpoint.run("start", name)
            second, _, _ = executor.submit(where, 0).result(TIMEOUT_S)
        wait_until(lambda: slurm.jobs() == [second], f"jobs {slurm.jobs()} are there, and {second} runs functions")
        assert first

    assert slurm.jobs() == []
