"""Where the service is and with which token."""

from __future__ import annotations

from pathlib import Path

import pytest

from farcall import config
from farcall.errors import ConfigurationError


def test_without_anything_the_service_is_on_this_machine_and_there_is_no_token() -> None:
    assert config.load() == config.Settings("http://localhost:5000", None)


def test_what_was_written_is_found_again_and_only_the_user_may_read_it(own_home: Path) -> None:
    path = config.write_credentials("http://127.0.0.1:5001/", "fc_secret")

    assert config.load() == config.Settings("http://127.0.0.1:5001", "fc_secret")
    assert path == own_home / "credentials.json"
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_environment_comes_before_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_credentials("http://127.0.0.1:5001", "fc_file")
    monkeypatch.setenv("FARCALL_SERVICE_URL", "https://farcall.example.org")
    monkeypatch.setenv("FARCALL_TOKEN", "fc_environment")

    assert config.load() == config.Settings("https://farcall.example.org", "fc_environment")


def test_a_clients_id_and_secret_come_before_the_file_and_after_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_credentials("http://127.0.0.1:5001", "fc_file")
    monkeypatch.setenv("FARCALL_CLIENT_ID", "client")
    monkeypatch.setenv("FARCALL_CLIENT_SECRET", "secret")

    loaded = config.load()

    assert (loaded.token, loaded.client_id, loaded.client_secret) == (None, "client", "secret")
    assert config.login_variable() == "FARCALL_CLIENT_ID"
    monkeypatch.setenv("FARCALL_TOKEN", "fc_environment")
    assert config.load() == config.Settings("http://127.0.0.1:5001", "fc_environment")
    assert config.login_variable() == "FARCALL_TOKEN"


@pytest.mark.parametrize(("id_name", "secret_name"), config.GLOBUS_VARIABLES)
def test_a_secret_that_may_be_for_globus_is_used_only_where_there_is_nothing_else(
    monkeypatch: pytest.MonkeyPatch, id_name: str, secret_name: str
) -> None:
    monkeypatch.setenv(id_name, "client")
    monkeypatch.setenv(secret_name, "secret")
    assert config.load() == config.Settings("http://localhost:5000", None, "client", "secret")

    config.write_credentials("http://127.0.0.1:5001", "fc_file")

    assert config.load() == config.Settings("http://127.0.0.1:5001", "fc_file")
    assert config.login_variable() is None
    # Nor does half of one disturb.
    monkeypatch.delenv(id_name)
    assert config.load().token == "fc_file"


@pytest.mark.parametrize(
    ("there", "missing"),
    [
        ("FARCALL_CLIENT_ID", "FARCALL_CLIENT_SECRET"),
        ("FARCALL_CLIENT_SECRET", "FARCALL_CLIENT_ID"),
        ("GLOBUS_COMPUTE_CLIENT_SECRET", "GLOBUS_COMPUTE_CLIENT_ID"),
    ],
)
def test_half_a_client_is_named_with_its_other_half(monkeypatch: pytest.MonkeyPatch, there: str, missing: str) -> None:
    monkeypatch.setenv(there, "x")

    with pytest.raises(ConfigurationError, match=f"{there} is set, but {missing} is not"):
        config.load()


def test_an_id_alone_that_means_something_to_globus_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOBUS_COMPUTE_CLIENT_ID", "x")

    assert config.load().client_id is None


def test_a_stored_client_is_found_again_but_goes_to_no_other_service() -> None:
    path = config.write_credentials("http://127.0.0.1:5001", client_id="client", client_secret="fcs_secret")

    assert config.load("http://localhost:5001").client_secret == "fcs_secret"
    assert config.load("http://elsewhere.example.org:5001").client_id is None
    assert path.stat().st_mode & 0o777 == 0o600
    assert "fcs_secret" not in repr(config.load())


def test_the_stored_token_goes_to_no_other_service() -> None:
    config.write_credentials("http://127.0.0.1:5001", "fc_file")

    assert config.load("http://elsewhere.example.org:5001").token is None
    assert config.load("http://localhost:5001").token == "fc_file"


def test_a_relative_home_is_below_the_directory_of_the_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FARCALL_HOME", "elsewhere")

    assert config.home() == tmp_path / "elsewhere"


def test_a_damaged_file_is_named_with_what_to_do() -> None:
    config.write_credentials("http://127.0.0.1:5001", "fc_file")
    config.credentials_path().write_text("{")

    with pytest.raises(ConfigurationError, match=r"credentials\.json is damaged.*remove it"):
        config.load()


@pytest.mark.parametrize("url", ["localhost:5000", "ftp://a", "http://", "http://a:99999", ""])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="is not the URL of a service"):
        config.check_url(url)


def test_a_line_end_after_a_token_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARCALL_TOKEN", "fc_environment\n")

    assert config.load().token == "fc_environment"


@pytest.mark.parametrize("token", ["fc_se\ncret", "fc_se cret", "fc_s\u00e9cret"])
def test_what_is_no_token_is_refused_without_being_shown(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("FARCALL_TOKEN", token)

    with pytest.raises(ConfigurationError, match="FARCALL_TOKEN holds a character") as refused:
        config.load()

    assert "fc_" not in str(refused.value)


def test_a_token_is_not_shown() -> None:
    assert "fc_secret" not in repr(config.Settings("http://a", "fc_secret"))


def test_credentials_can_be_forgotten_once() -> None:
    config.write_credentials("http://127.0.0.1:5001", "fc_file")

    assert config.remove_credentials() is True
    assert config.remove_credentials() is False
