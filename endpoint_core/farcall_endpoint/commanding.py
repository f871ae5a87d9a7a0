"""What the commands that start, stop and delete an endpoint have in common."""

from __future__ import annotations

import uuid
from pathlib import Path

import typer

from farcall.errors import ConfigurationError, FarcallError, NotFound

from . import directories, pidfile, roster
from .pidfile import State


def complain(sentence: str) -> None:
    typer.echo(f"farcall-endpoint: {sentence}", err=True)


def existing(name: str) -> Path:
    from .loading import config_path

    return config_path(directories.endpoint_directory(name)).parent


def may_start(directory: Path) -> bool:
    """Whether there is something to start; what a killed agent left is cleaned up first."""
    state = pidfile.state_of(directory)
    if state is State.RUNNING:
        holder = pidfile.read_holder(directory)
        where = f" (pid {holder.pid} on {holder.hostname})" if holder else ""
        typer.echo(f"The endpoint {directory.name!r} is already running{where}.")
        return False
    # So that a mistake in it is told at once, and not by way of the log.
    from .loading import load_config

    load_config(directory)
    if state is State.DISCONNECTED:
        from .daemon import clean_up

        clean_up(directory, typer.echo)
    return True


def choose_id(directory: Path, endpoint_uuid: uuid.UUID | None) -> bool:
    """Take the id that was asked for. Returns whether the endpoint had none before."""
    known = directories.read_endpoint_id(directory)
    if endpoint_uuid is None or known == str(endpoint_uuid):
        return False
    if known:
        raise ConfigurationError(f"the endpoint {directory.name!r} has the id {known} already; configure another one")
    directories.write_endpoint_id(directory, str(endpoint_uuid))
    return True


def be_the_agent(directory: Path, ready_fd: int | None) -> int:
    from .daemon import run_agent

    return run_agent(directory, ready_fd)


def start(directory: Path) -> int:
    from . import daemon

    outcome = daemon.start(directory, complain)
    if outcome.is_ready:
        typer.echo(f"The endpoint {directory.name!r} is running; its id is {directories.read_endpoint_id(directory)}")
    elif outcome.exit_code:
        complain(f"the endpoint {directory.name!r} did not start; see {directory / directories.LOG_NAME}")
        for line in outcome.last_words:
            typer.echo(f"    {line}", err=True)
    return outcome.exit_code


def stop(directory: Path) -> bool:
    """Whether its blocks are known to end too; if not, it has been said which are not."""
    from .daemon import stop as stop_agent

    stop_agent(directory, typer.echo)
    left = roster.read_roster(directory / roster.FILE_NAME)
    for block_id, entry in left.items():
        if entry.is_ending and not entry.trouble:
            typer.echo(f"Block {block_id} has been told to end, and had not ended yet.")
        else:
            why = entry.trouble or "the agent ended before it could end its blocks"
            complain(f"block {block_id} could not be ended, and the next start tries again: {why}")
    return all(entry.is_ending and not entry.trouble for entry in left.values())


def resume(directory: Path) -> None:
    """Have blocks asked for again that were in vain. A running agent sees it within some seconds, wherever it is."""
    from . import breaker

    path = directory / breaker.FILE_NAME
    kept = breaker.read_breaker(path)
    path.unlink(missing_ok=True)
    if kept is None:
        typer.echo(
            f"No block of the endpoint {directory.name!r} has come to nothing lately; there is nothing to resume."
        )
        return
    holder = pidfile.read_holder(directory) if pidfile.state_of(directory) is State.RUNNING else None
    if holder is None:
        typer.echo(f"The endpoint {directory.name!r} will ask for blocks again when it is started.")
    else:
        where = (
            "" if holder.is_here else f", on {holder.hostname}, where this is seen as soon as the file system shows it"
        )
        typer.echo(f"The endpoint {directory.name!r} asks for blocks again{where}.")


def delete_in_service(directory: Path, force: bool) -> None:
    from .service import Service

    try:
        endpoint_id = directories.read_endpoint_id(directory)
        if endpoint_id:
            Service.from_settings().delete_endpoint(endpoint_id)
    except NotFound:
        # Gone already, which is what is wanted.
        return
    except FarcallError as error:
        if not force:
            raise
        complain(f"the service was not told: {error}")
