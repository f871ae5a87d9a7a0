"""What container runtimes are told: the programs are stood in for by one that writes down its arguments."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from farcall.errors import ConfigurationError
from farcall_endpoint.containers import Container, container_of
from farcall_endpoint.loading import read_config_file

RECORDER = """\
#!{python}
import json, subprocess, sys
from pathlib import Path
Path({log!r}).write_text(json.dumps(sys.argv))
sys.exit(subprocess.run(sys.argv[sys.argv.index("sh"):]).returncode)
"""

VARIABLES = ["SLURM_JOB_END_TIME", "SLURM_JOB_NODELIST", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"]
ENVIRONMENT = [f"--env={name}" for name in VARIABLES]


def run_recorded(container: Container, program: str, tmp_path: Path, command: str = "exit 3") -> tuple[list[str], int]:
    """The arguments that the runtime was given, and the exit code that came back through it."""
    log = tmp_path / "arguments.json"
    (tmp_path / program).write_text(RECORDER.format(python=sys.executable, log=str(log)))
    (tmp_path / program).chmod(0o755)
    line = container.around(command, ["/run dir", "/work"])
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, env=environment, check=False)
    program_and_arguments = json.loads(log.read_text())
    return program_and_arguments[1:], done.returncode


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (
            "docker",
            ["run", "--rm", "--network=host", f"--user={os.getuid()}:{os.getgid()}", "--env=HOME=/tmp"],
        ),
        ("podman", ["run", "--rm", "--network=host"]),
        ("podman-hpc", ["run", "--rm", "--network=host"]),
    ],
)
def test_docker_and_its_kin_run_an_image_with_the_blocks_network_and_directories(
    kind: str, expected: list[str], tmp_path: Path
) -> None:
    arguments, code = run_recorded(Container(kind, "repo/image:1", "--gpus all"), kind, tmp_path)

    image = arguments.index("repo/image:1")
    assert arguments[:image] == [
        *expected,
        f"--workdir={tmp_path}",
        *ENVIRONMENT,
        "--volume=/run dir:/run dir",
        "--volume=/work:/work",
        "--gpus",
        "all",
    ]
    assert arguments[image + 1 : image + 3] == ["sh", "-c"]
    assert code == 3


@pytest.mark.parametrize("kind", ["apptainer", "singularity"])
def test_apptainer_and_singularity_execute_in_an_image_file(kind: str, tmp_path: Path) -> None:
    arguments, code = run_recorded(Container(kind, "/images/my image.sif", "--nv"), kind, tmp_path)

    assert arguments[:-3] == [
        "exec",
        f"--pwd={tmp_path}",
        "--bind=/run dir:/run dir",
        "--bind=/work:/work",
        "--nv",
        "/images/my image.sif",
    ]
    assert code == 3


def test_shifter_is_told_of_no_directories_as_it_brings_the_sites_own(tmp_path: Path) -> None:
    arguments, code = run_recorded(Container("shifter", "docker:user/image:1", "--module=gpu"), "shifter", tmp_path)

    assert arguments[:-3] == ["--image=docker:user/image:1", f"--workdir={tmp_path}", "--module=gpu"]
    assert code == 3


def test_charliecloud_runs_in_a_directory(tmp_path: Path) -> None:
    arguments, code = run_recorded(Container("charliecloud", "/images/tree", "-W"), "ch-run", tmp_path)

    assert arguments[:-3] == [
        "--bind=/run dir:/run dir",
        "--bind=/work:/work",
        f"--cd={tmp_path}",
        "-W",
        "/images/tree",
        "--",
    ]
    assert code == 3


@pytest.mark.parametrize(
    "options", ["wrap --dir {RUN_DIR} -- {COMMAND}", "wrap --dir {EXECUTOR_RUNDIR} -- {EXECUTOR_LAUNCH_CMD}"]
)
def test_a_command_of_ones_own_is_given_the_command_and_the_directory(options: str, tmp_path: Path) -> None:
    arguments, code = run_recorded(Container("custom", "", options), "wrap", tmp_path)

    assert arguments == ["--dir", "/run dir", "--", "sh", "-c", "exit 3"]
    assert code == 3


def test_a_signal_to_the_first_process_of_a_container_reaches_the_command(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    command = f"{sys.executable} -c 'import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(9)); " + (
        f'open("{ready}", "w").close(); signal.pause()\''
    )
    line = Container("podman", "image").around(command, ["/"])
    first = line.partition(" image ")[2]

    process = subprocess.Popen(f"exec {first}", shell=True)
    with ready.open() as opened:
        opened.read()
    process.send_signal(signal.SIGTERM)

    assert process.wait(timeout=60) == 9


@pytest.mark.parametrize(
    ("kind", "uri", "options", "said"),
    [
        ("docker", None, "", "needs a container_uri"),
        (None, "image", "", "need a container_type"),
        ("custom", None, "wrap", "must have {COMMAND} in it"),
    ],
)
def test_what_does_not_fit_together_is_refused(kind: str | None, uri: str | None, options: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        container_of(kind, uri, options)


def test_a_configuration_with_an_unknown_runtime_is_told_those_that_are_known(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("engine:\n  container_type: dokcer\n  container_uri: image\n")

    with pytest.raises(ConfigurationError, match=r"line 2: engine.container_type: expected one of docker, podman"):
        read_config_file(path, tmp_path)


def test_a_configuration_without_an_image_says_which_key_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("engine:\n  container_type: podman\n")

    with pytest.raises(ConfigurationError, match="container_type podman needs a container_uri"):
        read_config_file(path, tmp_path)
