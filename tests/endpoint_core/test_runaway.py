"""Whatever goes wrong with blocks, only so many are asked for; and none is forgotten. A real engine under all of it."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from calling import wait_until
from scheduling import System, SystemProvider

from farcall.serialize import serialize
from farcall.wire import BatchedTask, FunctionCode, Output, pack_buffers
from farcall_endpoint import blocks as blocks_module
from farcall_endpoint import breaker as breaker_module
from farcall_endpoint import custody as custody_module
from farcall_endpoint import supervisor as supervisor_module
from farcall_endpoint.calls import Setting
from farcall_endpoint.config import EndpointConfig, EngineConfig
from farcall_endpoint.endings import Endings
from farcall_endpoint.engine import Engine
from farcall_endpoint.journal import Unfinished
from farcall_endpoint.provider import BlockSpec, BlockState, Provider
from farcall_endpoint.roster import read_roster
from farcall_endpoint.sightings import Node, Started
from farcall_endpoint.supervisor import Supervisor
from farcall_provider_local.provider import LocalConfig, LocalProvider

PATIENCE_S = 60


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses that would be seconds and minutes."""
    monkeypatch.setattr(breaker_module, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(breaker_module, "LONGEST_PAUSE_S", 0.2)
    monkeypatch.setattr(custody_module, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(custody_module, "RETRY_S", 0.2)
    monkeypatch.setattr(supervisor_module, "BUSY_PERIOD_S", 0.05)
    monkeypatch.setattr(supervisor_module, "END_PATIENCE_S", 0.5)


#: Called with no arguments.
_NOTHING = pack_buffers([serialize(()), serialize({})])
_SLEEP = FunctionCode(pack_buffers(["st\nsleep:def sleep():\n    import time\n    time.sleep(600)\n"]))


class Life:
    """An agent's engine and supervisor, from their start to their end."""

    def __init__(self, directory: Path, provider: Provider, engine: EngineConfig) -> None:
        self.results: dict[str, dict[str, Any]] = {}
        self._news = threading.Condition()
        self.endings = Endings()
        self.running = threading.Event()
        self.engine = Engine(Setting("some-endpoint"), max_retries=0, listener=self)
        self.supervisor = Supervisor(
            EndpointConfig("ep", directory, engine=engine),
            provider,
            self.engine,
            runs_dir=directory / "runs",
            watcher=self,
            endings=self.endings,
            owner="0123456789ab",
        )
        self.supervisor.start()

    def add(self, *task_ids: str) -> None:
        tasks = [Unfinished(BatchedTask(task_id, "f", _NOTHING, {})) for task_id in task_ids]
        self.engine.add({"f": _SLEEP}, tasks)

    def failure_of(self, task_id: str) -> str:
        with self._news:
            assert self._news.wait_for(lambda: task_id in self.results, PATIENCE_S), self.supervisor.fleet
        return str(self.results[task_id]["data"])

    def wait_for_trouble(self, words: str) -> str:
        """A trouble that has these words."""
        found: list[str] = []

        def is_there() -> bool:
            found[:] = [trouble for trouble in self.supervisor.fleet.troubles if words in trouble]
            return bool(found)

        wait_until(is_there, f"a trouble with {words!r}")
        return found[0]

    def end(self) -> None:
        self.supervisor.stop(timeout_s=30)

    # -- what the nodes tell

    def nodes_changed(self, nodes: Sequence[Node]) -> None:
        self.endings.nodes_changed(nodes)

    def started(self, sightings: Sequence[Started]) -> None:
        self.engine.started(sightings)
        self.running.set()

    def printed(self, pieces: Sequence[Output]) -> None: ...

    # -- what the engine tells

    def ended(self, results: Sequence[tuple[str, str]]) -> None:
        with self._news:
            self.results.update((task_id, json.loads(text)) for task_id, text in results)
            self._news.notify_all()

    def attempted(self, failed: Sequence[Any]) -> None: ...

    def handing_over(self, task_ids: Sequence[str]) -> None: ...

    def not_started(self, task_ids: Sequence[str]) -> None: ...


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Callable[..., Life]]:
    lives: list[Life] = []

    def start(provider: Provider, **settings: Any) -> Life:
        usual = {"max_workers_per_node": 1, "strategy_period_s": 0.1, "init_blocks": 1, "max_blocks": 1}
        lives.append(Life(tmp_path, provider, EngineConfig(**{**usual, **settings})))
        return lives[-1]

    yield start
    for life in lives:
        life.end()


@pytest.fixture
def system() -> System:
    return System()


class Counting(LocalProvider):
    """Real blocks of this machine, counted."""

    submits = 0

    def submit(self, spec: BlockSpec) -> str:
        self.submits += 1
        return super().submit(spec)


@pytest.fixture
def counting() -> Iterator[Counting]:
    provider = Counting(LocalConfig())
    yield provider
    provider.close()


# -- the four cases of users' pain, each with both settings of what tasks do ------------------------------------------


def refuses(system: System) -> str:
    system.refusal = "sbatch: error: invalid partition specified: debgu"
    return system.refusal


def dies_at_once(system: System) -> str:
    system.fate.state, system.fate.said = BlockState.FAILED, "python3: No module named farcall_endpoint"
    return system.fate.said


def ends_well_at_once(system: System) -> str:
    system.fate.state, system.fate.said = BlockState.DONE, "no manager could be started"
    return system.fate.said


def vanishes(system: System) -> str:
    system.fate.is_known = False
    return "the system has not known block"


FAULTS = [refuses, dies_at_once, ends_well_at_once, vanishes]


@pytest.mark.parametrize("init_blocks", [0, 1])
@pytest.mark.parametrize("break_it", FAULTS)
def test_tasks_fail_with_what_the_last_of_three_blocks_said_and_no_more_are_asked_for(
    break_it: Callable[[System], str],
    init_blocks: int,
    live: Callable[..., Life],
    system: System,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blocks_module, "UNKNOWN_FOR_S", 0.0)
    said = break_it(system)
    life = live(SystemProvider(system), init_blocks=init_blocks)
    life.add("first")

    assert said in life.failure_of("first")
    life.add("second")
    assert said in life.failure_of("second")
    assert said in life.wait_for_trouble("farcall-endpoint resume ep")
    assert system.submits == 3


@pytest.mark.parametrize("init_blocks", [0, 1])
@pytest.mark.parametrize("break_it", FAULTS)
def test_or_they_wait_and_run_when_somebody_has_mended_it(
    break_it: Callable[[System], str],
    init_blocks: int,
    live: Callable[..., Life],
    system: System,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(blocks_module, "UNKNOWN_FOR_S", 0.0)
    said = break_it(system)
    life = live(SystemProvider(system), init_blocks=init_blocks, on_block_failures="wait")
    life.add("patient")

    assert said in life.wait_for_trouble("farcall-endpoint resume ep")
    assert system.submits == 3
    assert not life.results
    system.refusal = ""
    system.fate.state, system.fate.is_known = BlockState.PENDING, True
    (tmp_path / "breaker.json").unlink()
    system.wait_for(lambda: system.submits == 4)
    assert len(system.living) == (1 if break_it is not vanishes else len(system.living))


def test_many_blocks_at_once_are_no_more_than_there_may_be(live: Callable[..., Life], system: System) -> None:
    dies_at_once(system)
    life = live(SystemProvider(system), init_blocks=5, max_blocks=5)
    life.add(*map(str, range(20)))

    life.failure_of("19")

    assert system.submits <= 5


# -- agents that are started again and again --------------------------------------------------------------------------


@pytest.mark.parametrize("break_it", [refuses, dies_at_once])
def test_ten_agents_ask_for_no_more_blocks_than_one(
    break_it: Callable[[System], str], live: Callable[..., Life], system: System
) -> None:
    break_it(system)
    for number in range(10):
        life = live(SystemProvider(system))
        life.add(f"task-{number}")
        life.failure_of(f"task-{number}")
        life.end()

    assert system.submits == 3


def test_another_configuration_has_blocks_asked_for_again(live: Callable[..., Life], system: System) -> None:
    dies_at_once(system)
    for worker_init in ("module load pyhton", "module load python"):
        life = live(SystemProvider(system), worker_init=worker_init)
        life.add(worker_init)
        life.failure_of(worker_init)
        life.end()

    assert system.submits == 6


def test_an_agent_that_ends_leaves_no_block(live: Callable[..., Life], system: System, tmp_path: Path) -> None:
    life = live(SystemProvider(system), init_blocks=3, max_blocks=3)
    system.wait_for(lambda: len(system.living) == 3)

    life.end()

    assert system.living == []
    assert not (tmp_path / "blocks.json").exists()


def test_what_could_not_be_ended_is_kept_with_the_reason_and_ended_by_the_next_agent(
    live: Callable[..., Life], system: System, tmp_path: Path
) -> None:
    life = live(SystemProvider(system))
    system.wait_for(lambda: len(system.living) == 1)
    system.keeps_jobs = "scancel: error: Kill job error on job id 1: Access denied"
    life.end()
    left = read_roster(tmp_path / "blocks.json")

    system.keeps_jobs = ""
    live(SystemProvider(system), init_blocks=0)

    assert [entry.trouble for entry in left.values()] == ["scancel: error: Kill job error on job id 1: Access denied"]
    system.wait_for(lambda: system.living == [])
    wait_until(lambda: not (tmp_path / "blocks.json").exists(), "the list is empty again")


# -- a system that does not answer ------------------------------------------------------------------------------------


def test_a_scheduler_out_of_reach_is_no_failure_and_tasks_wait_until_it_is_back(
    live: Callable[..., Life], system: System
) -> None:
    system.is_down = True
    life = live(SystemProvider(system))
    life.add("patient")
    life.wait_for_trouble("the scheduler does not answer")

    system.is_down = False
    system.wait_for(lambda: len(system.living) == 1)

    assert system.submits == 1
    assert not life.results


def test_a_job_whose_answer_got_lost_is_ended_before_another_is_asked_for(
    live: Callable[..., Life], system: System
) -> None:
    system.loses_answers = True
    life = live(SystemProvider(system))
    life.add("patient")
    system.wait_for(lambda: system.submits == 3)
    life.wait_for_trouble("the answer to the submit did not come")

    system.loses_answers = False
    system.wait_for(lambda: system.submits >= 4 and len(system.living) == 1)

    assert not life.results


def test_a_job_whose_answer_got_lost_does_not_outlive_an_agent_that_is_stopped(
    live: Callable[..., Life], system: System
) -> None:
    system.loses_answers = True
    life = live(SystemProvider(system), init_blocks=1)
    life.wait_for_trouble("the answer to the submit did not come")

    life.end()

    assert system.living == []


# -- real blocks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("worker_init", "words"),
    [
        ("echo no such module >&2; exit 3", "no such module"),
        ("python3() { /bin/false; }", "[exit code 1]"),
        # Ours is not found by it.
        ("python3() { /usr/bin/env -i /usr/bin/python3 -S -P -m farcall_endpoint.pool; }", "farcall_endpoint"),
        ("source /no/such/environment/bin/activate || exit 1", "/no/such/environment"),
    ],
    ids=["dies", "wrong-python", "cannot-import", "no-environment"],
)
def test_workers_that_cannot_start_are_tried_three_times(
    worker_init: str, words: str, live: Callable[..., Life], counting: Counting
) -> None:
    life = live(counting, worker_init=worker_init)
    life.add("first")

    assert words in life.failure_of("first")
    assert counting.submits == 3


class ShortLived(Counting):
    """Its workers come, and their block ends."""

    def submit(self, spec: BlockSpec) -> str:
        return super().submit(dataclasses.replace(spec, command=f"timeout 3 sh -c {shlex.quote(spec.command)}"))


def test_blocks_that_end_as_soon_as_their_workers_have_tasks_are_not_asked_for_for_ever(
    live: Callable[..., Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker_module, "MOST_SUSPECTS", 4)
    provider = ShortLived(LocalConfig())
    life = live(provider)
    # As many as would keep it busy for a hundred blocks.
    life.add(*(f"task-{number}" for number in range(100)))

    trouble = life.wait_for_trouble("No block is asked for any more")
    life.end()
    provider.close()

    assert "in a row came to nothing" in trouble
    assert provider.submits <= 2 * 4


def test_a_walltime_that_is_too_short_for_workers_to_come_is_tried_three_times(
    live: Callable[..., Life], counting: Counting
) -> None:
    life = live(counting, worker_init="sleep 5", walltime_s=1)
    life.add("first")

    life.failure_of("first")

    assert counting.submits == 3


@pytest.mark.parametrize("neighbour", [0, 1])
def test_a_task_whose_block_ends_under_it_is_told_how_the_block_ended(
    neighbour: int, live: Callable[..., Life], counting: Counting
) -> None:
    blocks = 1 + neighbour
    life = live(
        counting,
        init_blocks=blocks,
        min_blocks=blocks,
        max_blocks=blocks,
        heartbeat_period_s=1,
        heartbeat_threshold_s=8,
    )
    wait_until(lambda: life.supervisor.fleet.workers == blocks, "all workers are there")
    life.add("unlucky")
    assert life.running.wait(PATIENCE_S)

    # From outside, and not by way of the provider.
    wait_until(lambda: bool(_busy(life)), "somebody is seen to have it")
    number = _busy(life)[0]["block_id"]
    block_id = next(key for key in counting._blocks if key.startswith(f"farcall.ep.{number}-"))
    os.killpg(counting._blocks[block_id].process.pid, signal.SIGKILL)

    said = life.failure_of("unlucky")
    assert f"block {block_id} on {socket.gethostname()} ended: " in said
    assert "[killed by SIGKILL]" in said


def _busy(life: Life) -> list[Any]:
    return [manager for manager in life.supervisor.fleet.managers if manager["tasks"]]
