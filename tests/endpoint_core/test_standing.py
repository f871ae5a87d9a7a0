"""What commands say of an endpoint's blocks: how they are, what was in vain, what is left."""

from __future__ import annotations

import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running import endpoint_command, environment_for

from farcall_endpoint import dashboard, pidfile
from farcall_endpoint.breaker import Breaker
from farcall_endpoint.nowfile import NowFile, read_now
from farcall_endpoint.roster import Roster

Run = Callable[..., "subprocess.CompletedProcess[str]"]

NOW = {
    "blocks": [
        {"id": "17", "state": "running", "message": "n1,n2"},
        {"id": "18", "state": "pending", "message": "(Resources)"},
    ],
    "min_blocks": 0,
    "max_blocks": 4,
    "workers": 2,
    "busy_workers": 1,
    "waiting_tasks": 5,
    "handed_over_tasks": 3,
    "finished_tasks": 9,
    "troubles": ["The endpoint has asked for blocks in vain"],
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """The command, on a home with the endpoint ``ep``; nothing listens where its service should be."""
    run = endpoint_command(tmp_path, environment_for(tmp_path, FARCALL_SERVICE_URL="http://127.0.0.1:9"))
    run("configure", "ep")
    return run


@pytest.fixture
def directory(run: Run, tmp_path: Path) -> Path:
    return tmp_path / "ep"


@pytest.fixture
def running(directory: Path) -> Iterator[None]:
    """As if its agent ran."""
    with pidfile.held(directory):
        yield


def fail_three_times(directory: Path) -> None:
    breaker = Breaker(directory / "breaker.json")
    for _ in range(3):
        breaker.failed("no such partition")


# -- resume -----------------------------------------------------------------------------------------------------------


def test_resume_lets_the_next_start_ask_for_blocks(run: Run, directory: Path) -> None:
    fail_three_times(directory)

    said = run("resume", "ep").stdout

    assert "will ask for blocks again when it is started" in said
    assert Breaker(directory / "breaker.json").allows_blocks()


@pytest.mark.usefixtures("running")
def test_resume_lets_a_running_agent_go_on(run: Run, directory: Path) -> None:
    fail_three_times(directory)

    assert "asks for blocks again." in run("resume", "ep").stdout
    assert "there is nothing to resume" in run("resume", "ep").stdout


def test_resume_of_an_agent_elsewhere_says_where(run: Run, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_three_times(directory)
    monkeypatch.setattr("socket.gethostname", lambda: "login7")
    with pidfile.held(directory):
        assert "on login7, where this is seen as soon as" in run("resume", "ep").stdout


# -- stop and delete --------------------------------------------------------------------------------------------------


def test_stop_says_which_blocks_are_left_and_why(run: Run, directory: Path) -> None:
    roster = Roster(directory / "blocks.json")
    for block_id in ("17", "18", "19"):
        roster.add(block_id)
    roster.ending(["17"])
    roster.cannot_end(["18"], "Access denied")

    done = run("stop", "ep", check=False)

    assert done.returncode == 1
    assert "Block 17 has been told to end" in done.stdout
    assert "block 18 could not be ended, and the next start tries again: Access denied" in done.stderr
    assert "block 19 could not be ended" in done.stderr


def test_an_endpoint_whose_blocks_may_live_is_deleted_by_force_only(run: Run, directory: Path) -> None:
    Roster(directory / "blocks.json").add("17")

    refused = run("delete", "ep", "--yes", check=False)
    run("delete", "ep", "--yes", "--force")

    assert "blocks 17 of the endpoint 'ep' may not have ended" in refused.stderr
    assert not directory.exists()


# -- status -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("running")
def test_status_shows_blocks_and_troubles_without_the_service(run: Run, directory: Path) -> None:
    NowFile(directory).write(NOW)

    said = run("status", "ep").stdout

    assert "Block 17 is running:\n    n1,n2\n" in said
    assert "Trouble: The endpoint has asked for blocks in vain" in said


def test_the_file_is_written_when_something_has_changed(tmp_path: Path) -> None:
    file = NowFile(tmp_path)
    file.write(NOW)
    first = read_now(tmp_path)
    file.write(dict(NOW))
    same = read_now(tmp_path)
    file.write({**NOW, "workers": 3})

    assert first == same
    assert (read_now(tmp_path) or {})["workers"] == 3
    file.remove()
    assert read_now(tmp_path) is None


@pytest.mark.usefixtures("running")
def test_watching_without_a_terminal_is_a_line_for_each_change(directory: Path, tmp_path: Path) -> None:
    file = NowFile(directory)
    command = [Path(sys.executable).parent / "farcall-endpoint", "status", "ep", "--watch"]
    environment = environment_for(tmp_path)
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        lines = [watching.stdout.readline()]
        file.write(NOW)
        lines.append(watching.stdout.readline())
        file.write({**NOW, "troubles": [], "blocks": [], "workers": 0})
        lines.append(watching.stdout.readline())
        watching.terminate()

    assert "is not running" in lines[0]
    assert "blocks: 1 pending, 1 running (0 to 4); workers: 2, 1 busy; tasks: 5 waiting, 3 with" in lines[1]
    assert "blocks: none (0 to 4); workers: 0" in lines[2]


def test_on_a_terminal_it_is_shown_in_place_with_a_line_of_the_past(
    directory: Path, running: None, capsys: pytest.CaptureFixture[str]
) -> None:
    NowFile(directory).write(NOW)

    panel = dashboard._panel("ep", NOW, deque([0, 1, 4]))
    from rich.console import Console

    Console(width=200).print(panel)

    said = capsys.readouterr().out
    assert "(Resources)" in said
    assert "running blocks, to 4:  ▂█" in said
