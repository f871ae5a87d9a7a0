"""An endpoint whose blocks are jobs of PBS, as its user and its administrator see it."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from running import RunningEndpoint, RunningService, running_endpoint, running_service
from servers import needs

from farcall import Client, Executor
from farcall_endpoint.testing import FakePbs

TIMEOUT_S = 90

CONFIGURATION = f"""\
heartbeat_period: 1
engine:
  max_workers_per_node: 1
  job_status_kwargs: {{max_idletime: 300, strategy_period: 0.5}}
  provider:
    type: pbs
    queue: workq
    cpus_per_node: 1
    walltime: "00:10:00"
    init_blocks: 0
    min_blocks: 0
    max_blocks: 2
    worker_init: export PATH={Path(sys.executable).parent}:$PATH
"""


@pytest.fixture
def pbs(tmp_path: Path) -> Iterator[FakePbs]:
    folder = tmp_path / "pbs"
    folder.mkdir()
    with FakePbs(folder) as pbs:
        yield pbs


@pytest.fixture
def own_service(tmp_path: Path, pbs: FakePbs) -> Iterator[RunningService]:
    """Its agents find the fake PBS in PATH."""
    with running_service(tmp_path / "home") as service:
        service.environment["PATH"] = f"{pbs.bin}{os.pathsep}{service.environment['PATH']}"
        yield service


@contextmanager
def executor_on(service: RunningService, endpoint: RunningEndpoint) -> Iterator[Executor]:
    client = Client(service_url=service.url, token=service.token)
    with Executor(endpoint_id=endpoint.id, client=client) as executor:
        yield executor


def test_functions_run_in_jobs_and_no_job_is_left(own_service: RunningService, pbs: FakePbs) -> None:
    def where():
        import os

        return os.environ["PBS_JOBID"]

    with running_endpoint(own_service, configuration=CONFIGURATION) as endpoint:
        with executor_on(own_service, endpoint) as executor:
            assert executor.submit(pow, 2, 5).result(TIMEOUT_S) == 32
            assert executor.submit(where).result(TIMEOUT_S) == "0.pbshost"
        assert [job.details["resources"]["walltime"] for job in pbs.jobs] == ["00:10:00"]
        assert len(pbs.living) == 1

    assert [pbs.wait_until_ended(job).ended_by for job in pbs.jobs] == ["deleted"]
    assert pbs.living == []


def test_what_pbs_says_of_a_job_that_waits_is_seen(own_service: RunningService, pbs: FakePbs) -> None:
    client = Client(service_url=own_service.url, token=own_service.token)

    def blocks(endpoint: RunningEndpoint) -> list[dict[str, str]]:
        details = client.get_endpoint_status(endpoint.id)["details"] or {}
        return list(details.get("blocks", []))

    with (
        running_endpoint(own_service, configuration=CONFIGURATION) as endpoint,
        executor_on(own_service, endpoint) as executor,
    ):
        with pbs.holding("Insufficient amount of resource: ngpus"):
            future = executor.submit(pow, 2, 5)
            deadline = time.monotonic() + TIMEOUT_S
            # A report can only be asked for.
            while not any(block["message"] for block in blocks(endpoint)):
                assert time.monotonic() < deadline, "nothing is said of the block"
                time.sleep(0.1)
            [block] = blocks(endpoint)
            assert block["state"] == "pending"
            assert block["message"] == "Insufficient amount of resource: ngpus"

        assert future.result(TIMEOUT_S) == 32


def test_a_block_of_two_nodes_has_a_manager_on_each(own_service: RunningService, pbs: FakePbs) -> None:
    needs("mpi", lambda: None if shutil.which("mpiexec") else "there is no mpiexec on PATH")
    configuration = CONFIGURATION.replace("init_blocks: 0", "init_blocks: 1\n    nodes_per_block: 2")
    client = Client(service_url=own_service.url, token=own_service.token)

    with running_endpoint(own_service, configuration=configuration) as endpoint:
        deadline = time.monotonic() + TIMEOUT_S
        # A report can only be asked for.
        while (client.get_endpoint_status(endpoint.id)["details"] or {}).get("managers") != 2:
            assert time.monotonic() < deadline, "there are no two managers"
            time.sleep(0.1)
        assert [job.details["resources"]["select"] for job in pbs.jobs] == ["2:ncpus=1"]
    assert [pbs.wait_until_ended(job).ended_by for job in pbs.jobs] == ["deleted"]
