"""Blocks that nobody knows any more are found and ended."""

from __future__ import annotations

from pathlib import Path

import pytest
from scheduling import System, SystemProvider

from farcall_endpoint import custody as custody_module
from farcall_endpoint.breaker import Breaker
from farcall_endpoint.custody import Custody
from farcall_endpoint.provider import BlockState
from farcall_endpoint.roster import Roster, read_roster


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(custody_module, "time", clock)
    return clock


@pytest.fixture
def system() -> System:
    return System()


@pytest.fixture
def breaker() -> Breaker:
    return Breaker(most_failures=2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "blocks.json"


def custody_of(system: System, path: Path, breaker: Breaker) -> Custody:
    return Custody(SystemProvider(system), Roster(path), breaker, owner="me")


def test_blocks_of_an_earlier_agent_are_ended_and_those_of_others_are_not(
    clock: Clock, system: System, breaker: Breaker, path: Path
) -> None:
    ours, theirs = system.submit("me"), system.submit("you")

    assert custody_of(system, path, breaker).look([])

    assert system.living == [theirs]
    assert ours in read_roster(path), "it may take the system a while"


def test_one_that_has_ended_is_forgotten_when_that_is_seen(
    clock: Clock, system: System, breaker: Breaker, path: Path
) -> None:
    system.submit("me")
    custody = custody_of(system, path, breaker)
    custody.look([])

    clock.now += custody_module.RETRY_S
    custody.look([])

    assert not path.exists()


def test_blocks_that_live_are_left_alone(clock: Clock, system: System, breaker: Breaker, path: Path) -> None:
    known, lost = system.submit("me"), system.submit("me")

    custody_of(system, path, breaker).look([known])

    assert system.living == [known]
    assert system.jobs[lost].state is BlockState.CANCELLED


def test_until_the_system_says_what_is_left_no_block_may_be_asked_for(
    clock: Clock, system: System, breaker: Breaker, path: Path
) -> None:
    system.submit("me")
    system.is_down = True
    custody = custody_of(system, path, breaker)
    at_first, said = custody.look([]), custody.troubles
    system.is_down = False
    too_soon = custody.look([])
    clock.now += custody_module.FIRST_PAUSE_S

    assert (at_first, too_soon, custody.look([])) == (False, False, True)
    assert "the scheduler does not answer" in said[0]
    assert custody.troubles == []
    assert system.living == []


def test_one_that_cannot_be_ended_is_said_and_tried_again(
    clock: Clock, system: System, breaker: Breaker, path: Path
) -> None:
    block_id = system.submit("me")
    system.keeps_jobs = "you are not its owner"
    custody = custody_of(system, path, breaker)
    may_ask = custody.look([])
    said = custody.troubles
    system.keeps_jobs = ""
    clock.now += custody_module.RETRY_S

    custody.look([])

    assert may_ask
    assert "could not be ended" in said[0]
    assert "you are not its owner" in said[0]
    assert system.jobs[block_id].state is BlockState.CANCELLED
    assert custody.troubles == []


@pytest.mark.parametrize("state", [BlockState.PENDING, BlockState.RUNNING, BlockState.FAILED])
def test_agents_that_die_again_and_again_before_their_blocks_work_come_to_an_end(
    state: BlockState, clock: Clock, system: System, breaker: Breaker, path: Path
) -> None:
    for _ in range(2):
        custody_of(system, path, breaker).look([])
        # The agent asks for a block, and dies.
        Roster(path).add(block_id := system.submit("me"))
        system.jobs[block_id].state = state
    custody_of(system, path, breaker).look([])

    assert breaker.is_open


def test_blocks_that_have_worked_or_were_told_to_end_count_for_nothing(
    clock: Clock, system: System, breaker: Breaker, path: Path
) -> None:
    roster = Roster(path)
    for _ in range(4):
        roster.add(system.submit("me"))
    roster.connected(["1", "2"])
    roster.ending(["3", "4"])

    custody_of(system, path, breaker).look([])

    assert system.living == []
    assert breaker.trouble is None


def test_a_block_that_the_system_has_lost_is_forgotten_after_it_said_so(
    clock: Clock, system: System, breaker: Breaker, path: Path
) -> None:
    Roster(path).add("17")

    custody_of(system, path, breaker).look([])

    assert not path.exists()
    assert breaker.trouble is None
