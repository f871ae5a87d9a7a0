"""MPI programs over the nodes of a block that Slurm has given, by a real MPI: each rank where it was asked for."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import RunningEndpoint, RunningService, running_endpoint, running_service
from servers import needs
from slurm import PrivateSlurm

from farcall import Client, Executor, MPIFunction
from farcall.errors import TaskExecutionFailed

#: All nodes are this machine, so only what Slurm has told a rank, or its parent where the launcher stands between, can
#: say on which of them it is. The sum shows that the ranks reach each other.
PROGRAM = r"""
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void node_of_parent(char *node) {
    char path[64], variables[65536];
    sprintf(path, "/proc/%d/environ", getppid());
    FILE *file = fopen(path, "r");
    size_t size = file ? fread(variables, 1, sizeof variables - 1, file) : 0;
    variables[size] = 0;
    for (char *each = variables; each < variables + size; each += strlen(each) + 1)
        if (!strncmp(each, "SLURMD_NODENAME=", 16))
            strncpy(node, each + 16, 63);
}

int main(int argc, char **argv) {
    int rank, size, sum;
    char node[64] = "?";
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    if (argc > 1)
        strncpy(node, getenv("SLURMD_NODENAME"), 63);
    else
        node_of_parent(node);
    printf("rank %d of %d on %s, sum %d\n", rank, size, node, sum);
    MPI_Finalize();
    return 0;
}
"""

CONFIGURATION = """\
heartbeat_period: 2
engine:
  type: GlobusMPIEngine
  mpi_launcher: {launcher}
  max_workers_per_block: 2
  job_status_kwargs: {{max_idletime: 300, strategy_period: 1}}
  provider: {{type: slurm, exclusive: true, nodes_per_block: 3, init_blocks: 1, min_blocks: 0, max_blocks: 1}}
"""


def missing_mpi() -> str | None:
    for program, package in (("mpiexec", "mpich"), ("mpicc", "libmpich-dev")):
        if shutil.which(program) is None:
            return f"{program} is not installed (on Debian and Ubuntu: apt-get install {package})"
    return None


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs("mpi", missing_mpi)
    folder = tmp_path_factory.mktemp("mpi")
    (folder / "ranks.c").write_text(PROGRAM)
    subprocess.run(["mpicc", "-o", folder / "ranks", folder / "ranks.c"], check=True)
    return folder / "ranks"


@pytest.fixture(scope="module")
def place(plain_slurm: PrivateSlurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with running_service(tmp_path_factory.mktemp("mpi") / "home", **plain_slurm.environment) as service:
        yield service
    plain_slurm.heal()


@pytest.fixture(scope="module", params=["mpiexec", "srun"])
def endpoint(request: pytest.FixtureRequest, place: RunningService, program: Path) -> Iterator[RunningEndpoint]:
    configuration = CONFIGURATION.format(launcher=request.param)
    with running_endpoint(place, f"mpi-{request.param}", configuration) as endpoint:
        yield endpoint


@pytest.fixture
def executor(place: RunningService, endpoint: RunningEndpoint) -> Iterator[Executor]:
    with Executor(endpoint.id, client=Client(service_url=place.url, token=place.token)) as executor:
        yield executor


def ranks(program: Path, endpoint: RunningEndpoint) -> tuple[MPIFunction, dict[str, str]]:
    """The function, and what else must be asked for: Slurm's own start of MPICH's ranks wants to be told how."""
    by_srun = endpoint.name.endswith("srun")
    return MPIFunction(f"{program} {'itself' if by_srun else ''}"), {
        "launcher_options": "--mpi=pmi2"
    } if by_srun else {}


def where(stdout: str) -> dict[int, str]:
    return {int(rank): node for rank, node in re.findall(r"rank (\d+) of \d+ on (\w+),", stdout)}


def test_ranks_run_on_as_many_nodes_as_were_asked_for_and_reach_each_other(
    executor: Executor, endpoint: RunningEndpoint, program: Path
) -> None:
    function, more = ranks(program, endpoint)
    executor.resource_specification = {"num_nodes": 2, "ranks_per_node": 2, **more}

    stdout = executor.submit(function).result(timeout=120).stdout

    found = where(stdout)
    assert sorted(found) == [0, 1, 2, 3]
    assert sorted(found.values()) == sorted(2 * sorted(set(found.values())))
    assert len(set(found.values())) == 2
    assert stdout.count("sum 6") == 4


def test_each_task_gets_as_many_nodes_as_it_asked_for(
    executor: Executor, endpoint: RunningEndpoint, program: Path
) -> None:
    function, more = ranks(program, endpoint)
    executor.resource_specification = {"num_nodes": 2, "ranks_per_node": 1, **more}
    wide = executor.submit(function)
    executor.resource_specification = {"num_nodes": 1, "ranks_per_node": 3, **more}
    narrow = executor.submit(function)

    nodes = [set(where(future.result(timeout=120).stdout).values()) for future in (wide, narrow)]

    assert [len(each) for each in nodes] == [2, 1]


def test_more_nodes_than_a_block_has_are_refused_in_words(
    executor: Executor, endpoint: RunningEndpoint, program: Path
) -> None:
    executor.resource_specification = {"num_nodes": 4}

    with pytest.raises(TaskExecutionFailed, match="asks for 4 nodes, and a block of this endpoint has 3"):
        executor.submit(ranks(program, endpoint)[0]).result(timeout=120)
