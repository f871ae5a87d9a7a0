"""What starts the workers on every node of a block."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from farcall.errors import ConfigurationError
from farcall_endpoint.launchers import Launcher, launch


def stand_in(directory: Path, name: str, script: str) -> dict[str, str]:
    """An environment with a program of that name, which tells what it was called with."""
    program = directory / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{directory}:{os.environ['PATH']}", "TMPDIR": str(directory)}


def printed_by(line: str, environment: dict[str, str]) -> list[str]:
    done = subprocess.run(["sh", "-c", line], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_a_launcher_that_does_not_exist_is_named_with_those_that_do() -> None:
    with pytest.raises(ConfigurationError, match=r"no launcher called 'SrunLaucher'; there are: single, srun, mpiexec"):
        launch(Launcher("SrunLaucher"))


def test_a_launchers_options_are_checked_by_name() -> None:
    with pytest.raises(ConfigurationError, match="srun has no option 'overides'; it has only: overrides"):
        launch(Launcher.read({"type": "srun", "overides": "--mpi=none"}))


@pytest.mark.parametrize("raw", [None, "", 7, {"overrides": "x"}])
def test_what_names_no_launcher_is_refused(raw: object) -> None:
    with pytest.raises(ValueError, match="expected the name of a launcher"):
        Launcher.read(raw)


@pytest.mark.parametrize("name", ["single", "SimpleLauncher"])
def test_single_leaves_the_command_as_it_is(name: str) -> None:
    assert launch(Launcher(name))("the command", 1) == "the command"


@pytest.mark.parametrize("name", ["srun", "SrunLauncher"])
def test_srun_starts_one_manager_a_node_with_all_cores(name: str, tmp_path: Path) -> None:
    environment = stand_in(tmp_path, "srun", 'printf "%s\\n" "$@"') | {"SLURM_CPUS_PER_TASK": "8"}
    line = launch(Launcher.read({"type": name, "overrides": "--mpi=none"}))('echo "it\'s" $HOME', 3)

    words = printed_by(line, environment)

    assert words[:3] == ["--nodes=3", "--ntasks=3", "--ntasks-per-node=1"]
    assert "--cpus-per-task=8" in words
    assert words[-4:] == ["--mpi=none", "sh", "-c", 'echo "it\'s" $HOME']


def test_mpiexec_is_given_each_host_once_and_its_exit_code_is_kept(tmp_path: Path) -> None:
    nodes = tmp_path / "nodes"
    nodes.write_text("n1\nn1\nn2\n")
    environment = stand_in(tmp_path, "mpiexec", 'echo "$@"; cat "$6"; exit 3') | {"PBS_NODEFILE": str(nodes)}
    line = launch(Launcher("mpiexec"))("run-the-manager", 2)

    words = printed_by(f"{line}\necho ended with $?", environment)

    assert words[0].startswith("--bind-to none -n 2 --hostfile ")
    assert words[0].endswith(" sh -c run-the-manager")
    assert words[1:] == ["n1", "n2", "ended with 3"]
    assert not list(tmp_path.glob("farcall-hosts.*"))


def test_parsls_other_launchers_are_there_by_their_names() -> None:
    assert "aprun" in launch(Launcher("AprunLauncher"))("the command", 2)
