"""Blocks that come to nothing, as the people see it who wait for their tasks; and none that is forgotten."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from running import BIN, RunningEndpoint, RunningService, running_endpoint

from farcall import Client, Executor, TaskExecutionFailed
from farcall_endpoint.testing import FakePbs

TIMEOUT_S = 90

pytestmark = pytest.mark.settings("embedded")


def double(x):
    return 2 * x


@pytest.fixture
def pbs(tmp_path: Path) -> Iterator[FakePbs]:
    folder = tmp_path / "pbs"
    folder.mkdir()
    with FakePbs(folder) as pbs:
        yield pbs


@pytest.fixture
def beside(service: RunningService, pbs: FakePbs) -> RunningService:
    """The service, for endpoints that find the commands of the batch system."""
    return dataclasses.replace(service, environment={**service.environment, "PATH": f"{BIN}{os.pathsep}{pbs.path}"})


def configuration(*, worker_init: str = "", on_block_failures: str = "fail", **provider: Any) -> str:
    # Jobs have an environment of their own.
    path = f"export PATH={shlex.quote(os.pathsep.join([str(BIN), os.environ['PATH']]))}"
    document = {
        "heartbeat_period": 1,
        "engine": {
            "max_workers_per_node": 1,
            "job_status_kwargs": {"strategy_period": 0.5, "max_idletime": 300},
            "provider": {
                "type": "pbs",
                "max_blocks": 1,
                "worker_init": f"{path}\n{worker_init}",
                "on_block_failures": on_block_failures,
                **provider,
            },
        },
    }
    return yaml.safe_dump(document)


def wait_until(condition: Callable[[], object], what: str) -> None:
    """For what nobody tells of."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.2)


@pytest.mark.parametrize("init_blocks", [0, 1])
@pytest.mark.parametrize("how", ["refused", "dies"])
def test_what_the_system_said_reaches_everybody_and_after_three_blocks_no_more_are_asked_for(
    how: str, init_blocks: int, beside: RunningService, pbs: FakePbs
) -> None:
    name = f"vain-{how}-{init_blocks}"
    client = Client(service_url=beside.url, token=beside.token)
    if how == "refused":
        said, worker_init = "qsub: Unknown queue debgu", ""
        pbs.refuse("qsub", said, 170)
    else:
        said = "Unable to locate a modulefile for pyhton"
        worker_init = f"echo {said} >&2; exit 3"

    def asked() -> int:
        return len(pbs.calls("qsub"))

    waits = configuration(worker_init=worker_init, on_block_failures="wait", init_blocks=init_blocks)
    fails = configuration(worker_init=worker_init, on_block_failures="fail", init_blocks=init_blocks)
    with running_endpoint(beside, name, waits) as endpoint, Executor(endpoint.id, client) as executor:
        patient = executor.submit(double, 21)
        # Whoever waits is told.
        wait_until(lambda: said in patient.reason() and "any more" in patient.reason(), "the task says why it waits")
        # In the status over REST, and in the command's.
        status = client.get_endpoint_status(endpoint.id)
        assert said in str(status["details"]["troubles"])
        shown = endpoint.run("status", name).stdout
        assert said in shown
        assert f"farcall-endpoint resume {name}" in shown
        assert asked() == 3

        # Another agent, that is to let them fail: it knows what the first one learnt.
        (endpoint.directory / "config.yaml").write_text(fails)
        endpoint.run("restart", name)
        with pytest.raises(TaskExecutionFailed, match=said):
            patient.result(TIMEOUT_S)
        with pytest.raises(TaskExecutionFailed, match=said):
            executor.submit(double, 22).result(TIMEOUT_S)
        assert asked() == 3

        mend(how, endpoint, pbs, fails)
        assert executor.submit(double, 23).result(TIMEOUT_S) == 46
        assert asked() == 4
        assert "Trouble" not in endpoint.run("status", name).stdout
    wait_until(lambda: not pbs.living, "stop has ended the block")


def mend(how: str, endpoint: RunningEndpoint, pbs: FakePbs, fails: str) -> None:
    if how == "refused":
        pbs.accept("qsub")
        assert "asks for blocks again" in endpoint.run("resume", endpoint.name).stdout
    else:
        (endpoint.directory / "config.yaml").write_text(configuration(init_blocks=0))
        endpoint.run("restart", endpoint.name)
    # A task that comes before this is seen would fail as the others did.
    wait_until(lambda: not now(endpoint)["troubles"], "blocks may be asked for again")


def now(endpoint: RunningEndpoint) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads((endpoint.directory / "now.json").read_text())
    except FileNotFoundError:
        return {"troubles": ["it has not written anything yet"], "blocks": []}
    return document


def kill_agent(endpoint: RunningEndpoint) -> None:
    agent = psutil.Process(json.loads((endpoint.directory / "agent.pid").read_text())["pid"])
    agent.send_signal(signal.SIGKILL)
    psutil.wait_procs([agent], timeout=TIMEOUT_S)


def test_a_killed_agent_leaves_no_block_behind_that_its_successor_does_not_end(
    beside: RunningService, pbs: FakePbs
) -> None:
    pbs.limit(1)
    settings = configuration(init_blocks=2, max_blocks=2)
    with running_endpoint(beside, "killed", settings) as endpoint:
        wait_until(lambda: len(pbs.living) == 2, "one block runs, one waits")
        before = {job.number for job in pbs.living}
        kill_agent(endpoint)
        assert before <= {job.number for job in pbs.jobs}

        endpoint.run("start", "killed")

        wait_until(lambda: not before & {job.number for job in pbs.living}, "the earlier blocks have been ended")
        wait_until(lambda: len(pbs.living) == 2, "it has its own")
        client = Client(service_url=beside.url, token=beside.token)
        with Executor(endpoint.id, client) as executor:
            assert executor.submit(double, 4).result(TIMEOUT_S) == 8
    wait_until(lambda: not pbs.living, "stop has ended all")


def test_stop_says_which_blocks_it_could_not_end_and_the_next_start_ends_them(
    beside: RunningService, pbs: FakePbs
) -> None:
    with running_endpoint(beside, "left", configuration(init_blocks=1)) as endpoint:
        wait_until(lambda: len(pbs.living) == 1, "a block is there")
        (left,) = pbs.living
        pbs.refuse("qdel", "qdel: Unauthorized Request", 159)

        done = endpoint.run("stop", "left", check=False)

        assert done.returncode == 1
        assert f"block {left.number}" in done.stderr
        assert "qdel: Unauthorized Request" in done.stderr

        pbs.accept("qdel")
        endpoint.run("start", "left")
        wait_until(lambda: left.number not in {job.number for job in pbs.living}, "the next start has ended it")
