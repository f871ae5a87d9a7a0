"""Who may come in, and what the others are told."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select, update

from farcall.errors import ConfigurationError
from farcall_webservice import auth
from farcall_webservice.models import Token

if TYPE_CHECKING:
    from conftest import Person, Service


def test_without_a_token_one_is_told_how_to_send_it(ada: Person) -> None:
    answer = ada.get("/v2/whoami", headers={"Authorization": ""})

    assert "Authorization: Bearer" in answer.refused(401, "USER_UNAUTHENTICATED")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize("header", ["Bearer nonsense", "Bearer \xe9\xff", "bearer fc_nonsense"])
def test_a_token_that_nobody_gave_out_is_refused(ada: Person, header: str) -> None:
    ada.get("/v2/whoami", headers={"Authorization": header}).refused(401, "INVALID_AUTH_TOKEN")


@pytest.mark.parametrize("header", ["Basic YTpi", "Bearer ", "fc_abc"])
def test_another_scheme_counts_as_no_token(ada: Person, header: str) -> None:
    ada.get("/v2/whoami", headers={"Authorization": header}).refused(401, "USER_UNAUTHENTICATED")


def test_an_expired_token_is_told_since_when(service: Service, ada: Person) -> None:
    with service.database.writing() as connection:
        connection.execute(update(Token).values(expires_at=0.0))

    message = ada.get("/v2/whoami").refused(401, "INVALID_AUTH_TOKEN")

    assert "expired at 1970-01-01T00:00:00" in message


def test_a_token_with_days_to_live_expires_after_them(service: Service, ada: Person) -> None:
    auth.create_token(service.database, "ada", expires_days=2, label="short")

    with service.database.reading() as connection:
        expires_at = connection.execute(select(Token.expires_at).where(Token.label == "short")).scalar_one()
    assert expires_at == pytest.approx(time.time() + 2 * 86_400, abs=60)


def test_a_revoked_token_is_refused_at_once_and_revoking_twice_is_no_error(service: Service, ada: Person) -> None:
    (row,) = auth.tokens(service.database)

    auth.revoke_token(service.database, row.id)
    auth.revoke_token(service.database, row.id)

    assert "revoked" in ada.get("/v2/whoami").refused(401, "INVALID_AUTH_TOKEN")


def test_the_database_holds_no_secret(service: Service, ada: Person) -> None:
    with service.database.reading() as connection:
        (digest,) = connection.execute(select(Token.digest)).scalars()

    assert digest == hashlib.sha256(ada.token.encode()).hexdigest()


def test_whoami_names_the_user_and_the_groups(service: Service, ada: Person) -> None:
    group_id = auth.create_group(service.database, "analysts")
    auth.add_to_group(service.database, "analysts", "ada")
    auth.add_to_group(service.database, "analysts", "ada")

    body = ada.get("/v2/whoami").done()

    assert body == {"id": ada.id, "name": "ada", "groups": [{"id": group_id, "name": "analysts"}]}


def test_names_are_given_once_and_have_to_be_readable(service: Service, ada: Person) -> None:
    with pytest.raises(ConfigurationError, match="there is a user 'ada' already"):
        auth.create_user(service.database, "ada")
    with pytest.raises(ConfigurationError, match="cannot name a group"):
        auth.create_group(service.database, " ")
    with pytest.raises(ConfigurationError, match="without blanks around"):
        auth.create_user(service.database, "eve ")
    with pytest.raises(ConfigurationError, match="there is no user 'eve'"):
        auth.create_token(service.database, "eve")


@pytest.mark.parametrize("path", ["/v2/version", "/openapi.json", "/docs", "/docs/start.js"])
def test_what_describes_the_service_needs_no_token(service: Service, path: str) -> None:
    assert service.app.test_client().get(path).status_code == 200
