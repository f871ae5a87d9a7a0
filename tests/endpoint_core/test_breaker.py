"""When blocks stop being asked for, and when they are again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from farcall_endpoint import breaker as breaker_module
from farcall_endpoint.breaker import Breaker, fingerprint, read_breaker
from farcall_endpoint.config import EndpointConfig, EngineConfig, ProviderSection


class Clock:
    """A monotonic clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_700_000_000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(breaker_module, "time", clock)
    return clock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "breaker.json"


def open_breaker(path: Path | None = None, **settings: Any) -> Breaker:
    breaker = Breaker(path, name="ep", **settings)
    for number in range(3):
        breaker.failed(f"words of {number}")
    return breaker


def test_three_failures_in_a_row_end_the_asking_and_it_is_said_how_to_go_on(clock: Clock) -> None:
    breaker = open_breaker()
    clock.now += 1_000_000

    assert not breaker.allows_blocks()
    for said in (breaker.trouble, breaker.verdict):
        assert "3" in (said or "")
        assert "words of 2" in (said or "")
        assert "farcall-endpoint resume ep" in (said or "")


def test_after_each_failure_the_next_block_comes_later(clock: Clock) -> None:
    breaker = Breaker(most_failures=100)
    pauses = []
    for _ in range(10):
        breaker.failed("words")
        began = clock.now
        while not breaker.allows_blocks():
            clock.now += 1
        pauses.append(clock.now - began)

    assert pauses == [3, 6, 12, 24, 48, 96, 192, 300, 300, 300]


def test_a_worker_that_connects_makes_up_for_earlier_failures(clock: Clock, path: Path) -> None:
    breaker = open_breaker(path)

    breaker.worked()

    assert breaker.allows_blocks()
    assert breaker.trouble is None
    assert not path.exists()


def test_refusals_while_others_work_make_the_next_later_and_never_the_last(clock: Clock) -> None:
    breaker = Breaker()
    for _ in range(20):
        breaker.failed("the limit of your jobs is reached", others_work=True)
    paused = breaker.allows_blocks()
    clock.now += breaker_module.LONGEST_PAUSE_S

    assert not paused
    assert breaker.allows_blocks()


def test_a_system_that_cannot_be_asked_is_asked_again_for_ever_with_longer_pauses(clock: Clock) -> None:
    breaker = Breaker()
    for _ in range(100):
        breaker.unavailable("connection refused")
        assert not breaker.allows_blocks()
        clock.now += breaker_module.LONGEST_PAUSE_S
        assert breaker.allows_blocks()
    said = breaker.trouble

    breaker.available()

    assert "connection refused" in (said or "")
    assert breaker.trouble is None


def test_the_next_agent_knows_what_the_last_one_learnt(clock: Clock, path: Path) -> None:
    first = Breaker(path)
    first.failed("once")
    first.failed("twice")

    second = Breaker(path)
    second.failed("a third time")
    third = Breaker(path)

    assert third.is_open
    assert "a third time" in third.verdict


def test_another_configuration_begins_anew(clock: Clock, path: Path) -> None:
    open_breaker(path, fingerprint="one")

    assert Breaker(path, fingerprint="one").is_open
    assert not Breaker(path, fingerprint="another").is_open


def test_a_larger_number_of_failures_lets_it_go_on(clock: Clock, path: Path) -> None:
    open_breaker(path)

    assert not Breaker(path, most_failures=4).is_open


def test_whoever_removes_the_file_has_blocks_asked_for_again(clock: Clock, path: Path) -> None:
    breaker = open_breaker(path)
    breaker.look()
    still_open = breaker.is_open

    path.unlink()
    breaker.look()

    assert still_open
    assert breaker.allows_blocks()


def test_a_file_that_could_not_be_written_is_not_taken_for_a_removed_one(clock: Clock, tmp_path: Path) -> None:
    breaker = open_breaker(tmp_path / "no such directory" / "breaker.json")

    breaker.look()

    assert breaker.is_open


@pytest.mark.parametrize("content", ["", "garbage", "{}", "[]", '{"failures": "many"}'])
def test_a_damaged_file_is_as_none(content: str, clock: Clock, path: Path) -> None:
    path.write_text(content)

    assert read_breaker(path) is None
    assert Breaker(path).allows_blocks()


def test_the_fingerprint_is_of_what_makes_blocks(tmp_path: Path) -> None:
    usual = EndpointConfig("ep", tmp_path)
    same = EndpointConfig("ep", tmp_path, display_name="Mine", engine=EngineConfig(max_block_failures=7))
    others = [
        EndpointConfig("ep", tmp_path, engine=EngineConfig(worker_init="module load python")),
        EndpointConfig("ep", tmp_path, provider=ProviderSection("slurm")),
        EndpointConfig("ep", tmp_path, provider=ProviderSection("local", {"shell": "zsh"})),
    ]

    assert fingerprint(usual) == fingerprint(same)
    assert len({fingerprint(each) for each in [usual, *others]}) == 4
