"""Functions come back out of containers, and what keeps a container from starting reaches who waits."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import images
import psutil
import pytest
from running import RunningService, running_endpoint, running_service
from servers import needs

from farcall import Client, Executor
from farcall.errors import TaskExecutionFailed

CONFIGURATION = """\
heartbeat_period: 2
engine:
  max_workers_per_node: 2
  container_type: {kind}
  container_uri: {image}
  container_cmd_options: >-
    {options}
  job_status_kwargs: {{max_idletime: 300, strategy_period: 1}}
  provider: {{type: local, init_blocks: 1, min_blocks: 1, max_blocks: 1}}
"""
IMAGE = "localhost/farcall-test:1"
PATH = f"{Path(images.sys.prefix, 'bin')}:/usr/bin:/bin"


def inside(mark):
    import os
    from pathlib import Path

    return Path(mark).exists(), str(Path.cwd()), os.getpid()


def missing(program: str) -> str | None:
    if platform.system() != "Linux" or shutil.which(program) is None:
        return f"{program} is not installed"
    return None if os.getuid() == 0 or program == "ch-run" else f"{program} is tried as root only"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return images.make_root(tmp_path_factory.mktemp("image") / "root")


@pytest.fixture(scope="module")
def place(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service whose endpoints find the images of podman and docker, as far as these are there."""
    folder = tmp_path_factory.mktemp("containers")
    with ExitStack() as stack:
        extra = {"USER": os.environ.get("USER", "root")}
        if missing("podman") is None:
            environment = stack.enter_context(images.podman_image(root, folder, IMAGE))
            extra["CONTAINERS_CONF"] = environment["CONTAINERS_CONF"]
        if missing("dockerd") is None:
            environment = stack.enter_context(images.docker_image(root, folder, IMAGE))
            extra["DOCKER_HOST"] = environment["DOCKER_HOST"]
        yield stack.enter_context(running_service(folder / "home", **extra))


def configuration(kind: str, image: str, more: str = "") -> str:
    if kind in ("podman", "docker"):
        binds = " ".join(f"-v {path}:{path}" for path in images.host_directories())
        options = f"{binds} --pull=never --env PATH={PATH}"
    else:
        binds = " ".join(f"-b {path}:{path}" for path in images.host_directories())
        options = f"{binds} --set-env=PATH={PATH}"
    return CONFIGURATION.format(kind=kind, image=image, options=f"{options} {more}")


def client_of(service: RunningService) -> Client:
    return Client(service_url=service.url, token=service.token)


@pytest.mark.parametrize(("kind", "program"), [("podman", "podman"), ("docker", "dockerd"), ("charliecloud", "ch-run")])
def test_a_function_runs_in_the_image_and_nothing_of_it_is_left(
    place: RunningService, root: Path, kind: str, program: str
) -> None:
    needs(program, lambda: missing(program))
    image = str(root) if kind == "charliecloud" else IMAGE
    with running_endpoint(place, f"in-{kind}", configuration(kind, image)) as endpoint:
        with Executor(endpoint.id, client=client_of(place)) as executor:
            marked, directory, pid = executor.submit(inside, images.MARK).result(timeout=120)
        workers = [each for each in psutil.process_iter() if f"in-{kind}" in " ".join(_command(each))]
        assert workers

    assert marked
    assert directory == str(endpoint.directory / "tasks_working_dir")
    if kind != "charliecloud":
        # It has a space of process ids to itself.
        assert pid < 1000
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive


@pytest.mark.parametrize(
    ("image", "more", "said"),
    [
        ("localhost/no-such-image:1", "", "no-such-image"),
        (IMAGE, "--env PATH=/bin", "python3: not found"),
    ],
)
def test_what_podman_says_reaches_the_one_who_waits(place: RunningService, image: str, more: str, said: str) -> None:
    needs("podman", lambda: missing("podman"))
    name = f"bad-{len(image)}-{len(more)}"
    with (
        running_endpoint(place, name, configuration("podman", image, more)) as endpoint,
        Executor(endpoint.id, client=client_of(place)) as executor,
        pytest.raises(TaskExecutionFailed) as caught,
    ):
        executor.submit(inside, images.MARK).result(timeout=120)

    assert said in str(caught.value)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
