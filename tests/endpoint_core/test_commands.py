"""The farcall-endpoint commands, on a real agent process with a stand-in for what it does."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner, Result

from farcall.config import CLIENT_VARIABLES
from farcall.wire import BatchedTask, FunctionCode, TaskBatch
from farcall_endpoint import daemon, directories, loading, pidfile, plugins
from farcall_endpoint.cli import app
from farcall_endpoint.config import EngineConfig
from farcall_endpoint.journal import Journal
from farcall_endpoint.pidfile import State

_spec = importlib.util.spec_from_file_location("commands_support", Path(__file__).with_name("commands_support.py"))
assert _spec is not None and _spec.loader is not None
support = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(support)

Run = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home with an agent that only pretends to be one; none of it lives on after the test."""
    home, stand_in = tmp_path / "home", tmp_path / "stand-in"
    stand_in.mkdir()
    (stand_in / "sitecustomize.py").write_text(support.FAKE_AGENT)
    for name in ("FARCALL_TOKEN", "FARCALL_SERVICE_URL", *itertools.chain(*CLIENT_VARIABLES)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FARCALL_HOME", str(home))
    monkeypatch.setenv("PYTHONPATH", str(stand_in))
    # Nothing listens there.
    monkeypatch.setenv("FARCALL_SERVICE_URL", "http://127.0.0.1:9")
    yield home
    for directory in directories.endpoint_directories():
        holder = pidfile.read_holder(directory)
        if holder and pidfile.state_of(directory) is State.RUNNING:
            os.kill(holder.pid, signal.SIGKILL)


@pytest.fixture
def run(home: Path) -> Run:
    def run(*words: str, code: int = 0, **options: Any) -> Result:
        result = CliRunner().invoke(app, words, **options)
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.fixture
def service(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    service = support.FakeService()
    monkeypatch.setenv("FARCALL_SERVICE_URL", service.url)
    monkeypatch.setenv("FARCALL_TOKEN", "good")
    yield service
    service.close()


def state(home: Path, name: str = "default") -> State:
    return pidfile.state_of(home / name)


def agent_of(home: Path) -> psutil.Process:
    holder = pidfile.read_holder(home / "default")
    assert holder is not None
    return psutil.Process(holder.pid)


def kill_agent(home: Path) -> None:
    agent = agent_of(home)
    agent.kill()
    psutil.wait_procs([agent], timeout=20)


# -- configure --------------------------------------------------------------------------------------------------------


def test_a_new_endpoint_has_a_private_directory_and_the_next_command_is_named(home: Path, run: Run) -> None:
    said = run("configure").stdout

    assert stat.S_IMODE((home / "default").stat().st_mode) == 0o700
    assert "farcall-endpoint start default" in said


def test_the_written_configuration_says_the_defaults(home: Path, run: Run) -> None:
    run("configure", "mine", "--display-name", 'Mine: "the one"')

    config = loading.load_config(home / "mine")

    assert config.display_name == 'Mine: "the one"'
    assert config.engine == EngineConfig()
    assert plugins.provider_config(config.provider)[1] == plugins.load_provider("local").Config()


def test_every_key_of_the_written_configuration_has_a_comment(home: Path, run: Run) -> None:
    run("configure")

    lines = (home / "default" / "config.yaml").read_text().splitlines()

    keys = [number for number, line in enumerate(lines) if re.match(r"\s*\w+: \S", line)]
    silent = [lines[number] for number in keys if not lines[number - 1].lstrip().startswith("#")]
    assert silent == ['    type: "local"']


@pytest.mark.parametrize("name", ["a b", "../x", ".hidden", "x/y", "", "service", "x" * 101])
def test_a_bad_name_is_refused(home: Path, run: Run, name: str) -> None:
    assert "cannot be called" in run("configure", name, code=os.EX_CONFIG).stderr
    assert not home.exists()


def test_an_existing_endpoint_is_not_overwritten(home: Path, run: Run) -> None:
    run("configure")
    (home / "default" / "config.yaml").write_text("display_name: mine\n")

    assert "exists already" in run("configure", code=os.EX_CONFIG).stderr

    assert (home / "default" / "config.yaml").read_text() == "display_name: mine\n"


def test_a_given_configuration_is_copied_once_it_is_right(home: Path, run: Run, tmp_path: Path) -> None:
    source = tmp_path / "my.yaml"
    source.write_text("display_name: given\n")

    run("configure", "--endpoint-config", str(source))

    assert loading.load_config(home / "default").display_name == "given"


def test_a_given_configuration_with_a_mistake_leaves_nothing_behind(home: Path, run: Run, tmp_path: Path) -> None:
    source = tmp_path / "my.yaml"
    source.write_text("displayname: given\n")

    said = run("configure", "--endpoint-config", str(source), code=os.EX_CONFIG).stderr

    assert f"{source}, line 1: displayname" in said
    assert list(home.iterdir()) == []


def test_an_unknown_provider_leaves_nothing_behind(home: Path, run: Run) -> None:
    said = run("configure", "--provider", "nope", code=os.EX_CONFIG).stderr

    before, _, installed = said.partition("; installed: ")
    assert before.endswith("no installed plugin brings a provider called 'nope'")
    assert "local" in installed.strip().split(", ")
    assert list(home.iterdir()) == []


# -- start and stop ---------------------------------------------------------------------------------------------------


def test_an_endpoint_starts_and_stops(home: Path, run: Run) -> None:
    run("configure")

    assert support.ENDPOINT_ID in run("start").stdout
    assert state(home) is State.RUNNING

    assert "is stopped" in run("stop").stdout
    assert state(home) is State.STOPPED


def test_a_second_start_changes_nothing_and_says_so(home: Path, run: Run) -> None:
    run("configure")
    run("start")
    first = agent_of(home)

    said = run("start").stdout

    assert f"already running (pid {first.pid}" in said
    assert agent_of(home) == first


def test_a_second_agent_in_the_foreground_changes_nothing_either(home: Path, run: Run) -> None:
    run("configure")
    run("start")

    assert "already running" in run("start", "--foreground").stdout


def test_two_starts_at_once_make_one_agent(home: Path, run: Run) -> None:
    run("configure")

    starts = [
        subprocess.Popen([sys.executable, "-m", "farcall_endpoint", "start"], stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]

    assert [start.wait() for start in starts] == [0, 0, 0]
    for start in starts:
        start.communicate()
    assert state(home) is State.RUNNING


def test_a_killed_agent_is_seen_and_the_next_start_cleans_up(home: Path, run: Run) -> None:
    run("configure")
    run("start")
    kill_agent(home)
    assert state(home) is State.DISCONNECTED

    assert "not stopped in an orderly way" in run("start").stdout

    assert state(home) is State.RUNNING


def test_stopping_a_killed_agent_cleans_up(home: Path, run: Run) -> None:
    run("configure")
    run("start")
    kill_agent(home)

    assert "cleaned up" in run("stop").stdout

    assert state(home) is State.STOPPED


def test_stopping_what_does_not_run_does_nothing(home: Path, run: Run) -> None:
    run("configure")

    assert "is not running" in run("stop").stdout

    assert state(home) is State.INITIALIZED


def test_an_agent_that_does_not_stop_is_killed(home: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_AGENT", "stubborn")
    monkeypatch.setattr(daemon, "_STOP_PATIENCE_S", 0.2)
    run("configure")
    run("start")

    assert "was killed" in run("stop").stdout

    assert state(home) is State.STOPPED


def test_a_restart_makes_another_agent(home: Path, run: Run) -> None:
    run("configure")
    run("start")
    first = agent_of(home)

    run("restart")

    assert state(home) is State.RUNNING
    assert agent_of(home) != first


def test_a_restart_with_a_mistake_in_the_configuration_stops_nothing(home: Path, run: Run) -> None:
    run("configure")
    run("start")
    (home / "default" / "config.yaml").write_text("engin: {}\n")

    assert "did you mean 'engine'?" in run("restart", code=os.EX_CONFIG).stderr

    assert state(home) is State.RUNNING


def test_a_refused_start_says_why_and_with_which_code(home: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_AGENT", "refused")
    run("configure")

    said = run("start", code=os.EX_UNAVAILABLE).stderr

    assert "this endpoint runs on login1 already" in said
    assert state(home) is State.INITIALIZED


def test_a_crash_shows_the_end_of_the_log(home: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_AGENT", "crash")
    run("configure")

    assert "something nobody thought of" in run("start", code=1).stderr


def test_a_start_that_has_to_wait_says_for_what(home: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_AGENT", "patient")
    run("configure")

    assert "no answer from the service; trying again for 30 s" in run("start").stderr


def test_a_chosen_id_is_used(home: Path, run: Run) -> None:
    run("configure")
    chosen = "00000000-0000-4000-8000-000000000007"

    assert chosen in run("start", "--endpoint-uuid", chosen).stdout


def test_a_chosen_id_that_was_refused_is_not_kept(home: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_AGENT", "refused")
    run("configure")

    run("start", "--endpoint-uuid", "00000000-0000-4000-8000-000000000007", code=os.EX_UNAVAILABLE)

    assert state(home) is State.INITIALIZED


def test_an_endpoint_with_an_id_takes_no_other(home: Path, run: Run) -> None:
    run("configure")
    directories.write_endpoint_id(home / "default", support.ENDPOINT_ID)

    said = run("start", "--endpoint-uuid", "00000000-0000-4000-8000-000000000007", code=os.EX_CONFIG).stderr

    assert support.ENDPOINT_ID in said


def test_a_damaged_id_is_named_and_kept(home: Path, run: Run) -> None:
    run("configure")
    (home / "default" / "endpoint.json").write_text("{")

    assert "endpoint.json is damaged" in run("start", code=os.EX_CONFIG).stderr

    assert (home / "default" / "endpoint.json").read_text() == "{"


@pytest.mark.parametrize("command", ["start", "stop", "restart", "status", "logs"])
def test_a_name_that_is_not_there_is_answered_with_the_way_to_make_it(run: Run, command: str) -> None:
    assert "farcall-endpoint configure nope" in run(command, "nope", code=os.EX_CONFIG).stderr


def test_an_agent_of_another_machine_is_said_to_be_there(home: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("configure")
    run("start")
    monkeypatch.setattr("socket.gethostname", lambda: "login2")

    said = run("stop", code=1).stderr

    assert "not on this machine" in said
    assert "--remote" in said
    assert state(home) is State.RUNNING


def test_stop_remote_asks_the_service(home: Path, run: Run, service: Any) -> None:
    run("configure")
    directories.write_endpoint_id(home / "default", support.ENDPOINT_ID)

    run("stop", "--remote")

    assert service.asked == [f"POST /v2/endpoints/{support.ENDPOINT_ID}/lock"]


# -- looking ----------------------------------------------------------------------------------------------------------


def test_the_list_tells_the_four_states(home: Path, run: Run) -> None:
    for name in ("default", "new", "old"):
        run("configure", name)
    directories.write_endpoint_id(home / "old", support.ENDPOINT_ID)
    run("start")

    listed = {endpoint["name"]: endpoint for endpoint in json.loads(run("list", "--json").stdout)}
    kill_agent(home)
    later = run("list").stdout

    assert {name: endpoint["status"] for name, endpoint in listed.items()} == {
        "default": "Running",
        "new": "Initialized",
        "old": "Stopped",
    }
    assert (listed["new"]["endpoint_id"], listed["old"]["endpoint_id"]) == (None, support.ENDPOINT_ID)
    assert "Disconnected" in later
    assert support.ENDPOINT_ID in later


def test_an_empty_list_says_how_to_make_an_endpoint(run: Run) -> None:
    assert "farcall-endpoint configure" in run("list").stdout


def test_the_services_own_directory_is_no_endpoint(home: Path, run: Run) -> None:
    (home / "service").mkdir(parents=True)
    (home / "service" / "config.yaml").touch()

    assert json.loads(run("list", "--json").stdout) == []


def test_the_status_shows_what_the_service_knows(home: Path, run: Run, service: Any) -> None:
    run("configure")
    run("start")

    facts = json.loads(run("status", "--json").stdout)

    assert (facts["status"], facts["service_status"]) == ("Running", "online")
    assert (facts["total_workers"], facts["outstanding_tasks"]) == (2, 5)
    assert facts["pid"] == agent_of(home).pid


def test_the_status_works_without_the_service(home: Path, run: Run) -> None:
    run("configure")
    directories.write_endpoint_id(home / "default", support.ENDPOINT_ID)

    said = run("status").stdout

    assert "Stopped" in said
    assert "not known: no answer from the service" in said


def test_the_log_holds_what_was_logged_and_what_was_printed_past_it(run: Run) -> None:
    run("configure")
    run("start")

    assert "printed past the log" in run("logs").stdout


def test_of_the_log_as_many_lines_are_shown_as_were_asked_for(home: Path, run: Run) -> None:
    run("configure")
    (home / "default" / "endpoint.log").write_text("".join(f"line {number}\n" for number in range(9)))

    assert run("logs", "-n", "2").stdout == "line 7\nline 8\n"


def test_lines_from_before_a_rotation_are_shown_too(home: Path, run: Run) -> None:
    run("configure")
    (home / "default" / "endpoint.log.1").write_text("before\n")
    (home / "default" / "endpoint.log").write_text("after\n")

    assert run("logs").stdout == "before\nafter\n"


def test_following_goes_on_after_a_rotation(home: Path, run: Run) -> None:
    run("configure")
    log = home / "default" / "endpoint.log"
    log.write_text("first\n")
    command = [sys.executable, "-m", "farcall_endpoint", "logs", "-f"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as following:
        assert following.stdout is not None
        assert following.stdout.readline() == "first\n"

        log.rename(log.with_name("endpoint.log.1"))
        log.write_text("second\n")

        assert following.stdout.readline() == "second\n"
        following.kill()


def test_a_log_that_is_not_there_yet_is_no_error(run: Run) -> None:
    run("configure")

    assert "has not run yet" in run("logs").stderr


def test_the_doctor_finds_a_working_endpoint_well(home: Path, run: Run, service: Any) -> None:
    run("configure")
    run("start")

    said = run("doctor").stdout

    assert "BAD" not in said
    assert f"{support.ENDPOINT_ID} is online" in said


def test_the_doctor_names_each_fault_and_how_to_mend_it(home: Path, run: Run) -> None:
    run("configure")
    (home / "default" / "config.yaml").write_text("engine: {provider: {type: nope}}\n")

    said = run("doctor", code=1).stdout

    assert "BAD  provider: no installed plugin brings a provider called 'nope'" in said
    assert "BAD  service: no answer" in said
    assert "farcall-webservice serve" in said


def test_a_start_on_a_full_disk_names_the_file_and_leaves_nothing_behind(
    disk: Any, home: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARCALL_HOME", str(disk.path))
    run("configure")
    disk.fill()

    said = run("start", code=1).stderr
    ill = run("doctor", code=1).stdout

    assert f"{disk.path / 'default' / 'agent.pid'} cannot be written: No space left on device" in said
    assert pidfile.state_of(disk.path / "default") is State.INITIALIZED
    assert "BAD  journal: 0 KiB are free on the disk of" in ill


def test_an_agent_that_finds_its_disk_full_while_it_starts_is_not_called_disconnected(
    home: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_AGENT", "full")
    run("configure")

    said = run("start", code=1).stderr

    assert f"{home / 'default' / 'endpoint.json'} cannot be written: No space left on device" in said
    assert pidfile.state_of(home / "default") is State.INITIALIZED


def test_the_doctor_looks_into_the_journal_and_changes_nothing(home: Path, run: Run, service: Any) -> None:
    run("configure")
    path = home / "default" / "journal.sqlite"
    journal = Journal(path)
    tasks = [BatchedTask(task_id, "f", "payload") for task_id in "abc"]
    journal.accept(TaskBatch({"f": FunctionCode("code")}, tasks))
    journal.finish([("a", "result")])
    journal.close()
    before = path.read_bytes()

    well = run("doctor").stdout
    unchanged = path.read_bytes() == before
    path.write_bytes(before[: len(before) // 2])
    ill = run("doctor", code=1).stdout

    assert f"{path}: 2 tasks unfinished, 1 results not sent" in well
    assert unchanged
    assert f"BAD  journal: the journal {path} is damaged (" in ill


def test_the_doctor_sees_a_wrong_token(run: Run, service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARCALL_TOKEN", "bad")
    run("configure")

    said = run("doctor", code=1).stdout

    assert "this token is not known" in said
    assert "farcall-endpoint login" in said


def test_the_doctor_sees_an_agent_that_does_not_reach_the_broker(run: Run, service: Any) -> None:
    run("configure")
    run("start")
    service.answers[f"GET /v2/endpoints/{support.ENDPOINT_ID}/status"] = (200, {"status": "offline"})

    assert "does not reach the broker" in run("doctor", code=1).stdout


def test_the_installed_providers_are_listed(run: Run) -> None:
    listed = json.loads(run("providers", "--json").stdout)

    [local] = [provider for provider in listed if provider["name"] == "local"]
    assert (local["distribution"], local["version"]) == ("farcall-provider-local", "0.1.0")
    assert local["origin"]
    assert "farcall-provider-local" in run("providers").stdout


# -- delete -----------------------------------------------------------------------------------------------------------


def test_deleting_tells_the_service_and_removes_the_directory(home: Path, run: Run, service: Any) -> None:
    run("configure")
    directories.write_endpoint_id(home / "default", support.ENDPOINT_ID)

    run("delete", "--yes")

    assert service.asked == [f"DELETE /v2/endpoints/{support.ENDPOINT_ID}"]
    assert not (home / "default").exists()


def test_deleting_asks_first(home: Path, run: Run) -> None:
    run("configure")

    run("delete", input="n\n", code=1)

    assert (home / "default").exists()


def test_a_running_endpoint_is_not_deleted(home: Path, run: Run, service: Any) -> None:
    run("configure")
    run("start")

    assert "stop it first" in run("delete", "--yes", code=os.EX_CONFIG).stderr

    assert service.asked == []
    assert state(home) is State.RUNNING


def test_a_running_endpoint_is_stopped_and_deleted_by_force(home: Path, run: Run, service: Any) -> None:
    run("configure")
    run("start")
    agent = agent_of(home)

    run("delete", "--yes", "--force")

    assert not agent.is_running()
    assert not (home / "default").exists()


def test_without_the_service_an_endpoint_is_only_deleted_by_force(home: Path, run: Run) -> None:
    run("configure")
    directories.write_endpoint_id(home / "default", support.ENDPOINT_ID)

    run("delete", "--yes", code=os.EX_TEMPFAIL)
    assert (home / "default").exists()

    run("delete", "--yes", "--force")
    assert not (home / "default").exists()


def test_an_endpoint_that_the_service_does_not_know_is_deleted_here(home: Path, run: Run, service: Any) -> None:
    run("configure")
    directories.write_endpoint_id(home / "default", support.ENDPOINT_ID)
    service.answers.clear()

    run("delete", "--yes")

    assert not (home / "default").exists()


# -- who am I ---------------------------------------------------------------------------------------------------------


def test_login_keeps_a_token_that_the_service_accepts(
    home: Path, run: Run, service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FARCALL_TOKEN")
    monkeypatch.delenv("FARCALL_SERVICE_URL")

    run("login", "--service-url", service.url, input="good\n")

    assert "ada" in run("whoami").stdout
    credentials = home / "credentials.json"
    assert json.loads(credentials.read_text()) == {"service_url": service.url, "token": "good"}
    assert stat.S_IMODE(credentials.stat().st_mode) == 0o600


def test_login_keeps_no_token_that_the_service_refuses(home: Path, run: Run, service: Any) -> None:
    said = run("login", "--token", "bad", code=os.EX_NOPERM).stderr

    assert "this token is not known" in said
    assert not (home / "credentials.json").exists()


def test_login_as_a_client_keeps_its_id_and_secret_which_later_commands_turn_into_tokens(
    home: Path, run: Run, service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FARCALL_TOKEN")

    run("login", "--client-id", "c1", input="secret\n")

    credentials = home / "credentials.json"
    assert json.loads(credentials.read_text()) == {
        "service_url": service.url,
        "client_id": "c1",
        "client_secret": "secret",
    }
    assert stat.S_IMODE(credentials.stat().st_mode) == 0o600
    service.asked.clear()
    assert "ada" in run("whoami").stdout
    assert service.asked == ["POST /auth/v2/oauth2/token", "GET /v2/whoami"]


def test_login_as_a_client_keeps_nothing_that_the_service_refuses(home: Path, run: Run, service: Any) -> None:
    service.answers["POST /auth/v2/oauth2/token"] = (400, {"code": "INVALID_CLIENT", "message": "no such client"})

    said = run("login", "--client-id", "c1", input="secret\n", code=os.EX_NOPERM).stderr

    assert "does not let the client c1 in: no such client" in said
    assert not (home / "credentials.json").exists()


def test_what_the_environment_says_is_told_to_go_first(run: Run, service: Any) -> None:
    said = run("login", "--token", "good").stderr

    assert "FARCALL_TOKEN is set, and goes before what is kept" in said


def test_logout_forgets_the_token(home: Path, run: Run, service: Any) -> None:
    run("login", "--token", "good")

    assert "Logged out" in run("logout").stdout
    assert "Nobody is logged in" in run("logout").stdout


def test_whoami_without_the_service_says_that_it_does_not_answer(run: Run) -> None:
    assert "no answer from the service" in run("whoami", code=os.EX_TEMPFAIL).stderr


# -- the command itself -----------------------------------------------------------------------------------------------


def test_what_takes_long_to_import_is_not_imported_for_a_list(home: Path) -> None:
    code = "import sys; from farcall_endpoint import cli; print({'parsl', 'kombu', 'dill', 'rich'} & set(sys.modules))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "set()\n"


def test_the_version_is_told(run: Run) -> None:
    assert run("version").stdout == "0.1.0\n"
