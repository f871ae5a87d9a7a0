"""Parsl's providers as providers of an endpoint: its own for this machine, and its one for Grid Engine."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from farcall_provider_parsl import ParslConfig, ParslProvider

from farcall.errors import FarcallError
from farcall_endpoint.config import ProviderSection
from farcall_endpoint.plugins import build_provider
from farcall_endpoint.provider import BlockSpec, BlockState, Provider, ProviderError, SystemUnavailable
from farcall_endpoint.testing import ProviderContract

#: As of Grid Engine: what was submitted, and what the next question is answered with, are files beside them.
COMMANDS = {
    "qsub": 'cp "$4" {folder}/script; echo "$@" > {folder}/asked; cat {folder}/refusal >&2 && exit 1; echo 7',
    "qstat": "cat {folder}/queue",
    "qdel": 'echo "$@" >> {folder}/deleted',
}
QUEUE = """\
job-ID  prior   name       user         state submit/start at     queue                          slots ja-task-ID
-----------------------------------------------------------------------------------------------------------------
      7 0.55500 farcall    alice        {state}    11/20/2026 12:48:37 all.q@n1                           1
"""


class TestParslsLocalProvider(ProviderContract):
    #: Parsl's own takes no spaces.
    odd_directory = "today"

    def make_provider(self) -> Provider:
        return ParslProvider(ParslConfig())


@pytest.fixture
def grid_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in COMMANDS.items():
        (folder / name).write_text(f"#!/bin/sh\n{body.format(folder=folder)}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


@pytest.fixture
def provider(grid_engine: Path) -> Provider:
    options = {"class": "parsl.providers.GridEngineProvider", "options": {"queue": "long"}}
    return build_provider(ProviderSection("parsl", options))


def spec(run_dir: Path, command: str = "echo something; exit 3") -> BlockSpec:
    return BlockSpec(command=command, name="farcall.lab.0", run_dir=run_dir, walltime_s=90, worker_init="A=1")


def queue(grid_engine: Path, state: str) -> None:
    (grid_engine / "queue").write_text(QUEUE.format(state=state) if state else "")


def test_options_walltime_and_worker_init_reach_the_script(
    provider: Provider, grid_engine: Path, tmp_path: Path
) -> None:
    block_id = provider.submit(spec(tmp_path))

    script = (grid_engine / "script").read_text()
    assert block_id == "7"
    assert (grid_engine / "asked").read_text().startswith("-q long -terse")
    assert "h_rt=00:01:30" in script
    assert "A=1\necho something; exit 3" in script


def test_states_are_those_of_the_system(provider: Provider, grid_engine: Path, tmp_path: Path) -> None:
    block_id = provider.submit(spec(tmp_path))

    queue(grid_engine, "qw")
    assert provider.states([block_id, "8"]) == {block_id: BlockState.PENDING, "8": BlockState.UNKNOWN}
    queue(grid_engine, "r ")
    assert provider.states([block_id]) == {block_id: BlockState.RUNNING}


def test_a_job_that_is_not_listed_any_more_is_not_done_until_its_exit_code_says_so(
    provider: Provider, grid_engine: Path, tmp_path: Path
) -> None:
    block_id = provider.submit(spec(tmp_path))

    queue(grid_engine, "")
    assert provider.states([block_id]) == {block_id: BlockState.UNKNOWN}
    [output] = re.findall(r"> (\S+\.out) 2>&1", (grid_engine / "script").read_text())
    Path(output).with_suffix(".exit").write_text("0\n")
    assert provider.states([block_id]) == {block_id: BlockState.DONE}


def test_a_cancelled_job_is_deleted(provider: Provider, grid_engine: Path, tmp_path: Path) -> None:
    block_id = provider.submit(spec(tmp_path))
    queue(grid_engine, "r ")

    provider.cancel([block_id, "8"])
    queue(grid_engine, "")

    assert (grid_engine / "deleted").read_text() == "7\n"
    assert provider.states([block_id]) == {block_id: BlockState.CANCELLED}


def test_a_refusal_is_told_in_the_words_of_the_system(provider: Provider, grid_engine: Path, tmp_path: Path) -> None:
    (grid_engine / "refusal").write_text('Job was rejected because job requests unknown queue "long"')

    with pytest.raises(ProviderError, match=r"took no job: .*requests unknown queue") as caught:
        provider.submit(spec(tmp_path))

    assert not isinstance(caught.value, SystemUnavailable)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"class": "parsl.providers.NoSuchProvider"}, "there is no class 'parsl.providers.NoSuchProvider'"),
        ({"class": "parsl.providers"}, "is no ExecutionProvider of Parsl"),
        ({"options": {"launcher": "srun"}}, "set engine.provider.launcher"),
        ({"options": {"quue": "long"}}, "farcall-provider-parsl 0.1.0, cannot be used: TypeError: .*quue"),
        ({"options": 7}, "expected options by name, got 7"),
    ],
)
def test_what_cannot_be_is_told(options: dict[str, object], said: str) -> None:
    with pytest.raises(FarcallError, match=said):
        build_provider(ProviderSection("parsl", options))


def test_another_walltime_for_each_block(provider: Provider, grid_engine: Path, tmp_path: Path) -> None:
    provider.submit(spec(tmp_path))

    provider.submit(dataclasses.replace(spec(tmp_path), walltime_s=7200))

    assert "h_rt=02:00:00" in (grid_engine / "script").read_text()
