"""Look for what would keep an endpoint from working, and say how to mend it."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from farcall.errors import FarcallError, ServiceUnavailable, Unauthenticated

from . import directories, journalfile, loading, pidfile, plugins
from .config import EndpointConfig
from .pidfile import State
from .provider import Finding
from .service import Service
from .trial import try_a_block

#: On a disk with less room than this a journal soon cannot be written.
LEAST_FREE_BYTES = 1024 * 1024


def examine(
    directory: Path,
    service: Callable[[], Service],
    *,
    patience_s: float | None,
    tell: Callable[[str], None] = lambda _: None,
) -> Iterator[Finding]:
    """Look at one thing after the other; each is yielded as soon as it is known.

    A block may take ``patience_s`` to begin; None asks for none. ``tell`` hears how it gets on.
    """
    yield _versions()
    try:
        config = loading.load_config(directory)
    except FarcallError as error:
        yield Finding("configuration", False, str(error), f"correct {directory}, then look again")
    else:
        yield Finding("configuration", True, str(loading.config_path(directory)))
        yield _journal(directory)
        yield from _provider(config, patience_s, tell)
    yield from _service(directory, service)


def _versions() -> Finding:
    names = ("farcall", "farcall-endpoint", "parsl", "dill")
    said = ", ".join([f"Python {platform.python_version()}", *(f"{name} {metadata.version(name)}" for name in names)])
    return Finding("versions", True, said)


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


def _provider(config: EndpointConfig, patience_s: float | None, tell: Callable[[str], None]) -> Iterator[Finding]:
    try:
        provider = plugins.build_provider(config.provider)
    except FarcallError as error:
        remedy = "see farcall-endpoint providers, and the options under engine.provider"
        yield Finding("provider", False, str(error), remedy)
        return
    try:
        kind = type(provider)
        yield Finding("provider", True, f"{config.provider.type} ({kind.__module__}.{kind.__name__})")
        all_is_well = True
        for finding in provider.examine():
            all_is_well = all_is_well and finding.is_well
            yield finding
        # Where a command is missing, a block would only say so again.
        if all_is_well and patience_s is not None:
            yield from try_a_block(config, provider, patience_s=patience_s, tell=tell)
    finally:
        provider.close()


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
