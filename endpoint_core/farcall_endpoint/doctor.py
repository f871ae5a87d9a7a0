"""Look for what would keep an endpoint from working, and say how to mend it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from farcall.errors import FarcallError, ServiceUnavailable, Unauthenticated

from . import directories, journalfile, loading, pidfile, plugins
from .pidfile import State
from .provider import Finding
from .service import Service

#: How long the workers' Python may take to import what it needs; a shared file system can be slow.
PROBE_TIMEOUT_S = 60

#: On a disk with less room than this a journal soon cannot be written.
LEAST_FREE_BYTES = 1024 * 1024


def examine(directory: Path, service: Callable[[], Service]) -> Iterator[Finding]:
    """Look at one thing after the other; each is yielded as soon as it is known."""
    yield _versions()
    yield from _configuration(directory)
    yield _journal(directory)
    yield _worker_environment()
    yield from _service(directory, service)


def _versions() -> Finding:
    names = ("farcall", "farcall-endpoint", "parsl", "dill")
    said = ", ".join([f"Python {platform.python_version()}", *(f"{name} {metadata.version(name)}" for name in names)])
    return Finding("versions", True, said)


def _configuration(directory: Path) -> Iterator[Finding]:
    try:
        config = loading.load_config(directory)
    except FarcallError as error:
        yield Finding("configuration", False, str(error), f"correct {directory}, then look again")
        return
    yield Finding("configuration", True, str(loading.config_path(directory)))
    try:
        provider, _ = plugins.provider_config(config.provider)
        yield Finding("provider", True, f"{config.provider.type} ({provider.__module__}.{provider.__name__})")
    except FarcallError as error:
        remedy = "see farcall-endpoint providers, and the options under engine.provider"
        yield Finding("provider", False, str(error), remedy)


def _journal(directory: Path) -> Finding:
    path = directory / "journal.sqlite"
    free = shutil.disk_usage(directory).free
    if free < LEAST_FREE_BYTES:
        said = f"{free // 1024} KiB are free on the disk of {path}"
        return Finding("journal", False, said, "make room there: the endpoint takes no tasks that it cannot write down")
    if not path.exists():
        return Finding("journal", True, "there is none yet: the first start makes it")
    if pidfile.state_of(directory) is State.RUNNING:
        return Finding("journal", True, f"{path} is in use")
    try:
        unfinished, unsent = journalfile.look_at(path)
    except FarcallError as error:
        return Finding("journal", False, str(error), f"keep a copy of {path}, then move it away")
    return Finding("journal", True, f"{path}: {unfinished} tasks unfinished, {unsent} results not sent")


def _worker_environment() -> Finding:
    # The agent puts the directory of its interpreter first, as is done here.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    probe = "import farcall_endpoint.pool, dill, platform; print(platform.python_version(), 'dill', dill.__version__)"
    try:
        done = subprocess.run(
            ["python3", "-P", "-c", probe],
            env={**os.environ, "PATH": path},
            check=False,
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("workers", False, f"python3 cannot be run: {error}", "put Python 3.11 or newer in PATH")
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        return Finding(
            "workers",
            False,
            f"python3 in PATH cannot import farcall_endpoint: {said}",
            f"install it where the workers' python3 is: {sys.executable} -m pip install farcall-endpoint",
        )
    return Finding("workers", True, f"Python {done.stdout.strip()}")


def _service(directory: Path, make_service: Callable[[], Service]) -> Iterator[Finding]:
    try:
        service = make_service()
        caller = service.whoami()
    except ServiceUnavailable as error:
        yield Finding("service", False, str(error), "start it (farcall-webservice serve), or set FARCALL_SERVICE_URL")
        return
    except Unauthenticated as error:
        yield Finding("service", False, str(error), "get a token, then: farcall-endpoint login")
        return
    except FarcallError as error:
        yield Finding("service", False, str(error), "see the log of the service")
        return
    yield Finding("service", True, f"{service.url} knows you as {caller.get('name')}")
    try:
        service.health()
        yield Finding("database and broker", True, "the service reaches both")
    except FarcallError as error:
        yield Finding("database and broker", False, str(error), "see the log of the service")
    yield _registration(directory, service)


def _registration(directory: Path, service: Service) -> Finding:
    try:
        endpoint_id = directories.read_endpoint_id(directory)
        if endpoint_id is None:
            return Finding("registration", True, "not yet: the first start will register the endpoint")
        status = service.endpoint_status(endpoint_id).get("status")
    except FarcallError as error:
        remedy = f"if it was deleted there, remove {directory}/endpoint.json to be registered as a new one"
        return Finding("registration", False, str(error), remedy)
    # Online means that reports of the agent came through the broker, from here.
    if pidfile.state_of(directory) is State.RUNNING and status != "online":
        remedy = f"the agent does not reach the broker: see farcall-endpoint logs {directory.name}"
        return Finding("registration", False, f"{endpoint_id} runs here, and the service calls it {status}", remedy)
    return Finding("registration", True, f"{endpoint_id} is {status}")
