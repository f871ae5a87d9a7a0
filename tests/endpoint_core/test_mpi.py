"""Tasks that ask for nodes: what they may ask for, who gets which nodes, and ranks that really run."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from parsl.multiprocessing import ForkContext
from parsl.serialize import deserialize as parsl_deserialize
from servers import needs

from farcall.errors import ConfigurationError
from farcall.wire import BatchedTask
from farcall_endpoint import mpi
from farcall_endpoint.admission import refusal
from farcall_endpoint.config import EndpointConfig, EngineConfig
from farcall_endpoint.crew import Crew, NotEnoughNodes, WorkerEnd
from farcall_endpoint.loading import load_config
from farcall_endpoint.nodes import THIS_MACHINE, Nodes, names_of_nodes


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"num_nodes": 2}, (2, 1, 2)),
        ({"num_nodes": "2", "ranks_per_node": "3"}, (2, 3, 6)),
        ({"num_ranks": 4}, (1, 4, 4)),
        ({"num_nodes": 2, "num_ranks": 3}, (2, 2, 3)),
        ({"num_nodes": 2, "ranks_per_node": 2, "num_ranks": 3}, (2, 2, 3)),
    ],
)
def test_what_is_left_out_follows_from_the_rest(given: dict[str, Any], meant: tuple[int, int, int]) -> None:
    found = mpi.completed(given, most_nodes=2)

    assert (found["num_nodes"], found["ranks_per_node"], found["num_ranks"]) == meant


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "say how much of it the task needs"),
        ({"cores": 1}, "does not know cores"),
        ({"num_nodes": 3}, "asks for 3 nodes, and a block of this endpoint has 2"),
        ({"num_nodes": 0}, "num_nodes in resource_specification must be a whole number above 0, not 0"),
        ({"num_nodes": True}, "not True"),
        ({"num_ranks": "many"}, "not 'many'"),
        ({"num_nodes": 2, "num_ranks": 1}, "1 ranks, which is not possible with 2 nodes"),
        ({"num_nodes": 1, "ranks_per_node": 2, "num_ranks": 5}, "let it be from 1 to 2"),
        ({"num_nodes": 1, "launcher_options": ["-v"]}, "launcher_options in resource_specification must be text"),
    ],
)
def test_what_cannot_be_is_said(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        mpi.completed(given, most_nodes=2)


def test_an_endpoint_without_mpi_says_that_it_cannot_honour_a_specification(tmp_path: Path) -> None:
    config = EndpointConfig("ep", tmp_path)

    result = refusal(config, BatchedTask("t", "f", "payload", {"resource_specification": {"num_nodes": 2}}))

    assert result is not None
    assert "this endpoint runs no MPI" in result[1]
    assert "num_nodes" in result[1]
    assert refusal(config, BatchedTask("t", "f", "payload", {"resource_specification": None})) is None


def test_an_endpoint_with_mpi_takes_what_it_can_do(tmp_path: Path) -> None:
    config = EndpointConfig("ep", tmp_path, engine=EngineConfig(mpi_launcher="mpiexec", nodes_per_block=2))

    assert refusal(config, BatchedTask("t", "f", "payload", {"resource_specification": {"num_nodes": 2}})) is None
    assert refusal(config, BatchedTask("t", "f", "payload")) is not None


# -- configuration ----------------------------------------------------------------------------------------------------


def engine_of(directory: Path, text: str) -> EngineConfig:
    (directory / "config.yaml").write_text(text)
    return load_config(directory).engine


def test_the_engine_of_globus_compute_is_understood(tmp_path: Path) -> None:
    engine = engine_of(
        tmp_path,
        "engine:\n  type: GlobusMPIEngine\n  mpi_launcher: srun\n  max_workers_per_block: 3\n"
        "  provider:\n    nodes_per_block: 4\n    launcher: {type: SimpleLauncher}\n",
    )

    assert (engine.mpi_launcher, engine.workers_per_manager, engine.managers_per_block) == ("srun", 3, 1)


def test_without_more_words_it_is_mpiexec_and_one_task_a_node(tmp_path: Path) -> None:
    engine = engine_of(tmp_path, "engine:\n  type: GlobusMPIEngine\n  provider:\n    nodes_per_block: 4\n")

    assert (engine.mpi_launcher, engine.workers_per_manager) == ("mpiexec", 4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("engine:\n  mpi_launcher: srun\n", "engine.mpi_launcher: this goes with engine.type GlobusMPIEngine only"),
        ("engine:\n  max_workers_per_block: 2\n", "this goes with engine.type GlobusMPIEngine only"),
        ("engine:\n  type: GlobusMPIEngine\n  mpi_launcher: mpirun\n", "expected one of mpiexec, srun, aprun"),
        ("engine:\n  type: GlobusMPIEngine\n  max_workers_per_node: 2\n", "max_workers_per_block says"),
        ("engine:\n  type: mpi\n  provider:\n    launcher: SrunLauncher\n", "leave this key out"),
    ],
)
def test_what_does_not_go_together_is_said(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        engine_of(tmp_path, text)


# -- nodes ------------------------------------------------------------------------------------------------------------


def test_a_job_says_which_nodes_it_has(tmp_path: Path) -> None:
    (tmp_path / "nodes").write_text("n1\nn1\nn2\n")

    assert names_of_nodes({"PBS_NODEFILE": str(tmp_path / "nodes")}) == ["n1", "n2"]
    assert names_of_nodes({}) == [THIS_MACHINE]


def answer_with_nodes(end: WorkerEnd) -> None:
    """A worker that says which nodes it was given; a task may have it wait for a word, or die."""
    while True:
        task = end.get(60)
        if task.get("gate") is not None:
            GATES[task["gate"]].wait(60)
        if task.get("dies"):
            ForkContext.current_process().kill()
        nodes = task["context"]["resource_spec"]["MPI_NODELIST"]
        end.put(pickle.dumps({"type": "result", "task_id": task["task_id"], "nodes": nodes}))


GATES = [ForkContext.Event() for _ in range(2)]


def start(number: int, end: WorkerEnd) -> Any:
    process = ForkContext.Process(target=answer_with_nodes, args=(end,), daemon=True)
    process.start()
    return process


@pytest.fixture
def crew() -> Iterator[Crew]:
    for gate in GATES:
        gate.clear()
    crew = Crew(start, Nodes(["n1", "n2"]))
    for number in range(3):
        crew.hire(number)
    yield crew
    for process in crew.processes.values():
        process.kill()
        process.join()


def asking_for(nodes: int, task_id: int, **more: Any) -> dict[str, Any]:
    return {"task_id": task_id, "context": {"resource_spec": {"num_nodes": nodes}}, **more}


def next_result(crew: Crew) -> dict[str, Any]:
    while True:
        package = crew.get_result()
        if package is not None:
            result: dict[str, Any] = pickle.loads(package)
            return result


def test_tasks_that_run_at_the_same_time_have_different_nodes(crew: Crew) -> None:
    crew.put_task(asking_for(1, 1, gate=0))
    crew.put_task(asking_for(1, 2))
    second = next_result(crew)
    GATES[0].set()
    first = next_result(crew)

    assert {first["nodes"], second["nodes"]} == {"n1", "n2"}


def test_a_large_task_waits_for_its_nodes_and_is_not_overtaken(crew: Crew) -> None:
    crew.put_task(asking_for(1, 1, gate=0))
    crew.put_task(asking_for(2, 2))
    crew.put_task(asking_for(1, 3))
    GATES[0].set()

    results = [next_result(crew) for _ in range(3)]

    assert [result["task_id"] for result in results] == [1, 2, 3]
    assert set(results[1]["nodes"].split(",")) == {"n1", "n2"}


def test_the_nodes_of_a_worker_that_died_are_lent_again(crew: Crew) -> None:
    crew.put_task(asking_for(2, 1, dies=True))
    crew.put_task(asking_for(2, 2))

    lost, answered = next_result(crew), next_result(crew)

    assert "exception" in lost
    assert set(answered["nodes"].split(",")) == {"n1", "n2"}


def test_more_nodes_than_the_block_came_with_is_a_failure_and_not_a_wait(crew: Crew) -> None:
    crew.put_task(asking_for(3, 1))

    wrapper = parsl_deserialize(next_result(crew)["exception"])

    assert wrapper.e_type is NotEnoughNodes


# -- for real ---------------------------------------------------------------------------------------------------------


CONFIGURATION = """\
heartbeat_period: 2
engine:
  type: GlobusMPIEngine
  max_workers_per_block: 2
  job_status_kwargs: {max_idletime: 300, strategy_period: 1}
  provider: {type: local, init_blocks: 1, min_blocks: 1, max_blocks: 1}
"""


def _missing_mpi() -> str | None:
    if shutil.which("mpiexec") is None:
        return "mpiexec is not installed (on Debian and Ubuntu: apt-get install mpich)"
    return None


def test_ranks_run_as_many_as_were_asked_for(service: Any) -> None:
    needs("mpi", _missing_mpi)
    from running import running_endpoint

    from farcall import Client, Executor, MPIFunction, TaskExecutionFailed

    ranks = MPIFunction("sh -c 'echo rank $PMI_RANK of $PMI_SIZE {word}'")
    with (
        running_endpoint(service, "mpi", CONFIGURATION) as endpoint,
        Executor(endpoint_id=endpoint.id, client=Client(service_url=service.url, token=service.token)) as executor,
    ):
        executor.resource_specification = {"num_nodes": 1, "ranks_per_node": 3}
        three = executor.submit(ranks, word="here")
        executor.resource_specification = {"num_ranks": 2}
        two = executor.submit(ranks, word="there")
        executor.resource_specification = None
        none = executor.submit(ranks, word="nowhere")

        assert sorted(three.result(60).stdout.splitlines()) == [f"rank {n} of 3 here" for n in range(3)]
        assert sorted(two.result(60).stdout.splitlines()) == [f"rank {n} of 2 there" for n in range(2)]
        with pytest.raises(TaskExecutionFailed, match="say how much of it the task needs"):
            none.result(60)
