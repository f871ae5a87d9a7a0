"""An image for containers, made of this machine's own files: no registry is asked."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

START_TIMEOUT_S = 60

#: Of a root file system; what else there is comes from the host, by a bind.
PROGRAMS = ("sh", "env", "sleep", "cat", "mkdir", "id", "rm", "ls")
#: In the image and nowhere else.
MARK = "/only-in-the-image"

#: Where rootless runtimes are not set up and nothing manages cgroups, as on machines that run tests.
_CONTAINERS_CONF = """\
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=20000:20000"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""


def host_directories() -> list[str]:
    """What a container has to see of this machine so that its ``python3`` can be ours."""
    checkout = Path(__file__).parents[1]
    found = dict.fromkeys([sys.base_prefix, sys.prefix, str(checkout)])
    return [path for path in found if not any(path != other and path.startswith(f"{other}/") for other in found)]


def make_root(root: Path) -> Path:
    """A root file system: a shell, the libraries that Python and its extensions want, and places for binds."""
    for folder in ("bin", "dev", "etc", "home", "mnt", "proc", "root", "run", "sys", "tmp", "usr/bin", "var/tmp"):
        (root / folder).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    for name in ("resolv.conf", "hosts"):
        (root / "etc" / name).touch()
    (root / MARK.lstrip("/")).touch()
    programs = [Path(found) for name in PROGRAMS if (found := shutil.which(name, path="/bin:/usr/bin"))]
    for program in programs:
        shutil.copy(program, root / "bin" / program.name)
    extensions = [
        path for folder in (sys.base_prefix, sys.prefix) for path in Path(folder, "lib").glob("python3*/**/*.so")
    ]
    for library in _libraries([Path(sys.executable).resolve(), *programs, *extensions]):
        target = root / library.lstrip("/")
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, target)
    for path in host_directories():
        (root / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
    return root


@contextmanager
def podman_image(root: Path, folder: Path, name: str) -> Iterator[dict[str, str]]:
    """The root file system as an image of podman; yields the environment in which podman finds it."""
    configuration = folder / "containers.conf"
    configuration.write_text(_CONTAINERS_CONF)
    environment = {**os.environ, "CONTAINERS_CONF": str(configuration)}
    with subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as tar:
        subprocess.run(
            ["podman", "import", "-", name], stdin=tar.stdout, env=environment, check=True, capture_output=True
        )
    try:
        yield environment
    finally:
        subprocess.run(["podman", "rmi", "--force", name], env=environment, check=True, capture_output=True)


@contextmanager
def docker_image(root: Path, folder: Path, name: str) -> Iterator[dict[str, str]]:
    """The same as an image of docker, with a daemon of its own; yields the environment in which docker finds it."""
    # A socket's path may only be so long.
    with tempfile.TemporaryDirectory(prefix="docker-") as short:
        environment = {**os.environ, "DOCKER_HOST": f"unix://{short}/socket"}
        with (folder / "dockerd.log").open("w") as log:
            daemon = subprocess.Popen(
                [
                    "dockerd",
                    f"--host={environment['DOCKER_HOST']}",
                    f"--data-root={folder / 'docker'}",
                    f"--exec-root={short}/exec",
                    f"--pidfile={short}/pid",
                    "--exec-opt=native.cgroupdriver=cgroupfs",
                    # Nothing of the host's network is changed.
                    "--bridge=none",
                    "--iptables=false",
                    "--ip-forward=false",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while subprocess.run(["docker", "version"], env=environment, check=False, capture_output=True).returncode:
                if daemon.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"dockerd does not start: {(folder / 'dockerd.log').read_text()[-1000:]}")
                time.sleep(0.1)
            with subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as tar:
                subprocess.run(
                    ["docker", "import", "-", name], stdin=tar.stdout, env=environment, check=True, capture_output=True
                )
            yield environment
        finally:
            daemon.terminate()
            daemon.wait(START_TIMEOUT_S)
            # It leaves the network of containers that use the host's own.
            subprocess.run(["umount", f"{short}/exec/netns/default"], check=False, capture_output=True)


def _libraries(files: Iterable[Path]) -> set[str]:
    told = subprocess.run(["ldd", *files], check=False, capture_output=True, text=True).stdout
    return set(re.findall(r"(/\S+)(?= \(0x)", told))
