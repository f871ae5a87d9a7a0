"""A block of an endpoint's own shape that only shows whether its nodes could work: for ``farcall-endpoint doctor``."""

from __future__ import annotations

import contextlib
import json
import secrets
import shlex
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .config import EndpointConfig
from .htex import find_our_python, own_addresses
from .probe import facts
from .provider import Access, BlockSpec, BlockState, Finding, Provider, ProviderError

#: How often a batch system is asked for the block, at most.
POLL_S = 1.0

#: A node that has connected sends one short line.
READ_TIMEOUT_S, MOST_BYTES = 10.0, 64 * 1024


@dataclass
class _Block:
    """One that was asked for, and what came of it."""

    block_id: str
    state: BlockState = BlockState.PENDING
    #: What the node said of itself.
    told: Mapping[str, Any] | None = None


def try_a_block(
    config: EndpointConfig, provider: Provider, *, patience_s: float, tell: Callable[[str], None] = lambda _: None
) -> Iterator[Finding]:
    """Ask for one block, wait until a node of it has connected, and end it again.

    ``tell`` hears what the system says while the block waits.
    """
    run_dir = config.directory / "runs" / f"doctor-{secrets.token_hex(4)}"
    run_dir.mkdir(parents=True)
    find_our_python()
    try:
        with _listener(config, provider) as listener:
            yield from _tried(config, provider, listener, run_dir=run_dir, patience_s=patience_s, tell=tell)
    except OSError as error:
        first, last = config.engine.worker_port_range
        yield Finding("ports", False, f"no port from {first} to {last} can be listened on: {error}", _PORTS_REMEDY)
    finally:
        shutil.rmtree(run_dir, ignore_errors=True)
        with contextlib.suppress(OSError):
            # If nothing else has ever run here.
            run_dir.parent.rmdir()


_PORTS_REMEDY = "set engine.worker_port_range to ports that are free and that the nodes may reach"


def _tried(
    config: EndpointConfig,
    provider: Provider,
    listener: socket.socket,
    *,
    run_dir: Any,
    patience_s: float,
    tell: Callable[[str], None],
) -> Iterator[Finding]:
    token, port = secrets.token_hex(8), listener.getsockname()[1]
    try:
        access = provider.give_access(run_dir, [port])
        spec = BlockSpec(
            command=_command(config, provider, access, token, port),
            name=f"farcall.{config.name}.doctor",
            run_dir=run_dir,
            # Not the endpoint's own, whose agent may be running and ends what it does not know.
            owner=f"try{secrets.token_hex(4)}",
            nodes=config.engine.nodes_per_block,
            walltime_s=config.engine.walltime_s,
            worker_init=config.engine.worker_init,
        )
        block = _Block(provider.submit(spec))
    except ProviderError as error:
        yield Finding("a block", False, f"none could be asked for: {error}", _SUBMIT_REMEDY)
        return
    tell(f"asked for block {block.block_id} to see whether its nodes can work; waiting up to {patience_s:g} s")
    try:
        _wait(block, provider, listener, token=token, patience_s=patience_s, tell=tell)
        yield _verdict(block, provider, port=port, patience_s=patience_s)
        if block.told is not None:
            yield from _compared(block.told)
    finally:
        with contextlib.suppress(ProviderError):
            provider.cancel([block.block_id])


_SUBMIT_REMEDY = "correct what the system complains of, under engine.provider"


@contextlib.contextmanager
def _listener(config: EndpointConfig, provider: Provider) -> Iterator[socket.socket]:
    host = config.engine.address or ("0.0.0.0" if provider.needs_network else "127.0.0.1")
    first, last = config.engine.worker_port_range
    with socket.socket() as listener:
        for port in range(last - 1, first - 1, -1):
            try:
                listener.bind((host, port))
                break
            except OSError:
                if port == first:
                    raise
        listener.listen()
        yield listener


def _command(config: EndpointConfig, provider: Provider, access: Access | None, token: str, port: int) -> str:
    if access is not None:
        addresses, port = [access.address], access.ports[port]
    elif config.engine.address or not provider.needs_network:
        addresses = [config.engine.address or "127.0.0.1"]
    else:
        addresses = sorted(own_addresses())
    programs = [config.engine.mpi_launcher] if config.engine.mpi_launcher else []
    words = ["python3", "-P", "-m", f"{__package__}.probe", token, str(port), ",".join(addresses), *programs]
    return shlex.join(words)


def _wait(
    block: _Block,
    provider: Provider,
    listener: socket.socket,
    *,
    token: str,
    patience_s: float,
    tell: Callable[[str], None],
) -> None:
    deadline = time.monotonic() + patience_s
    said = ""
    while block.told is None and time.monotonic() < deadline:
        listener.settimeout(min(POLL_S, max(0.01, deadline - time.monotonic())))
        block.told = _heard(listener, token)
        if block.told is not None:
            return
        with contextlib.suppress(ProviderError):
            block.state = provider.states([block.block_id])[block.block_id]
        if block.state.has_ended:
            # It may have connected just before.
            listener.settimeout(0.01)
            block.told = _heard(listener, token)
            return
        reason = provider.reason(block.block_id)
        if reason and reason != said:
            said = reason
            tell(f"block {block.block_id} is {block.state.value}: {reason}")


def _heard(listener: socket.socket, token: str) -> Mapping[str, Any] | None:
    """What a node says that has connected; None if none has, or somebody else did."""
    try:
        connection, _ = listener.accept()
    except TimeoutError:
        return None
    with connection, contextlib.suppress(OSError, ValueError):
        connection.settimeout(READ_TIMEOUT_S)
        with connection.makefile("rb") as lines:
            told = json.loads(lines.readline(MOST_BYTES))
        if isinstance(told, dict) and told.get("token") == token:
            return told
    return None


def _verdict(block: _Block, provider: Provider, *, port: int, patience_s: float) -> Finding:
    if block.told is not None:
        said = (
            f"node {block.told['hostname']} of block {block.block_id} reached this machine at {block.told['address']}"
        )
        return Finding("a block", True, said)
    if block.state.has_ended:
        printed = provider.output(block.block_id) or "it printed nothing"
        return Finding(
            "a block", False, f"block {block.block_id} {block.state.value}: {printed}", _remedy(printed, port)
        )
    reason = provider.reason(block.block_id) or "the system does not say why"
    return Finding(
        "a block",
        False,
        f"block {block.block_id} is still {block.state.value} after {patience_s:g} s: {reason}",
        "wait longer with --wait SECONDS, or change what is asked for under engine.provider",
    )


def _remedy(printed: str, port: int) -> str:
    if "cannot connect to the agent" in printed:
        return (
            f"let the nodes reach this machine on the ports of engine.worker_port_range (here it was {port}), or say "
            "in engine.address by which address they can"
        )
    if "No module named" in printed or "command not found" in printed or "not found" in printed:
        return (
            "have engine.provider.worker_init make a python3 with farcall-endpoint the first in PATH, such as: "
            "source /path/to/venv/bin/activate"
        )
    return "see what it printed; worker_init and the provider's options decide what a block does"


def _compared(told: Mapping[str, Any]) -> Iterator[Finding]:
    """The node's versions and programs beside ours."""
    ours = facts()
    theirs = ", ".join([f"Python {told['python']}", *(f"{name} {number}" for name, number in told["versions"].items())])
    differing = [
        f"{name} is {number} there and {ours['versions'][name]} here"  # type: ignore[index]
        for name, number in told["versions"].items()
        if name != "dill" and number != ours["versions"][name]  # type: ignore[index]
    ]
    if _minor(told["python"]) != _minor(str(ours["python"])):
        differing.insert(0, f"Python is {told['python']} there and {ours['python']} here")
    remedy = "have worker_init choose an environment with the same minor version of Python and the same packages"
    yield Finding("versions on the node", not differing, "; ".join(differing) or theirs, remedy)
    for program in told["missing"]:
        said = f"{program} is not in PATH on node {told['hostname']}, and starts the ranks of MPI tasks"
        yield Finding("MPI on the node", False, said, "have worker_init make it available, such as: module load mpi")


def _minor(version: str) -> str:
    return version.rpartition(".")[0]
