"""Which login the embedded service keeps for the account that starts it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from farcall_webservice import auth, embedded

if TYPE_CHECKING:
    from conftest import Service

URL = "http://127.0.0.1:5000"


@pytest.fixture
def shared(service: Service) -> Path:
    """Where SDK and endpoint look."""
    service.config.service_directory.mkdir(parents=True)
    return service.config.home / "credentials.json"


def start(service: Service, url: str = URL) -> None:
    embedded._let_this_account_in(service.config, service.database, url)


def test_the_owner_is_let_in_also_after_the_service_has_moved(service: Service, shared: Path) -> None:
    start(service)
    first = json.loads(shared.read_text())
    start(service, "http://127.0.0.1:5001")

    assert auth.check(service.database, f"Bearer {first['token']}").name == embedded.OWNER
    assert json.loads(shared.read_text()) == {**first, "service_url": "http://127.0.0.1:5001"}


@pytest.mark.parametrize("login", ["another user's token", "a client"])
def test_the_login_of_another_user_is_left_alone(
    service: Service, shared: Path, login: str, caplog: pytest.LogCaptureFixture
) -> None:
    secrets = (
        {"client_id": "x", "client_secret": "y"} if login == "a client" else {"token": service.person("ada").token}
    )
    kept = json.dumps({"service_url": URL, **secrets})
    shared.write_text(kept)

    start(service)

    assert shared.read_text() == kept
    assert "was left alone" in caplog.text
