"""Between Parsl and our providers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from parsl.jobs.states import JobState

from farcall_endpoint import blocks
from farcall_endpoint.blocks import Blocks
from farcall_endpoint.breaker import Breaker
from farcall_endpoint.config import EngineConfig
from farcall_endpoint.provider import BlockSpec, BlockState, Provider, ProviderConfig, ProviderError
from farcall_endpoint.roster import Roster, read_roster


class ScriptedProvider(Provider):
    """Its blocks are in the states that the test says."""

    def __init__(self) -> None:
        super().__init__(ProviderConfig())
        self.specs: list[BlockSpec] = []
        self.now: dict[str, BlockState] = {}
        self.asked: list[list[str]] = []
        self.cancelled: list[str] = []
        self.is_down = False

    def submit(self, spec: BlockSpec) -> str:
        if self.is_down:
            raise ProviderError("no more jobs of yours")
        self.specs.append(spec)
        block_id = f"block-{len(self.specs)}"
        self.now[block_id] = BlockState.PENDING
        return block_id

    def states(self, block_ids: Sequence[str]) -> dict[str, BlockState]:
        self.asked.append(list(block_ids))
        if self.is_down:
            raise OSError("the scheduler is down")
        return {block_id: self.now[block_id] for block_id in block_ids}

    def cancel(self, block_ids: Sequence[str]) -> None:
        if self.is_down:
            raise OSError("the scheduler is down")
        self.cancelled += block_ids

    def reason(self, block_id: str) -> str:
        return f"{block_id} waits for resources"

    def output(self, block_id: str) -> str:
        return f"what {block_id} printed"


@pytest.fixture
def provider() -> ScriptedProvider:
    return ScriptedProvider()


def blocks_of(provider: Provider, tmp_path: Path, config: EngineConfig | None = None, **more: Any) -> Blocks:
    return Blocks(
        provider,
        config or EngineConfig(),
        name="ep",
        run_dir=tmp_path,
        working_dir=tmp_path / "work here",
        poll_period_s=1,
        **more,
    )


def test_a_block_is_asked_for_with_all_that_the_configuration_says(provider: ScriptedProvider, tmp_path: Path) -> None:
    config = EngineConfig(nodes_per_block=3, walltime_s=600, worker_init="module load x")

    blocks_of(provider, tmp_path, config).submit("run-the-manager", 1, "parsl.htex.block-7")

    (spec,) = provider.specs
    assert (spec.name, spec.nodes, spec.walltime_s, spec.worker_init) == ("farcall.ep.7", 3, 600, "module load x")
    assert spec.run_dir == tmp_path
    assert spec.command.startswith(f"mkdir -p '{tmp_path}/work here' && cd '{tmp_path}/work here' && ")
    assert "run-the-manager" in spec.command


def test_a_block_that_has_ended_is_not_asked_about_again(provider: ScriptedProvider, tmp_path: Path) -> None:
    ours = blocks_of(provider, tmp_path)
    block_id = ours.submit("command", 1)
    provider.now[block_id] = BlockState.FAILED

    first, second = ours.status([block_id]), ours.status([block_id])

    assert [status.state for status in first + second] == [JobState.FAILED, JobState.FAILED]
    assert first[0].message == "what block-1 printed"
    assert provider.asked == [["block-1"]]
    assert ours.shown() == [{"id": "block-1", "state": "failed", "message": "what block-1 printed"}]


def test_while_the_scheduler_is_down_blocks_are_what_they_were(provider: ScriptedProvider, tmp_path: Path) -> None:
    ours = blocks_of(provider, tmp_path)
    block_id = ours.submit("command", 1)
    provider.now[block_id] = BlockState.RUNNING
    ours.status([block_id])

    provider.is_down = True

    assert [status.state for status in ours.status([block_id])] == [JobState.RUNNING]


def test_a_block_that_nobody_knows_has_not_ended_at_once_but_after_a_while(
    provider: ScriptedProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = blocks_of(provider, tmp_path)
    block_id = ours.submit("command", 1)
    provider.now[block_id] = BlockState.UNKNOWN

    at_first = ours.status([block_id])
    monkeypatch.setattr(blocks, "UNKNOWN_FOR_S", 0.0)
    later = ours.status([block_id])

    assert at_first[0].state == JobState.PENDING
    assert later[0].state == JobState.FAILED
    assert "has not known block block-1" in later[0].message


def test_all_blocks_that_live_can_be_ended(provider: ScriptedProvider, tmp_path: Path) -> None:
    ours = blocks_of(provider, tmp_path)
    dead, alive = ours.submit("command", 1), ours.submit("command", 1)
    provider.now[dead] = BlockState.DONE
    ours.status([dead, alive])

    ours.cancel_all()

    assert provider.cancelled == [alive]


def test_blocks_are_shown_with_the_systems_words_and_of_those_that_failed_the_last(
    provider: ScriptedProvider, tmp_path: Path
) -> None:
    ours = blocks_of(provider, tmp_path)
    ids = [ours.submit("command", 1) for _ in range(5)]
    for block_id, state in zip(ids, ("FAILED", "FAILED", "DONE", "RUNNING", "PENDING"), strict=True):
        provider.now[block_id] = BlockState[state]
    ours.status(ids)

    assert [tuple(block.values()) for block in ours.shown()] == [
        (ids[1], "failed", "what block-2 printed"),
        (ids[3], "running", "block-4 waits for resources"),
        (ids[4], "pending", "block-5 waits for resources"),
    ]


def test_a_block_whose_workers_are_here_is_shown_as_running(provider: ScriptedProvider, tmp_path: Path) -> None:
    ours = blocks_of(provider, tmp_path)
    block_id = ours.submit("command", 1)

    ours.connected([block_id], [block_id])

    assert [block["state"] for block in ours.shown()] == ["running"]


def test_that_no_block_could_be_asked_for_is_said_until_one_works(provider: ScriptedProvider, tmp_path: Path) -> None:
    breaker = Breaker()
    ours = blocks_of(provider, tmp_path, breaker=breaker)
    provider.is_down = True
    with pytest.raises(ProviderError):
        ours.submit("command", 1)
    refused = breaker.trouble

    provider.is_down = False
    block_id = ours.submit("command", 1)
    ours.connected([block_id], [block_id])
    ours.take_ended(has_work=True)

    assert "No block could be asked for: no more jobs of yours" in (refused or "")
    assert breaker.trouble is None


def test_only_blocks_that_ended_by_themselves_before_a_worker_came_count_as_failures(
    provider: ScriptedProvider, tmp_path: Path
) -> None:
    breaker = Breaker(most_failures=1)
    ours = blocks_of(provider, tmp_path, breaker=breaker)
    worked, unwanted = ours.submit("command", 1), ours.submit("command", 1)
    ours.connected([worked], [worked])
    ours.take_ended(has_work=True)
    ours.cancel([unwanted])
    provider.now.update({worked: BlockState.FAILED, unwanted: BlockState.FAILED})
    ours.status([worked, unwanted])

    ended = ours.take_ended(has_work=True)

    assert [(each.worked_s is not None, each.is_cancelled) for each in ended] == [(True, False), (False, True)]
    assert not breaker.is_open


@pytest.mark.parametrize(
    ("quick_s", "has_work", "is_failure"), [(60.0, False, True), (60.0, True, False), (0.0, False, False)]
)
def test_a_block_that_ends_as_soon_as_it_has_workers_has_failed_unless_its_tasks_may_be_to_blame(
    provider: ScriptedProvider,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    quick_s: float,
    has_work: bool,
    is_failure: bool,
) -> None:
    monkeypatch.setattr(blocks, "QUICK_S", quick_s)
    breaker = Breaker(most_failures=1)
    ours = blocks_of(provider, tmp_path, breaker=breaker)
    block_id = ours.submit("command", 1)
    ours.connected([block_id], [block_id])
    ours.take_ended(has_work=False)
    provider.now[block_id] = BlockState.FAILED
    ours.status([block_id])
    ours.connected([block_id], [])

    ours.take_ended(has_work=has_work)

    assert breaker.is_open is is_failure


def test_a_block_whose_workers_are_here_lives_whatever_its_system_knows(
    provider: ScriptedProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "UNKNOWN_FOR_S", 0.0)
    ours = blocks_of(provider, tmp_path)
    block_id = ours.submit("command", 1)
    provider.now[block_id] = BlockState.UNKNOWN
    ours.connected([block_id], [block_id])

    here = ours.status([block_id])
    ours.connected([block_id], [])
    gone = ours.status([block_id])

    assert [here[0].state, gone[0].state] == [JobState.PENDING, JobState.FAILED]


def test_a_block_that_cannot_be_ended_is_not_called_ended(provider: ScriptedProvider, tmp_path: Path) -> None:
    roster = Roster(tmp_path / "blocks.json")
    ours = blocks_of(provider, tmp_path, roster=roster)
    block_id = ours.submit("command", 1)
    provider.is_down = True

    assert ours.cancel([block_id]) == [False]

    assert read_roster(tmp_path / "blocks.json")[block_id].trouble == "the scheduler is down"
