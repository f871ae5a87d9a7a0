"""Whether an agent lives: told by a lock, whatever number stands in the file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from farcall_endpoint import directories, pidfile
from farcall_endpoint.pidfile import AlreadyRunning, State

HOLD = """
import os, sys
from pathlib import Path
from farcall_endpoint import pidfile
with pidfile.held(Path(sys.argv[1])):
    if "fork" in sys.argv and os.fork() == 0:
        os.close(1)
        sys.stdin.read()
        os._exit(0)
    print("held", flush=True)
    sys.stdin.readline()
"""

Hold = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Hold]:
    """Start a process that holds the directory until it is sent a line."""
    started = []

    def start(*words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_an_endpoint_that_never_ran_is_initialized(tmp_path: Path) -> None:
    assert pidfile.state_of(tmp_path) is State.INITIALIZED


def test_a_registered_endpoint_without_an_agent_is_stopped(tmp_path: Path) -> None:
    directories.write_endpoint_id(tmp_path, "3e0a4d5c-0b4b-4b4c-8e5a-000000000001")

    assert pidfile.state_of(tmp_path) is State.STOPPED


def test_a_living_agent_is_running_and_named(tmp_path: Path, hold: Hold) -> None:
    agent = hold()

    assert pidfile.state_of(tmp_path) is State.RUNNING
    holder = pidfile.read_holder(tmp_path)
    assert holder is not None
    assert (holder.pid, holder.is_here) == (agent.pid, True)


def test_asking_often_does_not_disturb_the_one_that_runs(tmp_path: Path, hold: Hold) -> None:
    hold()

    assert {pidfile.state_of(tmp_path) for _ in range(20)} == {State.RUNNING}


def test_a_second_agent_is_refused(tmp_path: Path, hold: Hold) -> None:
    hold()

    with pytest.raises(AlreadyRunning), pidfile.held(tmp_path):
        pass


def test_an_orderly_end_leaves_no_file(tmp_path: Path, hold: Hold) -> None:
    hold().communicate("go\n")

    assert list(tmp_path.iterdir()) == []


def test_a_killed_agent_is_disconnected(tmp_path: Path, hold: Hold) -> None:
    agent = hold()

    agent.kill()
    agent.wait()

    assert pidfile.state_of(tmp_path) is State.DISCONNECTED


def test_a_forked_child_that_outlives_the_agent_does_not_make_it_look_alive(tmp_path: Path, hold: Hold) -> None:
    agent = hold("fork")

    agent.kill()
    agent.wait()

    assert pidfile.state_of(tmp_path) is State.DISCONNECTED


def test_a_number_that_belongs_to_somebody_else_after_a_reboot_is_not_taken_for_the_agent(tmp_path: Path) -> None:
    document = {"pid": os.getpid(), "hostname": "elsewhere", "started": 0}
    (tmp_path / "agent.pid").write_text(json.dumps(document))

    assert pidfile.state_of(tmp_path) is State.DISCONNECTED


def test_a_damaged_file_is_disconnected_too(tmp_path: Path) -> None:
    (tmp_path / "agent.pid").write_text("12")

    assert pidfile.state_of(tmp_path) is State.DISCONNECTED
    assert pidfile.read_holder(tmp_path) is None


def test_cleaning_up_after_a_killed_agent_leaves_no_file(tmp_path: Path, hold: Hold) -> None:
    agent = hold()
    agent.kill()
    agent.wait()

    pidfile.clean_up(tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_a_living_agent_is_not_cleaned_up(tmp_path: Path, hold: Hold) -> None:
    hold()

    with pytest.raises(AlreadyRunning):
        pidfile.clean_up(tmp_path)

    assert pidfile.state_of(tmp_path) is State.RUNNING
