"""The service's settings and its command."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from servers import PrivatePostgres
from typer.testing import CliRunner, Result

from farcall.errors import ConfigurationError
from farcall_webservice import auth
from farcall_webservice.cli import app
from farcall_webservice.config import ServiceConfig
from farcall_webservice.database import Database
from farcall_webservice.oauth import passwords


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in ("FARCALL_DATABASE_URL", "FARCALL_BROKER_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("FARCALL_HOME", str(tmp_path))
    return tmp_path


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result


def test_without_settings_everything_is_in_the_home(tmp_path: Path) -> None:
    config = ServiceConfig.from_environment({"FARCALL_HOME": str(tmp_path)})

    assert config.database_url == f"sqlite:///{tmp_path}/service/ledger.sqlite"
    assert (config.broker_url, config.host, config.port) == (None, "127.0.0.1", 5000)


def test_an_option_goes_before_its_variable() -> None:
    config = ServiceConfig.from_environment(
        {"FARCALL_HOME": "/a", "FARCALL_BROKER_URL": "amqp://variable/", "FARCALL_MAX_BATCH_TASKS": "7"},
        home=Path("/b"),
        broker_url="redis://option/0",
        port=None,
    )

    assert (config.home, config.broker_url, config.max_batch_tasks) == (Path("/b"), "redis://option/0", 7)


@pytest.mark.parametrize("command", ["web", "collect"])
@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ((), "--database-url postgresql://"),
        (("--database-url", "postgresql://localhost/ledger"), "--broker-url amqp://"),
        (("--database-url", "postgresql://127.0.0.1:1/ledger", "--broker-url", "amqp://h/"), "127.0.0.1:1/ledger"),
    ],
    ids=["no PostgreSQL", "no broker", "no answer"],
)
@pytest.mark.usefixtures("home")
def test_the_processes_of_the_larger_setting_say_what_they_need(
    command: str, options: tuple[str, ...], wanted: str
) -> None:
    assert wanted in run(command, *options, code=1).output


def test_they_want_tables_that_have_been_made_and_a_broker_that_answers(home: Path, postgres: PrivatePostgres) -> None:
    where = ("--database-url", postgres.database(), "--broker-url", "amqp://guest:secret@127.0.0.1:1/there")

    assert "db upgrade" in run("collect", *where, code=1).output
    run("db", "upgrade", *where[:2])
    refused = run("web", *where, code=1).output
    assert "127.0.0.1:1/there" in refused
    assert "secret" not in refused


def test_a_command_says_which_database_it_works_on_and_that_it_has_made_one(home: Path) -> None:
    file = str(home / "service" / "ledger.sqlite")

    first, second = (run("user", "add", name) for name in ("ada", "bob"))

    assert f"The database is {file}; it is new" in first.stderr
    assert f"The database is {file}\n" in second.stderr
    assert file not in second.stdout


@pytest.mark.parametrize("variable", ["FARCALL_DATABASE_URL", "FARCALL_BROKER_URL", "FARCALL_BROKER_ADMIN_URL"])
@pytest.mark.parametrize("rest", ["p/w@1 x@127.0.0.1:1/n", "hush@word@127.0.0.1/n", "hush%word@h/n", "hush@h:abc/n"])
def test_a_password_that_would_shift_the_parts_of_a_url_is_refused_and_not_shown(variable: str, rest: str) -> None:
    scheme = {"FARCALL_DATABASE_URL": "postgresql", "FARCALL_BROKER_URL": "amqp"}.get(variable, "http")

    with pytest.raises(ConfigurationError, match=f"^{variable} cannot be read .* %40 ") as caught:
        ServiceConfig.from_environment({variable: f"{scheme}://me:{rest}"})

    assert rest[:4] not in str(caught.value)


@pytest.mark.usefixtures("home")
def test_web_says_at_once_that_its_port_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farcall_webservice.larger.check", lambda *_: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        refused = run("web", "--port", str(port), code=1).output

    assert refused.startswith(f"error: cannot listen on 127.0.0.1 port {port}: ")


def test_postgresql_is_changed_by_db_upgrade_alone(home: Path, postgres: PrivatePostgres) -> None:
    where = ("--database-url", postgres.database())

    refused = run("user", "add", "ada", *where, code=1).output
    assert "not those of this version" in refused and "`farcall-webservice db upgrade` first" in refused
    # Had it left tables, this would now be refused for another reason or not at all.
    assert run("user", "list", *where, code=1).output == refused
    run("db", "upgrade", *where)

    run("user", "add", "ada", *where)
    assert "ada" in run("user", "list", *where).output


@pytest.mark.parametrize("command", ["serve", "web", "collect"])
@pytest.mark.parametrize(
    "wrong", [("--queue-type", "fast"), ("--broker-admin-url", "amqp://h/")], ids=lambda words: words[0]
)
@pytest.mark.usefixtures("home")
def test_every_process_takes_what_concerns_the_broker(command: str, wrong: tuple[str, str]) -> None:
    assert f"option {wrong[0]} " in run(command, *wrong, code=1).output


def test_postgresql_is_reached_by_the_driver_that_we_install() -> None:
    config = ServiceConfig.from_environment({"FARCALL_DATABASE_URL": "postgresql://me@host/ledger"})

    assert config.database_url == "postgresql+psycopg://me@host/ledger"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FARCALL_MAX_PAYLOAD_BYTES", "10 MB"),
        ("FARCALL_MAX_FUNCTION_BYTES", "0"),
        ("FARCALL_MAX_BATCH_TASKS", "-1"),
        ("FARCALL_PORT", "70000"),
        ("FARCALL_DATABASE_URL", "mysql://host/ledger"),
        ("FARCALL_BROKER_URL", "localhost:5672"),
    ],
)
def test_a_wrong_value_is_answered_with_the_name_of_its_variable(variable: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{variable} "):
        ServiceConfig.from_environment({variable: value})


def test_a_wrong_url_does_not_give_its_password_away() -> None:
    with pytest.raises(ConfigurationError) as caught:
        ServiceConfig.from_environment({"FARCALL_BROKER_URL": "stomp://me:secret@host/"})

    assert "secret" not in str(caught.value)


def test_a_wrong_option_is_one_sentence_and_not_a_traceback(home: Path) -> None:
    result = run("serve", "--broker-url", "nonsense", code=1)

    assert result.output.startswith("error: option --broker-url begins with 'nonsense'")


def test_a_user_and_a_token_can_be_made_before_the_service_has_ever_run(home: Path) -> None:
    run("user", "add", "ada")
    secret = run("token", "create", "ada", "--expires", "30", "--label", "laptop").stdout.strip()

    database = Database(ServiceConfig.from_environment().database_url)
    caller = auth.check(database, f"Bearer {secret}")
    database.close()
    assert caller.name == "ada"
    assert "ada" in run("user", "list").stdout
    listed = run("token", "list").stdout
    assert "expires" in listed and "laptop" in listed and secret not in listed


def test_a_token_is_revoked_by_the_id_that_the_list_shows(home: Path) -> None:
    run("user", "add", "ada")
    run("token", "create", "ada")
    token_id = run("token", "list").stdout.split()[0]

    run("token", "revoke", token_id)

    assert "revoked" in run("token", "list").stdout
    assert "there is no token 'nonsense'" in run("token", "revoke", "nonsense", code=1).output


def test_a_client_is_made_with_its_user_and_revoked_by_the_id_that_the_list_shows(home: Path) -> None:
    created = run("client", "create", "robot")
    printed = dict(line.split("=", 1) for line in created.stdout.splitlines())
    assert "There was no user robot; there is one now.\n" in created.stderr
    assert "no user" not in run("client", "create", "robot", "--name", "another").stderr
    client_id, secret = printed["FARCALL_CLIENT_ID"], printed["FARCALL_CLIENT_SECRET"]

    listed = run("client", "list").stdout
    assert client_id in listed and "active" in listed and "robot" in listed and secret not in listed
    assert "robot" in run("user", "list").stdout
    run("client", "revoke", client_id)

    assert "revoked" in run("client", "list").stdout
    assert "there is no client 'nonsense'" in run("client", "revoke", "nonsense", code=1).output
    wrong = run("client", "create", "robot", "--redirect-uri", "nonsense", code=1)
    assert "cannot be a redirect URI" in wrong.output


def test_a_password_is_read_from_a_pipe_or_asked_for_twice(home: Path) -> None:
    run("user", "add", "ada")

    piped = CliRunner().invoke(app, ["user", "password", "ada", "--stdin"], input="correct horse\n")
    asked = CliRunner().invoke(app, ["user", "password", "ada"], input="battery staple\nbattery staple\n")
    nobody = CliRunner().invoke(app, ["user", "password", "eve"], input="battery staple\nbattery staple\n")
    short = CliRunner().invoke(app, ["user", "password", "ada", "--stdin"], input="short\n")

    assert "`user logout ada` ends the logins" in piped.output
    assert (piped.exit_code, asked.exit_code, nobody.exit_code, short.exit_code) == (0, 0, 1, 1)
    assert "battery" not in asked.output
    assert nobody.stderr.endswith("error: there is no user 'eve'\n")
    database = Database(ServiceConfig.from_environment().database_url)
    assert passwords.log_in(database, "ada", "battery staple", "here")
    database.close()


def test_a_user_is_logged_out_everywhere(home: Path) -> None:
    run("user", "add", "ada")

    assert "logged out everywhere" in run("user", "logout", "ada").output
    assert "there is no user 'eve'" in run("user", "logout", "eve", code=1).output


def test_groups_are_made_and_filled(home: Path) -> None:
    run("user", "add", "ada")
    run("group", "create", "analysts")

    run("group", "add", "analysts", "ada")

    assert "there is no group 'nobody'" in run("group", "add", "nobody", "ada", code=1).output
    assert "there is a user 'ada' already" in run("user", "add", "ada", code=1).output


def test_the_database_can_be_upgraded_twice(home: Path) -> None:
    run("db", "upgrade")

    assert "up to date" in run("db", "upgrade").output


def test_a_home_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FARCALL_HOME", str(tmp_path / "file"))

    assert run("user", "list", code=1).output.startswith("error: ")
