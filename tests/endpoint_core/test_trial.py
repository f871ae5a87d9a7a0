"""A block that only shows whether nodes could work: what doctor says of those that can, and of all the others."""

from __future__ import annotations

import dataclasses
import json
import shlex
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from farcall_endpoint import probe
from farcall_endpoint.config import EndpointConfig, EngineConfig
from farcall_endpoint.provider import Access, BlockSpec, BlockState, Finding, Provider, ProviderConfig, ProviderError
from farcall_endpoint.trial import try_a_block
from farcall_provider_local import LocalConfig, LocalProvider


class Elsewhere(Provider):
    """Its one block says to whoever asked for it what the test wants."""

    needs_network = False

    def __init__(
        self,
        say: Callable[[str, int], None] = lambda token, port: None,
        *,
        state: BlockState = BlockState.PENDING,
        why: str = "",
    ) -> None:
        super().__init__(ProviderConfig())
        self.say, self.state, self.why = say, state, why
        self.cancelled: list[str] = []

    def submit(self, spec: BlockSpec) -> str:
        self.spec = spec
        words = shlex.split(spec.command)
        token, port = words[words.index("farcall_endpoint.probe") + 1 :][:2]
        self.say(token, int(port))
        return "17"

    def states(self, block_ids: Sequence[str]) -> dict[str, BlockState]:
        return dict.fromkeys(block_ids, self.state)

    def cancel(self, block_ids: Sequence[str]) -> None:
        self.cancelled += block_ids

    def reason(self, block_id: str) -> str:
        return self.why


class Walled(LocalProvider):
    """Its nodes are told of a port where nobody listens."""

    def give_access(self, run_dir: Path, ports: Sequence[int]) -> Access:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            return Access("127.0.0.1", dict.fromkeys(ports, closed.getsockname()[1]), str(run_dir))


@pytest.fixture
def local() -> Iterator[LocalProvider]:
    provider = LocalProvider(LocalConfig())
    yield provider
    provider.close()


def config_in(directory: Path, **engine: Any) -> EndpointConfig:
    return EndpointConfig(name="mine", directory=directory, engine=EngineConfig(**engine))


def tried(config: EndpointConfig, provider: Provider, *, patience_s: float = 60) -> dict[str, Finding]:
    return {finding.subject: finding for finding in try_a_block(config, provider, patience_s=patience_s)}


def connects_as(**changes: Any) -> Callable[[str, int], None]:
    """A node that tells of itself as a real one does, apart from these."""

    def say(token: str, port: int) -> None:
        told = {"token": token, "address": "127.0.0.1", **probe.facts(), **changes}
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(json.dumps(told).encode() + b"\n")

    return say


def test_a_node_that_can_work_is_found_well_and_nothing_is_left_of_it(tmp_path: Path, local: LocalProvider) -> None:
    found = tried(config_in(tmp_path), local)

    assert all(finding.is_well for finding in found.values())
    assert "reached this machine at 127.0.0.1" in found["a block"].said
    assert "farcall-endpoint" in found["versions on the node"].said
    assert list(tmp_path.iterdir()) == []


def test_a_node_whose_python_lacks_us_says_so_in_its_own_words(tmp_path: Path, local: LocalProvider) -> None:
    bare = tmp_path / "bin"
    bare.mkdir()
    (bare / "python3").write_text("#!/bin/sh\necho \"No module named 'farcall_endpoint'\" >&2; exit 1\n")
    (bare / "python3").chmod(0o755)

    found = tried(config_in(tmp_path, worker_init=f"PATH={bare}:$PATH"), local)

    assert not found["a block"].is_well
    assert "No module named 'farcall_endpoint'" in found["a block"].said
    assert "worker_init" in found["a block"].remedy


def test_a_node_that_cannot_reach_the_agent_says_where_it_tried(tmp_path: Path) -> None:
    provider = Walled(LocalConfig())

    found = tried(config_in(tmp_path), provider)
    provider.close()

    assert "cannot connect to the agent: 127.0.0.1 port" in found["a block"].said
    assert "worker_port_range" in found["a block"].remedy


def test_a_block_that_does_not_begin_is_told_of_with_the_systems_reason_and_ended(tmp_path: Path) -> None:
    provider = Elsewhere(why="(Priority)")
    heard: list[str] = []

    found = list(try_a_block(config_in(tmp_path), provider, patience_s=0.05, tell=heard.append))

    assert [finding.said for finding in found] == ["block 17 is still pending after 0.05 s: (Priority)"]
    assert heard[-1] == "block 17 is pending: (Priority)"
    assert provider.cancelled == ["17"]


def test_a_refused_block_is_told_of_with_what_the_system_said(tmp_path: Path) -> None:
    def refuse(token: str, port: int) -> None:
        raise ProviderError("invalid partition specified: nosuch")

    found = tried(config_in(tmp_path), Elsewhere(refuse))

    assert "invalid partition specified: nosuch" in found["a block"].said


def test_the_block_has_the_shape_of_the_endpoints_own_and_another_owner(tmp_path: Path) -> None:
    provider = Elsewhere(connects_as())

    tried(config_in(tmp_path, nodes_per_block=3, walltime_s=600), provider)

    assert (provider.spec.nodes, provider.spec.walltime_s) == (3, 600)
    assert provider.spec.owner.startswith("try")
    assert len(provider.spec.owner) <= 12


def test_another_python_and_another_parsl_on_the_node_are_told_side_by_side(tmp_path: Path) -> None:
    ours = probe.facts()
    versions = {**ours["versions"], "parsl": "2020.1.1", "dill": "0.0"}  # type: ignore[dict-item]

    found = tried(config_in(tmp_path), Elsewhere(connects_as(python="3.6.8", versions=versions)))

    said = found["versions on the node"].said
    assert f"Python is 3.6.8 there and {ours['python']} here" in said
    assert "parsl is 2020.1.1 there" in said
    # What one dill has written another can read, or says that it cannot.
    assert "dill" not in said


def test_a_node_without_the_program_that_starts_ranks_is_told_of(tmp_path: Path, local: LocalProvider) -> None:
    found = tried(config_in(tmp_path, mpi_launcher="aprun"), local)

    assert "aprun is not in PATH on node" in found["MPI on the node"].said


def test_whoever_else_connects_is_not_taken_for_the_node(tmp_path: Path) -> None:
    def two_connect(token: str, port: int) -> None:
        for garbage in (b"GET / HTTP/1.0\r\n\r\n", b'{"token": "another"}\n', b"\xff\n"):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(garbage)
        connects_as()(token, port)

    found = tried(config_in(tmp_path), Elsewhere(two_connect))

    assert found["a block"].is_well


def test_without_a_free_port_the_setting_is_named(tmp_path: Path, local: LocalProvider) -> None:
    with socket.socket() as first:
        first.bind(("127.0.0.1", 0))
        port = first.getsockname()[1]
        engine = dataclasses.replace(EngineConfig(), worker_port_range=(port, port + 1))

        found = tried(EndpointConfig(name="mine", directory=tmp_path, engine=engine), local)

    assert "worker_port_range" in found["ports"].remedy
