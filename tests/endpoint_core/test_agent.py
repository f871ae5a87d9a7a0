"""The agent with a real broker, real workers and a stand-in for the service."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from farcall.errors import Conflict
from farcall.serialize import deserialize
from farcall.wire import Command, Transition
from farcall_endpoint import agent as agent_module
from farcall_endpoint.agent import Agent
from farcall_endpoint.config import EndpointConfig, EngineConfig
from farcall_endpoint.directories import read_endpoint_id
from farcall_endpoint.engine import Engine
from farcall_endpoint.journal import Journal

PATIENCE_S = 60

START_AGENT = """
import sys
from pathlib import Path
from farcall_endpoint.agent import Agent
from farcall_endpoint.config import EndpointConfig, EngineConfig
engine = EngineConfig(max_workers_per_node=1, heartbeat_period_s=1)
Agent(EndpointConfig("ep", Path(sys.argv[1]), engine=engine)).run(lambda: print("ready", flush=True))
"""


class RunningAgent:
    """An agent in a process of its own, as users have it."""

    def __init__(self, directory: Path, service_url: str) -> None:
        names = {"FARCALL_HOME": str(directory.parent), "FARCALL_SERVICE_URL": service_url, "FARCALL_TOKEN": "token"}
        command = [sys.executable, "-c", START_AGENT, directory]
        self.process = subprocess.Popen(command, env={**os.environ, **names}, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(timeout=30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@pytest.fixture
def directory(tmp_path: Path, stand_in: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FARCALL_HOME", str(tmp_path))
    monkeypatch.setenv("FARCALL_SERVICE_URL", stand_in.url)
    monkeypatch.setenv("FARCALL_TOKEN", "some-token")
    path = tmp_path / "ep"
    path.mkdir()
    return path


@pytest.fixture
def start(directory: Path, stand_in: Any) -> Iterator[Callable[[], RunningAgent]]:
    started: list[RunningAgent] = []

    def start_one() -> RunningAgent:
        started.append(RunningAgent(directory, stand_in.url))
        return started[-1]

    yield start_one
    for agent in started:
        if agent.process.poll() is None:
            agent.end()


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory, make_stand_in: Callable[[], Any]) -> Iterator[Any]:
    """A service with an agent, for all tests that leave both as they were."""
    directory = tmp_path_factory.mktemp("home") / "ep"
    directory.mkdir()
    service = make_stand_in()
    agent = RunningAgent(directory, service.url)
    yield service
    agent.end()
    service.stop()


# What a task uses is imported in it: the workers do not have this module.


def double(number: int) -> int:
    return 2 * number


def sleep_a_little(number: int) -> int:
    import time

    time.sleep(0.01)
    return number


def sleep_long(number: int) -> None:
    import time

    time.sleep(600)


def own_pid(number: int) -> int:
    import os

    return os.getpid()


def die(number: int) -> None:
    import os

    os._exit(1)


def leave_a_line(path: str) -> None:
    with open(path, "a") as file:  # noqa: PTH123 - what it uses must be there on the worker
        file.write("x")


def gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=20)
    return all(process.status() == psutil.STATUS_ZOMBIE for process in alive)


def test_tasks_come_back_with_their_results_and_the_agent_says_who_it_is(
    stand_in: Any, start: Callable[[], RunningAgent], directory: Path
) -> None:
    agent = start()

    results = stand_in.wait_for_results(stand_in.submit(double, range(500)))
    agent.end()

    assert [deserialize(result.data) for result in results] == [2 * number for number in range(500)]
    method, path, body = stand_in.registrations[0]
    assert (method, path) == ("POST", "/v3/endpoints")
    assert body["endpoint_name"] == "ep"
    assert body["metadata"]["accepts"] == ["task_batch"]
    assert body["metadata"]["instance"].endswith(f":{directory}")
    assert read_endpoint_id(directory) == stand_in.endpoint_id
    stand_in.wait_for(lambda: stand_in.reports[-1].global_state["heartbeat_period"] == 0)
    assert stand_in.reports[0].global_state["active"] is True
    assert stand_in.reports[-1].global_state["active"] is False
    assert stand_in.reports[-1].holds == []


def test_a_task_delivered_twice_is_answered_twice_and_run_once(busy: Any, tmp_path: Path) -> None:
    note = tmp_path / "runs-of-the-task"

    (task_id,) = busy.submit(leave_a_line, [str(note)])
    busy.wait_for_results([task_id])
    busy.submit(leave_a_line, [str(note)])
    busy.wait_for(lambda: busy.deliveries.count(task_id) == 2)

    assert note.read_text() == "x"


def test_a_killed_agent_leaves_no_process_and_its_successor_finishes_the_work(
    stand_in: Any, start: Callable[[], RunningAgent]
) -> None:
    agent = start()
    stand_in.wait_for_results(stand_in.submit(double, [1]))
    task_ids = stand_in.submit(sleep_a_little, range(150))
    stand_in.wait_for(lambda: task_ids[0] in stand_in.results)
    descendants = agent.descendants()

    agent.end(signal.SIGKILL)

    assert len(descendants) >= 3
    assert gone(descendants)
    start()
    results = stand_in.wait_for_results(task_ids)
    assert all(result.error_details is None for result in results)
    assert stand_in.registrations[-1][:2] == ("PUT", f"/v3/endpoints/{stand_in.endpoint_id}")


def test_an_orderly_stop_does_not_wait_for_a_task_that_never_ends(
    stand_in: Any, start: Callable[[], RunningAgent]
) -> None:
    agent = start()
    (task_id,) = stand_in.submit(sleep_long, [1])
    stand_in.wait_for(lambda: any(task_id in report.task_statuses for report in stand_in.reports))
    descendants = agent.descendants()

    assert agent.end() == 0

    assert gone(descendants)
    stand_in.wait_for(lambda: stand_in.reports[-1].global_state["heartbeat_period"] == 0)
    assert stand_in.reports[-1].holds == [task_id]


def test_the_service_can_have_the_agent_stop(stand_in: Any, start: Callable[[], RunningAgent]) -> None:
    agent = start()

    stand_in.command(Command("stop", "the endpoint was deleted"))

    assert agent.process.wait(timeout=30) == 0


def test_a_stop_from_before_this_start_is_not_obeyed(stand_in: Any, start: Callable[[], RunningAgent]) -> None:
    stand_in.command(Command("stop", "meant for an earlier agent"))

    start()

    assert stand_in.wait_for_results(stand_in.submit(double, [1]))


@pytest.mark.parametrize("victim", ["worker", "interchange", "farcall_endpoint.pool"])
def test_whoever_of_the_engine_is_killed_all_tasks_end_well(
    stand_in: Any, start: Callable[[], RunningAgent], victim: str
) -> None:
    agent = start()
    (result,) = stand_in.wait_for_results(stand_in.submit(own_pid, [1]))
    task_ids = stand_in.submit(sleep_a_little, range(100))
    stand_in.wait_for(lambda: task_ids[0] in stand_in.results)
    if victim == "worker":
        os.kill(deserialize(result.data), signal.SIGKILL)
    else:
        (process,) = (each for each in agent.descendants() if is_called(each, victim))
        process.kill()

    results = stand_in.wait_for_results(task_ids)

    assert all(result.error_details is None for result in results)


def is_called(process: psutil.Process, name: str) -> bool:
    words = process.cmdline()
    return name in " ".join(words) and "warden" not in " ".join(words)


def test_a_worker_that_is_killed_while_it_is_idle_takes_nobody_with_it(busy: Any) -> None:
    (result,) = busy.wait_for_results(busy.submit(own_pid, [1]))

    os.kill(deserialize(result.data), signal.SIGKILL)

    (result,) = busy.wait_for_results(busy.submit(double, [4], prefix="after-the-kill"))
    assert deserialize(result.data) == 8


def test_a_task_that_kills_its_workers_fails_and_its_neighbours_do_not(busy: Any) -> None:
    bad = busy.submit(die, [1])
    good = busy.submit(double, range(50), prefix="neighbour")

    (failed,) = busy.wait_for_results(bad)
    assert failed.error_details.code == "WorkerLost"
    assert all(result.error_details is None for result in busy.wait_for_results(good))


def test_a_message_that_nobody_can_read_is_set_aside(busy: Any) -> None:
    busy.send(f"{busy.endpoint_id}.tasks", b"garbage")

    assert busy.wait_for_results(busy.submit(double, [1], prefix="after-garbage"))


class InThread:
    """An agent in a thread of the test, for what needs no process of its own."""

    def __init__(self, config: EndpointConfig) -> None:
        self.agent = Agent(config)
        self.ready = threading.Event()
        self._thread = threading.Thread(target=self.agent.run, args=(self.ready.set,))
        self._thread.start()

    def stop(self) -> None:
        self.agent.stop("the test is over")
        self._thread.join(timeout=30)
        assert not self._thread.is_alive()


def test_blocks_that_cannot_start_workers_fail_the_tasks_with_what_they_said(stand_in: Any, directory: Path) -> None:
    engine = EngineConfig(max_workers_per_node=1, worker_init="echo no such module; exit 3")
    running = InThread(EndpointConfig("ep", directory, engine=engine))
    try:
        assert running.ready.wait(30)
        (result,) = stand_in.wait_for_results(stand_in.submit(double, [1]))
    finally:
        running.stop()

    assert result.error_details.code == "NoWorkers"
    assert "3 blocks in a row came to nothing" in result.data
    assert "farcall-endpoint resume ep" in result.data
    assert "no such module" in result.data


def test_only_allowed_functions_run(stand_in: Any, directory: Path) -> None:
    allowed = ("00000000-0000-0000-0000-000000000001",)
    config = EndpointConfig("ep", directory, allowed_functions=allowed, engine=EngineConfig(init_blocks=0))
    running = InThread(config)
    try:
        assert running.ready.wait(30)
        (result,) = stand_in.wait_for_results(stand_in.submit(double, [1]))
    finally:
        running.stop()

    assert result.error_details.code == "FUNCTION_NOT_ALLOWED"
    assert stand_in.registrations[0][2]["allowed_functions"] == list(allowed)


def test_a_task_that_may_take_longer_than_any_block_lives_is_refused_with_both_numbers(
    stand_in: Any, directory: Path
) -> None:
    running = InThread(EndpointConfig("ep", directory, engine=EngineConfig(init_blocks=0, walltime_s=600)))
    try:
        assert running.ready.wait(60)
        (result,) = stand_in.wait_for_results(stand_in.submit(double, [1], options={"timeout_s": 601}))
    finally:
        running.stop()

    assert result.error_details.code == "TimeLimitTooLong"
    assert "601 s" in result.data
    assert "600 s" in result.data


def test_under_steady_work_the_journal_is_tidied_up_and_a_task_that_the_engine_lost_runs(
    stand_in: Any, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tidied = threading.Event()
    purge = Journal.purge

    def note_and_purge(journal: Journal) -> int:
        tidied.set()
        return purge(journal)

    monkeypatch.setattr(Journal, "purge", note_and_purge)
    monkeypatch.setattr(agent_module, "TICK_S", 0.05)
    monkeypatch.setattr(agent_module, "HOUSEKEEPING_PERIOD_S", 0.2)
    # There is something to report at every look.
    monkeypatch.setattr(Engine, "news", lambda engine, **options: {"some-task": [Transition(1, "running", "endpoint")]})
    running = InThread(EndpointConfig("ep", directory, engine=EngineConfig(max_workers_per_node=1)))
    try:
        assert running.ready.wait(30)
        add, lost = Engine.add, iter(["the first"])

        def lose_the_first(engine: Engine, functions: Any, tasks: Any) -> None:
            if not next(lost, None):
                add(engine, functions, tasks)

        monkeypatch.setattr(Engine, "add", lose_the_first)
        (result,) = stand_in.wait_for_results(stand_in.submit(double, [21]))
        assert tidied.wait(PATIENCE_S)
    finally:
        running.stop()

    assert deserialize(result.data) == 42


def test_an_inbox_that_was_paused_for_nothing_goes_on(
    stand_in: Any, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "TICK_S", 0.05)
    running = InThread(EndpointConfig("ep", directory, engine=EngineConfig(max_workers_per_node=1)))
    try:
        assert running.ready.wait(30)
        inbox = running.agent._inbox
        inbox.pause()

        assert inbox._room.wait(PATIENCE_S)
    finally:
        running.stop()


def test_an_endpoint_that_runs_elsewhere_is_told_so(stand_in: Any, directory: Path) -> None:
    message = "this endpoint runs on login1 already"
    stand_in.refusal = (409, {"code": "RESOURCE_CONFLICT", "message": message})

    with pytest.raises(Conflict, match=message):
        Agent(EndpointConfig("ep", directory)).run()


def test_an_agent_that_waits_for_the_service_can_be_stopped(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FARCALL_SERVICE_URL", "http://127.0.0.1:9")
    agent = Agent(EndpointConfig("ep", directory))
    threading.Timer(0.3, agent.stop, ["enough"]).start()

    assert agent.run() == 0

    assert "trying again" in caplog.text


def test_an_agent_whose_disk_is_full_says_so_and_goes_on_when_there_is_room(
    disk: Any, stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"HOME": str(disk.path), "SERVICE_URL": stand_in.url, "TOKEN": "some-token"}.items():
        monkeypatch.setenv(f"FARCALL_{name}", value)
    directory = disk.path / "ep"
    directory.mkdir()
    running = InThread(EndpointConfig("ep", directory, engine=EngineConfig(max_workers_per_node=1)))
    try:
        assert running.ready.wait(60)
        stand_in.wait_for_results(stand_in.submit(double, [1]))
        disk.fill()
        # More than fits into what the journal's files have already.
        first = stand_in.submit(double, range(3000), prefix="first")
        stand_in.wait_for(lambda: any("cannot write its journal" in str(r.global_state) for r in stand_in.reports))

        disk.make_room()
        results = stand_in.wait_for_results(first)
        stand_in.wait_for(lambda: stand_in.reports[-1].global_state["troubles"] == [])
    finally:
        running.stop()

    assert [deserialize(result.data) for result in results] == [2 * number for number in range(3000)]


def test_a_task_is_cancelled_before_it_comes_while_it_waits_and_while_it_runs(
    stand_in: Any, directory: Path, tmp_path: Path
) -> None:
    stand_in.cancelled = ["early-0"]
    early = tmp_path / "early"
    (first,) = stand_in.submit(leave_a_line, [str(early)], prefix="early")
    running = InThread(EndpointConfig("ep", directory, engine=EngineConfig(max_workers_per_node=1)))
    try:
        assert running.ready.wait(60)
        (result,) = stand_in.wait_for_results([first])
        (stuck,) = stand_in.submit(sleep_long, [1], prefix="stuck")
        stand_in.wait_for(lambda: "running" in states_of(stuck, stand_in))
        waiting = stand_in.submit(sleep_long, [1] * 3, prefix="waiting")
        stand_in.wait_for(lambda: states_of(waiting[-1], stand_in))

        stand_in.cancel(stuck, *waiting)

        cancelled = [result, *stand_in.wait_for_results([stuck, *waiting])]
        after = stand_in.wait_for_results(stand_in.submit(double, [1], prefix="after"))
    finally:
        running.stop()

    assert {each.error_details.code for each in cancelled} == {"Cancelled"}
    assert not early.exists()
    assert sorted(stand_in.confirmed) == sorted([first, stuck, *waiting])
    assert deserialize(after[0].data) == 2


def test_a_task_that_runs_is_ended_though_the_journal_cannot_be_written_and_confirmed_when_it_can(
    stand_in: Any, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(journal: Journal, task_ids: Sequence[str]) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    running = InThread(EndpointConfig("ep", directory, engine=EngineConfig(max_workers_per_node=1)))
    try:
        assert running.ready.wait(60)
        (stuck,) = stand_in.submit(sleep_long, [1], prefix="stuck")
        stand_in.wait_for(lambda: "running" in states_of(stuck, stand_in))
        with monkeypatch.context() as full:
            full.setattr(Journal, "cancel", fail)
            stand_in.cancel(stuck)
            (result,) = stand_in.wait_for_results([stuck])
            confirmed_early = list(stand_in.confirmed)
        stand_in.wait_for(lambda: stand_in.confirmed)
    finally:
        running.stop()

    assert result.error_details.code == "Cancelled"
    assert confirmed_early == []


def states_of(task_id: str, stand_in: Any) -> dict[str, str]:
    """The states in which a task has been reported, each with what was said of it."""
    return {
        transition.state: transition.note
        for report in stand_in.reports
        for transition in report.task_statuses.get(task_id, ())
    }


def say_something(number: int) -> None:
    import sys
    import time

    print("out", number, flush=True)
    print("err", number, file=sys.stderr, flush=True)
    time.sleep(3)


def die_loudly(number: int) -> None:
    import os
    import signal
    import sys

    print("the last words", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_task_prints_and_where_it_runs_is_told_while_it_runs(busy: Any) -> None:
    (task_id,) = busy.submit(say_something, [7])

    busy.wait_for(lambda: {piece.text for piece in busy.printed if piece.task_id == task_id} >= {"out 7\n", "err 7\n"})
    busy.wait_for(lambda: "running" in states_of(task_id, busy))

    assert task_id not in busy.results
    assert states_of(task_id, busy)["running"].startswith("on ")


def test_a_poison_task_is_told_with_its_signal_its_last_words_and_each_attempt(busy: Any) -> None:
    (task_id,) = busy.submit(die_loudly, [1])

    (result,) = busy.wait_for_results([task_id])

    assert result.error_details.code == "WorkerLost"
    assert "signal 9 (SIGKILL)" in result.data
    assert "the last words" in result.data
    assert [transition.note[:14] for transition in result.task_statuses] == [f"attempt {n} of 3" for n in (1, 2, 3)]


def test_a_task_that_must_not_start_twice_is_not_run_again_by_the_successor_of_a_killed_agent(
    stand_in: Any, start: Callable[[], RunningAgent], tmp_path: Path
) -> None:
    agent = start()
    note = tmp_path / "runs-of-the-task"
    (task_id,) = stand_in.submit(leave_a_line_and_stay, [str(note)], options={"max_retries": 0})
    stand_in.wait_for(lambda: "running" in states_of(task_id, stand_in))

    agent.end(signal.SIGKILL)
    start()

    (result,) = stand_in.wait_for_results([task_id])
    assert result.error_details.code == "WorkerLost"
    assert "max_retries is 0" in result.data
    assert note.read_text() == "x"


def leave_a_line_and_stay(path: str) -> None:
    import time

    with open(path, "a") as file:  # noqa: PTH123 - what it uses must be there on the worker
        file.write("x")
    time.sleep(600)
