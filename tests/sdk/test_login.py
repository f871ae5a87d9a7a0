"""A client's id and secret, and the tokens they are turned into."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from farcall import Client, config
from farcall.errors import NotFound, ServiceError, ServiceUnavailable, Unauthenticated
from farcall.login import ClientLogin, StoredLogin
from farcall.transport import Transport

SECRET = "fcs_secret"


class Issuer:
    """Stands in the scripted service's place for logins and for one route that wants the newest token."""

    def __init__(self, service: Any) -> None:
        self.url = service.url
        self.lifetime_s: Any = 3600
        self.given: list[str] = []
        self.ended: list[str] = []
        self.lock = threading.Lock()
        service.script = self.answer

    def answer(self, seen: Any) -> tuple[int, Any] | None:
        if seen.path == "/auth/v2/oauth2/token":
            with self.lock:
                self.given.append(f"fc_{len(self.given)}")
                return 200, {"access_token": self.given[-1], "expires_in": self.lifetime_s, "token_type": "Bearer"}
        if seen.path == "/auth/v2/oauth2/token/revoke":
            self.ended.append("one")
            return 200, {"active": False}
        if seen.headers.get("authorization") == f"Bearer {self.given[-1]}":
            return 200, "in"
        return 401, {"code": "INVALID_AUTH_TOKEN", "message": "wrong token"}

    def transport(self) -> Transport:
        return Transport(self.url, ClientLogin(self.url, "client", SECRET), sleep=lambda _: None)


@pytest.fixture
def issuer(service: Any) -> Issuer:
    return Issuer(service)


def test_one_token_serves_many_requests_of_many_threads(issuer: Issuer, service: Any) -> None:
    transport = issuer.transport()

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: transport.get("/v2/x"), range(40)))

    assert answers == ["in"] * 40
    assert len(issuer.given) == 1
    (login,) = service.requests("POST", "/auth/v2/oauth2/token")
    assert login.body == {"grant_type": "client_credentials", "client_id": "client", "client_secret": SECRET}


def test_a_token_is_replaced_before_it_expires(issuer: Issuer) -> None:
    transport = issuer.transport()
    issuer.lifetime_s = 0

    transport.get("/v2/x")
    transport.get("/v2/x")

    assert len(issuer.given) == 2


def test_a_token_that_the_service_refuses_is_replaced_once_for_all_threads(issuer: Issuer) -> None:
    transport = issuer.transport()
    transport.get("/v2/x")
    # Somebody revoked it.
    issuer.given[-1] = "another"
    together = threading.Barrier(4)

    def ask(_: int) -> Any:
        together.wait()
        return transport.get("/v2/x")

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(ask, range(4))) == ["in"] * 4

    assert len(issuer.given) == 2


def test_a_refused_client_is_named_and_its_secret_is_not(issuer: Issuer, service: Any) -> None:
    service.script = lambda seen: (400, {"code": "INVALID_CLIENT", "message": "its secret is wrong"})

    with pytest.raises(Unauthenticated, match="does not let the client client in: its secret is wrong") as caught:
        issuer.transport().get("/v2/x")

    assert SECRET not in str(caught.value)
    assert len(service.seen) == 1


def test_a_login_waits_for_a_service_that_is_busy(issuer: Issuer, service: Any) -> None:
    busy = [(503, {"code": "DATABASE_UNAVAILABLE", "message": "try again"})] * 2
    service.script = lambda seen: busy.pop() if busy else issuer.answer(seen)

    assert issuer.transport().get("/v2/x") == "in"
    with pytest.raises(ServiceUnavailable, match="no answer from the service"):
        Transport(issuer.url, ClientLogin("http://127.0.0.1:9", "client", SECRET), retry_for_s=0).get("/v2/x")


@pytest.mark.parametrize("answer", [{}, [], {"access_token": "x", "expires_in": "soon"}])
def test_an_answer_that_is_no_token_asks_whether_it_is_farcall(issuer: Issuer, service: Any, answer: object) -> None:
    service.script = lambda seen: (200, answer)

    with pytest.raises(ServiceError, match="is it a Farcall service"):
        issuer.transport().get("/v2/x")


def test_a_service_without_logins_is_told_as_that(issuer: Issuer, service: Any) -> None:
    service.script = lambda seen: (404, {"code": "NOT_FOUND", "message": "There is nothing at /auth"})

    with pytest.raises(NotFound, match="nothing at /auth"):
        issuer.transport().get("/v2/x")


def test_a_client_of_the_environment_needs_no_file(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARCALL_CLIENT_ID", "client")
    monkeypatch.setenv("FARCALL_CLIENT_SECRET", SECRET)
    client = Client(service_url=issuer.url, do_version_check=False)

    assert client.transport.get("/v2/x") == "in"
    client.logout()

    assert issuer.ended == ["one"]
    assert client.transport.get("/v2/x") == "in"
    assert len(issuer.given) == 2


def test_a_stored_client_that_was_exchanged_is_looked_up_again(issuer: Issuer, service: Any) -> None:
    config.write_credentials(issuer.url, "fc_old")
    transport = Transport(issuer.url, StoredLogin(config.load()))
    config.write_credentials(issuer.url, client_id="client", client_secret=SECRET)
    issuer.given.append("nobody has this one")

    assert transport.get("/v2/x") == "in"


def test_a_client_that_was_stored_is_let_in_no_more_after_a_logout(issuer: Issuer) -> None:
    config.write_credentials(issuer.url, client_id="client", client_secret=SECRET)
    client = Client(do_version_check=False, service_url=issuer.url)
    assert client.transport.get("/v2/x") == "in"

    client.logout()

    with pytest.raises(Unauthenticated):
        client.transport.get("/v2/x")
    assert (len(issuer.given), issuer.ended) == (1, ["one"])


def test_a_token_that_was_stored_is_sent_no_more_after_a_logout(issuer: Issuer) -> None:
    issuer.given.append("fc_file")
    config.write_credentials(issuer.url, "fc_file")
    client = Client(do_version_check=False)
    assert client.transport.get("/v2/x") == "in"

    client.logout()

    with pytest.raises(Unauthenticated):
        client.transport.get("/v2/x")


def test_logging_out_leaves_the_login_to_another_service_alone(issuer: Issuer) -> None:
    config.write_credentials("http://elsewhere.example.org", "fc_elsewhere")

    Client(service_url=issuer.url, do_version_check=False).logout()

    assert config.load().token == "fc_elsewhere"


def test_logging_out_removes_the_file_but_touches_no_token_that_was_passed_in(issuer: Issuer) -> None:
    config.write_credentials(issuer.url, "fc_file")
    Client(service_url=issuer.url, token="fc_mine", do_version_check=False).logout()
    assert config.read_credentials() is not None

    Client(do_version_check=False).logout()

    assert config.read_credentials() is None
    assert issuer.ended == []
