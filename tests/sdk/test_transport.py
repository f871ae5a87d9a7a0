"""Requests, retries and errors."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from typing import Any

import pytest

from farcall import config
from farcall.auth import FixedToken
from farcall.errors import (
    Conflict,
    Forbidden,
    NotFound,
    PayloadTooLarge,
    ServiceError,
    ServiceUnavailable,
    Unauthenticated,
)
from farcall.login import StoredLogin
from farcall.transport import Transport


def no_pause(_: float) -> None:
    """Time in tests is not spent on pauses."""


@pytest.fixture
def transport(service: Any) -> Transport:
    return Transport(service.url, FixedToken("fc_token"), sleep=no_pause)


def failing(times: int, status: int) -> Callable[[Any], Any]:
    """A script that answers so often with this status."""
    left = iter(range(times))
    return lambda seen: (status, {"code": "X", "message": "no"}) if next(left, None) is not None else None


def test_a_request_carries_the_token_and_who_asks(service: Any, transport: Transport) -> None:
    transport.get("/v2/version", params={"service": "all", "unset": None})

    (seen,) = service.seen
    assert seen.headers["authorization"] == "Bearer fc_token"
    assert seen.headers["user-agent"].startswith("farcall/")
    assert seen.query == {"service": "all"}


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, Unauthenticated), (403, Forbidden), (404, NotFound), (409, Conflict), (413, PayloadTooLarge)],
)
def test_an_error_document_becomes_the_exception_that_fits(
    service: Any, transport: Transport, status: int, kind: type[ServiceError]
) -> None:
    service.script = lambda seen: (status, {"code": "SOME_CODE", "message": "in words", "request_id": "r7"})

    with pytest.raises(kind, match="in words") as caught:
        transport.get("/v2/version")

    assert (caught.value.http_status, caught.value.code, caught.value.request_id) == (status, "SOME_CODE", "r7")


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_may_pass_is_tried_again(service: Any, transport: Transport, status: int) -> None:
    service.script = failing(4, status)

    transport.get("/v2/version")

    assert len(service.seen) == 5


def test_a_bug_of_the_service_is_tried_three_times(service: Any, transport: Transport) -> None:
    service.script = failing(99, 500)

    with pytest.raises(ServiceUnavailable):
        transport.get("/v2/version")

    assert len(service.seen) == 3


def test_a_repetition_is_the_same_request(service: Any, transport: Transport) -> None:
    service.script = failing(1, 503)

    transport.request("POST", "/v3/functions", body={"a": 1}, headers={"Idempotency-Key": "k"})

    first, second = service.seen
    assert (first.body, first.headers["idempotency-key"]) == (second.body, second.headers["idempotency-key"])


def test_a_service_that_is_down_is_said_to_be_and_ends_the_request(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    transport = Transport(f"http://127.0.0.1:{port}", retry_for_s=0.2)

    with caplog.at_level(logging.WARNING), pytest.raises(ServiceUnavailable, match="farcall-webservice serve"):
        transport.get("/v2/version")

    (record,) = caplog.records
    assert f"no answer from the service at http://127.0.0.1:{port}" in record.getMessage()
    assert "trying again for 0.2 s" in record.getMessage()


def test_a_service_that_comes_back_is_found(serve: Any, service: Any) -> None:
    port = int(service.url.rpartition(":")[2])
    other = type(service)()
    down = serve(other)
    down.__enter__()
    other_port = int(other.url.rpartition(":")[2])
    down.__exit__(None, None, None)
    up = serve(other, other_port)
    transport = Transport(f"http://127.0.0.1:{other_port}", sleep=lambda _: other.seen or up.__enter__())

    answer = transport.get("/v2/version", params={"service": "all"})

    up.__exit__(None, None, None)
    assert answer["api"] == "0.1.0"
    assert port != other_port


def test_an_answer_that_is_not_json_asks_whether_it_is_farcall(service: Any, transport: Transport) -> None:
    service.script = lambda seen: (404, "<html>not here</html>")

    with pytest.raises(NotFound, match=r"GET /v2/version was answered with status 404: .*not here"):
        transport.get("/v2/version")


def test_a_refused_stored_token_is_looked_up_again(service: Any) -> None:
    config.write_credentials(service.url, "fc_old")
    credentials = StoredLogin(config.load())
    config.write_credentials(service.url, "fc_token")

    answer = Transport(service.url, credentials).get("/v2/taskgroup/g")

    assert answer["taskgroup_id"] == "g"


def test_a_refused_token_that_has_no_other_is_an_error(service: Any) -> None:
    with pytest.raises(Unauthenticated, match="wrong token"):
        Transport(service.url, FixedToken("fc_wrong")).get("/v2/taskgroup/g")

    assert len(service.seen) == 1


def test_a_child_process_opens_connections_of_its_own(transport: Transport) -> None:
    transport.get("/v2/version")
    before = transport._connections()

    pid = os.fork()
    if pid == 0:
        os._exit(0 if transport.get("/v2/version") and transport._connections() is not before else 1)

    assert os.waitpid(pid, 0)[1] == 0
    assert transport._connections() is before
