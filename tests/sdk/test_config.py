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


def test_a_token_is_not_shown() -> None:
    assert "fc_secret" not in repr(config.Settings("http://a", "fc_secret"))


def test_credentials_can_be_forgotten_once() -> None:
    config.write_credentials("http://127.0.0.1:5001", "fc_file")

    assert config.remove_credentials() is True
    assert config.remove_credentials() is False
