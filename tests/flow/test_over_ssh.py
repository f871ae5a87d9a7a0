"""An endpoint on one machine whose blocks run on the cluster of another, which it reaches over SSH only."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cluster import Cluster, missing_for_cluster, small_cluster
from running import BIN, RunningEndpoint, RunningService, running_endpoint
from servers import needs
from sshd import has_ended

from farcall import Client, Executor

TIMEOUT_S = 120

pytestmark = pytest.mark.settings("embedded")

CONFIGURATION = """\
heartbeat_period: 2
engine:
  max_workers_per_node: 2
  job_status_kwargs: {{max_idletime: 300, strategy_period: 1}}
  provider:
    type: tiny
    init_blocks: 1
    min_blocks: 1
    max_blocks: 1
    worker_init: export PATH={bin}:$PATH
    ssh: {ssh}
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    needs("ssh", missing_for_cluster)
    with small_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@contextmanager
def endpoint_on(cluster: Cluster, service: RunningService, name: str) -> Iterator[RunningEndpoint]:
    """An endpoint here whose blocks are jobs of the cluster."""
    environment = {**service.environment, "PYTHONPATH": str(cluster.plugins)}
    configuration = CONFIGURATION.format(bin=BIN, ssh=json.dumps(cluster.options))
    with running_endpoint(dataclasses.replace(service, environment=environment), name, configuration) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def remote(service: RunningService, cluster: Cluster) -> Iterator[RunningEndpoint]:
    with endpoint_on(cluster, service, "on-a-cluster") as endpoint:
        yield endpoint


@pytest.fixture
def executor(service: RunningService, remote: RunningEndpoint) -> Iterator[Executor]:
    client = Client(service_url=service.url, token=service.token)
    with Executor(endpoint_id=remote.id, client=client) as executor:
        yield executor


def where():
    import os
    import pathlib

    return str(pathlib.Path("/proc/self/ns/net").readlink()), os.getppid(), str(pathlib.Path.cwd())


def wait_and_tell(begun, go_on):
    import os
    import pathlib

    pathlib.Path(begun).write_text("begun")
    return pathlib.Path(go_on).read_text(), os.getppid()


def test_functions_run_on_a_node_that_reaches_the_login_node_only(executor: Executor, cluster: Cluster) -> None:
    network, _, directory = executor.submit(where).result(TIMEOUT_S)

    assert network == str(cluster.node.network)
    assert Path(directory).is_relative_to(cluster.login.home / ".farcall")


def test_much_comes_back_through_the_relay(executor: Executor) -> None:
    assert len(executor.submit(lambda: "x" * 5_000_000).result(TIMEOUT_S)) == 5_000_000
    assert list(executor.map(lambda x: 2 * x, range(300), timeout=TIMEOUT_S)) == [2 * x for x in range(300)]


def test_doctor_goes_the_whole_way_to_a_node_and_back(remote: RunningEndpoint, cluster: Cluster) -> None:
    said = remote.run("doctor", remote.name).stdout

    assert f"SSH to {cluster.login.user}@{cluster.login.host}:{cluster.login.port}" in said
    assert "tinybatch on" in said
    assert "reached this machine at 10.91.2.1" in said


def test_a_lost_connection_costs_neither_tasks_nor_blocks(executor: Executor, cluster: Cluster, tmp_path: Path) -> None:
    jobs = cluster.jobs
    begun, go_on = tmp_path / "begun", tmp_path / "go on"
    for path in (begun, go_on):
        os.mkfifo(path)
    waiting = executor.submit(wait_and_tell, str(begun), str(go_on))
    begun.read_text()

    # The one that carries the other, then the other, each while something is on its way.
    assert cluster.jump.drop_connections()
    others = [executor.submit(where) for _ in range(20)]
    assert others[0].result(TIMEOUT_S)
    assert cluster.login.drop_connections()
    others += [executor.submit(where) for _ in range(20)]
    managers = {other.result(TIMEOUT_S)[1] for other in others}
    go_on.write_text("after the drop")

    assert waiting.result(TIMEOUT_S) == ("after the drop", *managers)
    assert len(cluster.jobs) == len(jobs)


def test_a_login_node_that_ends_our_processes_costs_a_block_and_no_task(
    executor: Executor, cluster: Cluster, tmp_path: Path
) -> None:
    begun, go_on = tmp_path / "begun", tmp_path / "go on"
    for path in (begun, go_on):
        os.mkfifo(path)
    waiting = executor.submit(wait_and_tell, str(begun), str(go_on))
    begun.read_text()
    jobs = cluster.jobs

    assert cluster.end_relays()
    # On its second attempt, as the first was lost with its block.
    begun.read_text()
    go_on.write_text("again")

    assert waiting.result(TIMEOUT_S)[0] == "again"
    assert len(cluster.jobs) == len(jobs) + 1


def test_after_stop_nothing_is_left_on_the_cluster(service: RunningService, cluster: Cluster) -> None:
    earlier = cluster.processes()
    client = Client(service_url=service.url, token=service.token)

    with endpoint_on(cluster, service, "stopped") as endpoint:
        with Executor(endpoint_id=endpoint.id, client=client) as executor:
            executor.submit(where).result(TIMEOUT_S)
        came = cluster.processes() - earlier
        assert came

    assert all(has_ended(pid) for pid in came)
    assert cluster.processes() <= earlier
