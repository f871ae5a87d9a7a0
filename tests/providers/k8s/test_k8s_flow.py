"""The whole loop with pods: a function goes out, runs in a pod, and its value comes back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import RunningEndpoint, RunningService, running_endpoint, running_service

from farcall import Client, Executor
from farcall.errors import TaskExecutionFailed

TIMEOUT_S = 90

CONFIGURATION = """\
heartbeat_period: 2
engine:
  max_workers_per_node: 2
  job_status_kwargs: {{max_idletime: 300, strategy_period: 1}}
  provider:
    type: k8s
    image: test
    kubeconfig: {kubeconfig}
    agent_address: 127.0.0.1
    run_as_non_root: false
    environment: {{PLACE: pod}}
    init_blocks: 0
    min_blocks: 0
    max_blocks: 1
"""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[RunningService]:
    with running_service(tmp_path / "home") as service:
        yield service


@pytest.fixture
def endpoint(service: RunningService, account: Any) -> Iterator[RunningEndpoint]:
    configuration = CONFIGURATION.format(kubeconfig=account.kubeconfig)
    with running_endpoint(service, configuration=configuration) as endpoint:
        yield endpoint


@pytest.fixture
def executor(service: RunningService, endpoint: RunningEndpoint) -> Iterator[Executor]:
    with Executor(endpoint_id=endpoint.id, client=Client(service_url=service.url, token=service.token)) as executor:
        yield executor


def where():
    import os
    import pathlib

    return os.environ["HOSTNAME"], os.environ["PLACE"], str(pathlib.Path.cwd())


def test_functions_run_in_a_pod_that_is_gone_when_the_endpoint_stops(
    executor: Executor, endpoint: RunningEndpoint, account: Any
) -> None:
    def fail():
        raise KeyError("what is missing")

    hostname, place, directory = executor.submit(where).result(TIMEOUT_S)
    assert (hostname, place, directory) == (account.all("pods")[0]["metadata"]["name"], "pod", "/farcall/tasks")
    assert list(executor.map(lambda x: 2 * x, range(100), timeout=TIMEOUT_S)) == [2 * x for x in range(100)]
    with pytest.raises(KeyError, match="what is missing") as caught:
        executor.submit(fail).result(TIMEOUT_S)
    assert isinstance(caught.value.__cause__, TaskExecutionFailed)

    endpoint.run("stop", endpoint.name)

    assert all(pod["metadata"].get("deletionTimestamp") for pod in account.all("pods"))


def test_doctor_tries_a_pod(endpoint: RunningEndpoint) -> None:
    said = endpoint.run("doctor", endpoint.name).stdout

    assert "v1.20" in said
    assert "create pods, list pods, watch pods, delete pods, get pods/log, create secrets" in said
    assert "the API server would take one with image test" in said
    assert "reached this machine at 127.0.0.1" in said
