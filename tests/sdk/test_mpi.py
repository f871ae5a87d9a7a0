"""MPI programs as functions, as far as they can be seen without MPI."""

from __future__ import annotations

import pytest

from farcall import MPIFunction, ShellResult
from farcall.errors import ConfigurationError
from farcall.serialize import deserialize, serialize


def test_the_command_runs_behind_the_prefix_of_its_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARSL_MPI_PREFIX", "echo mpiexec -n 2")

    result = MPIFunction("simulate {steps}")(steps=3)

    assert result == ShellResult("$PARSL_MPI_PREFIX simulate 3", "mpiexec -n 2 simulate 3\n", "", 0, None)


def test_without_mpi_it_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PARSL_MPI_PREFIX", raising=False)

    with pytest.raises(ConfigurationError, match=r"MPIFunction cannot start its ranks: .*GlobusMPIEngine"):
        MPIFunction("simulate")()


def test_it_travels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARSL_MPI_PREFIX", "echo")

    result = deserialize(serialize(MPIFunction("far", name="away", return_dict=True)))()

    assert result["stdout"] == "far\n"
