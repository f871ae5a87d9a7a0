"""Shell commands as functions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from farcall import ShellFunction, ShellResult
from farcall.serialize import deserialize, serialize


def is_running(pid: int) -> bool:
    """Whether it is there and has not merely not been waited for."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state) and not state.startswith("Z")


def test_a_command_runs_with_what_it_was_given() -> None:
    result = ShellFunction("echo Hello {name}; echo oh >&2")(name="World")

    assert result == ShellResult("echo Hello World; echo oh >&2", "Hello World\n", "oh\n", 0, None)


def test_a_command_that_fails_is_a_result() -> None:
    result = ShellFunction("echo no >&2; exit 3")()

    assert isinstance(result, ShellResult)
    assert (result.returncode, result.exception_name) == (3, "subprocess.CalledProcessError")
    assert str(result) == "'echo no >&2; exit 3' returned 3\nno"


def test_a_dictionary_can_be_asked_for() -> None:
    result = ShellFunction("true", return_dict=True)()

    assert result == {"cmd": "true", "stdout": "", "stderr": "", "returncode": 0, "exception_name": None}


def test_the_walltime_ends_everything_that_the_command_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farcall.shell.GRACE_S", 0.2)
    pids = tmp_path / "pids"
    script = tmp_path / "stubborn.py"
    script.write_text(
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"print(os.getpid(), file=open({str(pids)!r}, 'a'), flush=True)\n"
        "time.sleep(600)\n"
    )
    # In the foreground, in the background, and in a session of its own whose parent has gone.
    command = f"({sys.executable} {script} &) ; setsid {sys.executable} {script} & {sys.executable} {script}"

    result = ShellFunction(command, walltime=3)()

    assert isinstance(result, ShellResult)
    assert (result.returncode, result.exception_name) == (124, "subprocess.TimeoutExpired")
    started = [int(pid) for pid in pids.read_text().split()]
    assert len(started) == 3
    assert [pid for pid in started if is_running(pid)] == []


def test_output_before_the_walltime_is_kept() -> None:
    result = ShellFunction("echo early; sleep 600", walltime=0.3)()

    assert isinstance(result, ShellResult)
    assert result.stdout == "early\n"


def test_only_the_last_lines_come_back() -> None:
    result = ShellFunction("seq 100000", snippet_lines=2)()

    assert isinstance(result, ShellResult)
    assert result.stdout == "99999\n100000\n"


def test_output_is_appended_to_the_files_that_were_named(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out.txt"
    function = ShellFunction("echo {n}", stdout=str(out))

    function(n=1)
    second = function(n=2)

    assert out.read_text() == "1\n2\n"
    assert isinstance(second, ShellResult)
    assert second.stdout == "2\n"


def test_a_task_with_a_sandbox_runs_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GC_TASK_SANDBOX_DIR", str(tmp_path / "box"))
    monkeypatch.setenv("GC_TASK_UUID", "t1")
    here = Path.cwd()

    result = ShellFunction("pwd")()

    assert isinstance(result, ShellResult)
    assert result.stdout.strip() == os.path.realpath(tmp_path / "box")
    assert (tmp_path / "box" / "t1.stdout").read_text() == result.stdout
    assert Path.cwd() == here


@pytest.mark.parametrize(("options", "error"), [({"name": "a b"}, "'a b'"), ({"walltime": -1}, "walltime")])
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        ShellFunction("true", **options)


def test_it_travels_like_a_function(service: Any) -> None:
    function = ShellFunction("echo {x}", name="echo")

    assert deserialize(serialize(function))(x=1).stdout == "1\n"
    with service.executor() as executor:
        assert executor.submit(function, x=2).result().stdout == "2\n"
    (registered,) = service.functions.values()
    assert registered["function_name"] == "echo"
