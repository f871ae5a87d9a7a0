"""Calls on a real node: they are cancelled, run out of time, die in every way, and the next runs as if nothing was."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psutil
import pytest
from calling import PATIENCE_S, Bench, bench, result_of, value_of, wait_until
from servers import needs

from farcall_endpoint.failures import TooLittleTime, WorkerEnded

#: Once a cancel has been said, somebody else can work there after so long; much more on a machine that is busy.
SLOT_BACK_S = 5.0 if os.environ.get("FARCALL_TEST_PROMPTLY") else 30.0


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A node with one worker, which each test leaves able to work."""
    with bench(tmp_path_factory.mktemp("run")) as running:
        assert value_of(running.call(pid, task_id="first")) > 0
        yield running


@pytest.fixture(autouse=True)
def nothing_is_stuck(node: Bench) -> Iterator[None]:
    yield
    assert value_of(node.call(pid, task_id="afterwards")) > 0


def pid() -> int:
    import os

    return os.getpid()


def ended(future: Future[bytes]) -> WorkerEnded:
    error = future.exception(PATIENCE_S)
    assert isinstance(error, WorkerEnded), error
    return error


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def say_and_sleep() -> None:
    import time

    print("here I am", flush=True)
    time.sleep(1000)


def test_what_a_task_prints_and_that_it_runs_is_told_while_it_runs(node: Bench) -> None:
    def speak() -> int:
        import os
        import subprocess
        import sys
        import time

        print("in Python")
        print("to stderr", file=sys.stderr)
        os.write(1, b"below Python\n")
        subprocess.run(["echo", "from a child"], check=True)
        time.sleep(1)
        sys.stdout.write("without a newline")
        return os.getpid()

    call = node.call(speak, task_id="speaker")
    node.wait_for_start("speaker")
    node.recorder.wait_for(lambda: "from a child" in node.recorder.text_of("speaker"))
    assert not call.done()
    value_of(call)
    node.recorder.wait_for(lambda: "newline" in node.recorder.text_of("speaker"))

    assert node.recorder.text_of("speaker") == "in Python\nbelow Python\nfrom a child\nwithout a newline"
    assert node.recorder.text_of("speaker", "stderr") == "to stderr\n"
    (sighting,) = [sighting for sighting in node.recorder.sightings if sighting.task_id == "speaker"]
    assert sighting.call_id == call.parsl_executor_task_id  # type: ignore[attr-defined]
    assert abs(sighting.at / 1e9 - time.time()) < PATIENCE_S


def test_a_cancelled_task_ends_with_all_its_processes_wherever_they_hide(node: Bench) -> None:
    def start_a_family() -> None:
        import os
        import signal
        import subprocess
        import time

        def stay() -> None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(1000)

        pids = [os.getpid(), subprocess.Popen(["sleep", "1000"]).pid, subprocess.Popen(["setsid", "sleep", "1000"]).pid]
        reading, writing = os.pipe()
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.write(writing, str(os.getpid()).encode())
                stay()
            os._exit(0)
        pids.append(int(os.read(reading, 20)))
        print(*pids, flush=True)
        stay()

    call = node.call(start_a_family, task_id="family")
    node.recorder.wait_for(lambda: node.recorder.text_of("family").endswith("\n"))
    pids = [int(word) for word in node.recorder.text_of("family").split()]
    assert len(pids) == 4
    assert all(map(is_running, pids))
    began = time.monotonic()

    node.cancel(call)
    error = ended(call)

    assert (error.cause, error.task_id) == ("cancelled", "family")
    assert not any(map(is_running, pids))
    assert value_of(node.call(pid)) not in pids
    assert time.monotonic() - began < SLOT_BACK_S


def test_a_cancelled_call_that_waits_or_comes_later_is_given_back_and_others_run(node: Bench) -> None:
    running = node.call(say_and_sleep, task_id="running")
    node.wait_for_start("running")
    waiting = node.call(pid, task_id="waiting")
    other = node.call(pid, task_id="other")

    node.cancel(waiting)
    node.cancel(running)

    assert ended(running).cause == "cancelled"
    error = ended(waiting)
    assert (error.cause, error.task_id) == ("cancelled", None)
    assert value_of(other) > 0


def test_cancelling_what_has_ended_or_never_was_harms_nobody(node: Bench) -> None:
    call = node.call(pid)
    first = value_of(call)

    node.cancel(call)
    node.executor.cancel_calls([10**9])

    assert value_of(node.call(pid)) == first


def test_a_task_that_exceeds_its_own_time_ends_with_what_it_has_started(node: Bench) -> None:
    def wait_for_a_child() -> None:
        import subprocess

        child = subprocess.Popen(["sleep", "1000"])
        print(child.pid, flush=True)
        child.wait()

    before = value_of(node.call(pid))
    result = result_of(node.call(wait_for_a_child, task_id="slow", timeout_s=1.5, task_timeout_s=1000.0))
    node.recorder.wait_for(lambda: node.recorder.text_of("slow"))

    assert result.error_details is not None
    assert result.error_details.code == "TaskTimeout"
    assert "longer than the 1.5 s that it was given" in result.error_details.user_message
    assert not is_running(int(node.recorder.text_of("slow")))
    assert value_of(node.call(pid)) == before


def test_a_task_that_does_not_heed_its_time_is_killed(node: Bench) -> None:
    def ignore_everything() -> None:
        import contextlib
        import signal
        import time

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end = time.monotonic() + 1000
        while time.monotonic() < end:
            with contextlib.suppress(BaseException):
                time.sleep(1000)

    error = ended(node.call(ignore_everything, task_id="stubborn", timeout_s=0.5))

    assert (error.cause, error.task_id) == ("timeout", "stubborn")


def test_a_death_is_reported_with_signal_task_and_the_end_of_stderr(node: Bench) -> None:
    def complain_and_die() -> None:
        import os
        import sys

        print("x" * 10_000, "these were my last words", file=sys.stderr)
        os.kill(os.getpid(), 9)

    error = ended(node.call(complain_and_die, task_id="dying"))

    assert (error.cause, error.task_id, error.exit_code) == ("died", "dying", -signal.SIGKILL)
    assert error.stderr.endswith("these were my last words\n")
    assert len(error.stderr) <= 4096
    assert "want of memory" in error.memory


def test_an_exit_is_reported_with_its_code_and_without_a_word_on_memory(node: Bench) -> None:
    def leave() -> None:
        import os

        os._exit(7)

    error = ended(node.call(leave, task_id="leaving"))

    assert (error.cause, error.task_id, error.exit_code, error.memory) == ("died", "leaving", 7, "")


def close_all() -> None:
    import os
    import time

    os.closerange(0, 1000)
    time.sleep(1000)


def close_and_return() -> int:
    import os

    os.closerange(0, 1000)
    return 5


def open_others_in_their_place() -> int:
    import os

    os.closerange(0, 1000)
    for _ in range(100):
        os.open("/dev/null", os.O_RDWR)
    return 5


def become_another() -> None:
    import os

    os.execvp("sleep", ["sleep", "1000"])


@pytest.mark.parametrize("task", [close_all, close_and_return, open_others_in_their_place, become_another])
def test_a_task_that_takes_its_workers_descriptors_costs_the_worker_and_is_named(
    node: Bench, task: Callable[[], Any]
) -> None:
    error = ended(node.call(task, task_id=task.__name__))

    assert (error.cause, error.task_id) == ("died", task.__name__)


def close_output() -> int:
    import os
    import sys

    print("before")
    sys.stdout.close()
    os.close(1)
    os.close(2)
    return 1


def replace_output() -> int:
    import io
    import os
    import sys

    print("before")
    sys.stdout = io.StringIO()
    null = os.open("/dev/null", os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    print("nowhere")
    return 1


def leave_output_not_blocking() -> int:
    import os

    print("before")
    os.set_blocking(1, False)
    return 1


@pytest.mark.parametrize("task", [close_output, replace_output, leave_output_not_blocking])
def test_whatever_a_task_does_to_its_output_the_next_one_is_heard(node: Bench, task: Callable[[], int]) -> None:
    def speak() -> None:
        import sys

        sys.stdout.write("x" * 3_000_000 + "\n")
        print("loud and clear")
        print("here too", file=sys.stderr)

    name = task.__name__

    assert value_of(node.call(task, task_id=name)) == 1
    value_of(node.call(speak, task_id=f"after {name}"))

    node.recorder.wait_for(lambda: "clear" in node.recorder.text_of(f"after {name}"))
    node.recorder.wait_for(lambda: node.recorder.text_of(f"after {name}", "stderr") == "here too\n")
    assert node.recorder.text_of(name) == "before\n"


def test_a_task_that_forks_and_whose_child_returns_runs_once(node: Bench) -> None:
    def fork() -> tuple[int, int]:
        import os

        child = os.fork()
        return os.getpid(), child

    here, child = value_of(node.call(fork))

    assert child > 0
    assert value_of(node.call(pid)) == here


def test_a_gigabyte_of_output_passes_and_its_end_is_kept(node: Bench) -> None:
    def flood() -> int:
        import os

        line = b"0123456789abcde\n" * 65536
        for _ in range(1024):
            os.write(1, line)
        os.write(1, b"the end\n")
        return len(line) * 1024

    size = value_of(node.call(flood, task_id="flood"))
    node.recorder.wait_for(lambda: node.recorder.text_of("flood").endswith("the end\n"))

    pieces = [piece for piece in node.recorder.pieces if piece.task_id == "flood"]
    assert pieces[-1].start + len(pieces[-1].text) == size + len("the end\n")
    assert sum(len(piece.text) for piece in pieces) < size / 10


def test_garbage_is_printed_as_text(node: Bench) -> None:
    def spit() -> None:
        import os

        os.write(1, bytes(range(256)))

    value_of(node.call(spit, task_id="garbage"))
    node.recorder.wait_for(lambda: "\\xff" in node.recorder.text_of("garbage"))

    assert node.recorder.text_of("garbage").startswith("\\0\x01\x02")


def test_a_daemon_that_holds_the_pipes_keeps_neither_result_nor_successor_waiting(node: Bench) -> None:
    def leave_a_daemon() -> tuple[int, int]:
        import os
        import time

        reading, writing = os.pipe()
        if os.fork() == 0:
            os.setsid()
            child = os.fork()
            if child == 0:
                while True:
                    os.write(1, b"noise\n" * 1000)
                    time.sleep(0.001)
            os.write(writing, str(child).encode())
            os._exit(0)
        return os.getpid(), int(os.read(reading, 20))

    worker, daemon = value_of(node.call(leave_a_daemon, task_id="leaver"))
    assert is_running(daemon)
    assert value_of(node.call(pid)) == worker

    def die() -> None:
        import os

        os._exit(1)

    error = ended(node.call(die, task_id="dying beside a daemon"))

    assert error.exit_code == 1
    # A copy of the worker, it ends with it.
    wait_until(lambda: not is_running(daemon), "the daemon ends")


def test_what_an_earlier_task_has_left_outlives_the_cancel_of_another(node: Bench) -> None:
    def leave_a_server() -> int:
        import subprocess

        return subprocess.Popen(["sleep", "1000"], start_new_session=True).pid

    server = value_of(node.call(leave_a_server, task_id="starter"))
    call = node.call(say_and_sleep, task_id="sleeper")
    node.wait_for_start("sleeper")

    node.cancel(call)

    assert ended(call).task_id == "sleeper"
    assert is_running(server)
    psutil.Process(server).kill()
    # It has become an orphan, and is reaped like one.
    wait_until(lambda: not psutil.pid_exists(server), "the server is reaped")


def test_a_task_that_may_take_longer_than_its_block_lives_is_given_back_not_too_often(tmp_path: Path) -> None:
    with bench(tmp_path, walltime_s=300) as short:
        assert value_of(short.call(pid, timeout_s=5.0)) > 0
        assert short.recorder.nodes[-1][0].ends_at == pytest.approx(time.time() + 300, abs=100)
        began = time.monotonic()
        for _ in range(4):
            error = short.call(pid, timeout_s=1000.0).exception(PATIENCE_S)
            assert isinstance(error, TooLittleTime)

        # The first may go at once.
        assert time.monotonic() - began > 2.5
        assert value_of(short.call(pid)) > 0


def test_the_ranks_of_a_cancelled_mpi_task_end_and_its_nodes_are_lent_again(tmp_path: Path) -> None:
    needs("mpi", lambda: None if shutil.which("mpiexec") else "there is no mpiexec on PATH")
    ranks = {"num_nodes": 1, "ranks_per_node": 2, "num_ranks": 2, "launcher_options": ""}

    def start_ranks() -> None:
        import os
        import subprocess

        rank = "echo $$; trap '' TERM; while true; do sleep 1; done"
        subprocess.run(f'{os.environ["PARSL_MPI_PREFIX"]} sh -c "{rank}"', shell=True, check=True)

    with bench(tmp_path, mpi_launcher="mpiexec") as node:
        call = node.call(start_ranks, task_id="ranks", resources=ranks)
        node.recorder.wait_for(lambda: len(node.recorder.text_of("ranks").split()) == 2)
        pids = [int(word) for word in node.recorder.text_of("ranks").split()]
        assert all(map(is_running, pids))

        node.cancel(call)

        assert ended(call).cause == "cancelled"
        assert not any(map(is_running, pids))
        assert value_of(node.call(pid, resources=ranks)) > 0
