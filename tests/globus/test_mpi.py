"""MPI functions of either SDK on either kind of endpoint, with the launcher of MPICH."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from islands import OURS
from servers import needs

#: The launcher gives each rank its number in this way only if it is MPICH's.
MISSING = "mpiexec of MPICH is not installed (on Debian and Ubuntu: apt-get install mpich)"
ENGINE = """\
engine:
  type: GlobusMPIEngine
  mpi_launcher: mpiexec
  max_workers_per_block: 1
  provider: {type: %s, init_blocks: 1, min_blocks: 1, max_blocks: 1}
"""


@pytest.fixture(scope="module")
def mpiexec(isle) -> None:  # type: ignore[no-untyped-def]
    told = isle.run("sh", "-c", "mpiexec --version || true").stdout
    needs("mpi", lambda: None if "HYDRA" in told else MISSING)


@pytest.fixture(scope="module")
def theirs(mpiexec: None, new_endpoint) -> Iterator[str]:  # type: ignore[no-untyped-def]
    endpoint = new_endpoint("theirs-mpi")
    endpoint.command("configure", "theirs-mpi")
    # It takes the nodes from a scheduler and from nowhere else; this is PBS's way to name them.
    nodes = endpoint.directory / "nodes"
    nodes.write_text("localhost\n")
    provider = f"LocalProvider, launcher: {{type: SimpleLauncher}}, worker_init: 'export PBS_NODEFILE={nodes}'"
    (endpoint.directory / "user_config_template.yaml.j2").write_text(ENGINE % provider)
    endpoint.start()
    yield endpoint.id
    endpoint.stop()


@pytest.fixture(scope="module")
def ours(mpiexec: None, service) -> Iterator[str]:  # type: ignore[no-untyped-def]
    isle = service.isle
    isle.run(OURS / "farcall-endpoint", "configure", "ours-mpi")
    (service.home / "ours-mpi" / "config.yaml").write_text(ENGINE % "local")
    isle.run(OURS / "farcall-endpoint", "start", "ours-mpi")
    yield json.loads((service.home / "ours-mpi" / "endpoint.json").read_text())["endpoint_id"]
    isle.run(OURS / "farcall-endpoint", "stop", "ours-mpi", check=False)


@pytest.mark.parametrize("sdk", ["farcall", "globus"])
@pytest.mark.parametrize("endpoint", ["ours", "theirs"])
def test_as_many_ranks_start_as_were_asked_for(request, sessions, sdk: str, endpoint: str) -> None:  # type: ignore[no-untyped-def]
    endpoint_id = request.getfixturevalue(endpoint)

    sessions[sdk].run("an_mpi_function_starts_as_many_ranks_as_were_asked_for", endpoint_id)
