"""The `farcall` command, as its user types it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from farcall.cli import app

UNKNOWN = "5f0c9f7e-3d3b-4b52-8f55-3a5a3d2f6c11"


def squared(x: int) -> int:
    return x**2


def dividing(x: int) -> float:
    return 1 / x


@pytest.fixture
def farcall(service: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs the command; what it returns has ``exit_code``, ``stdout`` and ``stderr``."""
    monkeypatch.setenv("FARCALL_SERVICE_URL", service.url)
    monkeypatch.setenv("FARCALL_TOKEN", "fc_token")
    return lambda *words: CliRunner().invoke(app, words)


@pytest.fixture
def waiting_task(service: Any, endpoint_id: str) -> str:
    service.paused = True
    client = service.client()
    task_id: str = client.run(3, endpoint_id=endpoint_id, function_id=client.register_function(squared))
    return task_id


def test_a_task_is_cancelled_and_stays_so(farcall: Any, waiting_task: str) -> None:
    done = farcall("cancel", waiting_task)

    assert (done.exit_code, done.stdout) == (0, f"{waiting_task}  cancelled: cancelled by owner\n")
    assert farcall("cancel", waiting_task).exit_code == 0


def test_cancelling_what_has_ended_ends_with_one(service: Any, farcall: Any, waiting_task: str) -> None:
    service.run_all()

    done = farcall("cancel", waiting_task)

    assert done.exit_code == 1
    assert "success: it had ended as success" in done.stdout


def test_cancelling_what_is_not_there_ends_with_69(farcall: Any, waiting_task: str) -> None:
    done = farcall("cancel", waiting_task, UNKNOWN)

    assert done.exit_code == 69
    assert f"{UNKNOWN}  unknown: Task {UNKNOWN} not found" in done.stdout


def test_a_group_is_cancelled(service: Any, farcall: Any, waiting_task: str) -> None:
    group = service.tasks[waiting_task]["task_group_id"]

    assert farcall("cancel", "--group", group).stdout == f"{group}  1 cancelled, 0 had ended before\n"
    answer = json.loads(farcall("cancel", "--group", group, "--json").stdout)
    assert (answer["group"]["cancelled"], answer["group"]["ended"], answer["tasks"]) == (0, 1, {})


def test_nothing_to_cancel_is_wrong_usage(farcall: Any) -> None:
    done = farcall("cancel")

    assert (done.exit_code, done.stdout) == (2, "")
    assert "say what to cancel" in done.stderr


def test_the_status_says_state_reason_history_and_attempts(service: Any, farcall: Any, waiting_task: str) -> None:
    note = "attempt 1 of 3 ended: worker 2 on node n1 was killed by signal 9 (SIGKILL)"
    service.tasks[waiting_task]["history"].append(["waiting-for-nodes", 1700000000.25, note])

    shown = farcall("status", waiting_task).stdout

    assert "state     waiting-for-ep\n" in shown
    assert "reason    the endpoint has been offline since 12:00\n" in shown
    assert f"attempts  {note}\n" in shown
    assert f"  waiting-for-nodes  ({note})\n" in shown
    document = json.loads(farcall("status", "--json", waiting_task).stdout)
    assert (document["attempts"], document["status"]) == ([note], "waiting-for-ep")


def test_the_result_is_printed(service: Any, farcall: Any, waiting_task: str) -> None:
    pending = farcall("result", waiting_task)
    service.run_all()
    done = farcall("result", "--wait", waiting_task)

    assert (pending.exit_code, pending.stdout) == (75, "")
    assert "has not ended: it is waiting-for-ep" in pending.stderr
    assert (done.exit_code, done.stdout) == (0, "9\n")
    assert json.loads(farcall("result", "--json", waiting_task).stdout)["result"] == 9


def test_a_failure_goes_to_stderr(service: Any, farcall: Any, endpoint_id: str) -> None:
    client = service.client()
    task_id = client.run(0, endpoint_id=endpoint_id, function_id=client.register_function(dividing))

    done = farcall("result", task_id)

    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")
    assert json.loads(farcall("result", "--json", task_id).stdout)["status"] == "failed"


def test_a_cancelled_task_has_no_result(farcall: Any, waiting_task: str) -> None:
    farcall("cancel", waiting_task)

    done = farcall("result", waiting_task)

    assert (done.exit_code, done.stdout, done.stderr) == (1, "", "cancelled by owner\n")


def test_what_was_printed_so_far_is_shown(service: Any, farcall: Any, waiting_task: str) -> None:
    service.print_to(waiting_task, "one\ntwo")

    assert farcall("logs", waiting_task).stdout == "one\ntwo"
    assert farcall("logs", "--after", "4", waiting_task).stdout == "two"
    assert farcall("logs", "--stderr", waiting_task).stdout == ""


def test_followed_logs_end_with_the_task_and_say_how(service: Any, farcall: Any, waiting_task: str) -> None:
    service.print_to(waiting_task, "one\n")
    service.run_all()

    done = farcall("logs", "-f", waiting_task)

    assert (done.exit_code, done.stdout) == (0, "one\n")
    assert done.stderr == f"The task {waiting_task} has ended: success\n"


def test_followed_logs_of_a_cancelled_task_say_who_cancelled_it(farcall: Any, waiting_task: str) -> None:
    farcall("cancel", waiting_task)

    assert farcall("logs", "-f", waiting_task).stderr.endswith("has ended: cancelled: cancelled by owner\n")


def test_tasks_are_listed(service: Any, farcall: Any) -> None:
    listed = {"task_id": UNKNOWN, "status": "running", "created_at": "2026-11-25T10:00:00Z", "endpoint_id": UNKNOWN}
    service.script = lambda seen: (200, {"tasks": [listed], "next": None}) if seen.path == "/v2/tasks" else None

    shown = farcall("tasks", "--state", "running", "-n", "3").stdout.splitlines()

    assert service.seen[-1].query == {"state": "running", "limit": "3"}
    assert shown[0].split() == ["TASK", "STATE", "SUBMITTED", "ENDPOINT"]
    assert shown[1].startswith(f"{UNKNOWN}  running  ")
    assert json.loads(farcall("tasks", "--json").stdout) == [listed]


def test_a_state_that_there_is_none_of_is_refused_with_those_that_there_are(service: Any, farcall: Any) -> None:
    done = farcall("tasks", "--state", "nonsense")

    assert done.exit_code == 2
    assert done.stderr.startswith("there is no state 'nonsense': --state takes one of received, waiting-for-ep, ")
    assert service.seen == []


def test_the_caller_and_the_limits_are_shown(service: Any, farcall: Any) -> None:
    answers = {"/v2/whoami": {"id": "u1", "name": "ada", "groups": []}, "/v2/limits": {"max_batch_tasks": 10}}
    service.script = lambda seen: (200, answers[seen.path]) if seen.path in answers else None

    assert farcall("whoami").stdout.splitlines() == ["name     ada", "id       u1", f"service  {service.url}"]
    assert farcall("limits").stdout == "max_batch_tasks  10\n"
    assert json.loads(farcall("limits", "--json").stdout) == {"max_batch_tasks": 10}


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("status", "abc"), 2, "task_id 'abc' is not a UUID such as"),
        (("status", UNKNOWN), 69, f"Task {UNKNOWN} not found"),
        (("cancel", "abc"), 2, "task_id 'abc' is not a UUID such as"),
        (("logs", "-f", UNKNOWN), 69, f"Task {UNKNOWN} not found"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(farcall: Any, words: Any, code: int, sentence: str) -> None:
    done = farcall(*words)

    assert (done.exit_code, done.stdout) == (code, "")
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_token_that_is_refused_is_said_with_what_to_do(farcall: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARCALL_TOKEN", "wrong")

    done = farcall("status", UNKNOWN)

    assert done.exit_code == 77
    assert done.stderr.splitlines()[1] == "Set FARCALL_TOKEN, or keep a token with: farcall-endpoint login"


def test_ctrl_c_ends_the_command_without_a_word(service: Any, farcall: Any, waiting_task: str) -> None:
    command = Path(sys.executable).parent / "farcall"
    with subprocess.Popen(
        [command, "logs", "-f", waiting_task], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    ) as running:
        assert running.stdout is not None
        service.print_to(waiting_task, "one\n")
        assert running.stdout.readline() == "one\n"
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)

    assert (running.returncode, out, err) == (130, "", "")


def test_importing_the_library_does_not_load_the_command() -> None:
    program = (
        "import sys, farcall; farcall.Client, farcall.Executor; "
        "print([name for name in ('typer', 'click', 'rich', 'asyncio', 'farcall.cli') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)

    assert done.stdout == "[]\n"


def test_help_and_version_need_no_service(farcall: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARCALL_SERVICE_URL", "nonsense")

    assert "130 ended by Ctrl-C" in " ".join(farcall("--help").stdout.split())
    assert farcall("--version").stdout.startswith("farcall 0.")
