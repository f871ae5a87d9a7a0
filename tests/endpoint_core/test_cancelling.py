"""How the agent hears which of its tasks were cancelled."""

from __future__ import annotations

import queue
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from farcall.errors import NotFound, ServiceError, ServiceUnavailable
from farcall_endpoint import cancelling
from farcall_endpoint.cancelling import Cancellations

PATIENCE_S = 20


class Service:
    """The service's memory of what was cancelled and not confirmed."""

    def __init__(self, *task_ids: str) -> None:
        self.unconfirmed = list(task_ids)
        self.confirmed: queue.Queue[list[str]] = queue.Queue()
        self.error: ServiceError | None = None
        self.forgets_confirmations = False

    def request(self, method: str, path: str, **options: Any) -> Any:
        assert path == "/v3/endpoints/some-endpoint/cancellations"
        if self.error is not None:
            raise self.error
        if method == "GET":
            return {"task_ids": self.unconfirmed[: options["params"]["limit"]]}
        ids = options["body"]["task_ids"]
        if not self.forgets_confirmations:
            self.unconfirmed = [each for each in self.unconfirmed if each not in ids]
        self.confirmed.put(ids)
        return {"result": len(ids)}


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Callable[..., Cancellations]:
    def make_one(service: Service, on_cancelled: Callable[[Sequence[str]], Any]) -> Cancellations:
        made = Cancellations(service, "some-endpoint", on_cancelled=on_cancelled)  # type: ignore[arg-type]
        request.addfinalizer(made.stop)
        return made

    return make_one


def test_all_are_heard_of_at_the_start_in_bounded_portions_and_confirmed(
    make: Callable[..., Cancellations], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancelling, "MOST_IDS", 2)
    service = Service("a", "b", "c")
    heard: list[list[str]] = []

    make(service, heard.append).start()

    assert heard == [["a", "b"], ["c"]]
    assert service.unconfirmed == []


def test_asked_again_it_asks_again(make: Callable[..., Cancellations]) -> None:
    service = Service()
    heard: queue.Queue[Sequence[str]] = queue.Queue()
    cancellations = make(service, heard.put)
    cancellations.start()

    service.unconfirmed = ["a"]
    cancellations.ask()

    assert heard.get(timeout=PATIENCE_S) == ["a"]
    assert service.confirmed.get(timeout=PATIENCE_S) == ["a"]


def test_what_cannot_be_written_down_is_not_confirmed_and_asked_for_again(
    make: Callable[..., Cancellations], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancelling, "_FIRST_PAUSE_S", 0.01)
    service = Service()
    failures = iter([sqlite3.OperationalError("database or disk is full")])

    def write_down(task_ids: Sequence[str]) -> None:
        if (error := next(failures, None)) is not None:
            assert service.confirmed.empty()
            raise error

    cancellations = make(service, write_down)
    cancellations.start()

    service.unconfirmed = ["a"]
    cancellations.ask()

    assert service.confirmed.get(timeout=PATIENCE_S) == ["a"]


def test_a_service_that_is_away_is_asked_until_it_is_back(
    make: Callable[..., Cancellations], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cancelling, "_FIRST_PAUSE_S", 0.01)
    service = Service()
    cancellations = make(service, lambda task_ids: None)
    cancellations.start()
    service.error = ServiceUnavailable("it is away")
    service.unconfirmed = ["a"]

    cancellations.ask()
    while "it is away" not in caplog.text:
        cancellations._stopping.wait(0.01)
    service.error = None

    assert service.confirmed.get(timeout=PATIENCE_S) == ["a"]


def test_a_service_that_is_away_at_the_start_is_an_error(make: Callable[..., Cancellations]) -> None:
    service = Service()
    service.error = ServiceUnavailable("it is away")

    with pytest.raises(ServiceUnavailable):
        make(service, lambda task_ids: None).start()


def test_an_older_service_cancels_nothing(make: Callable[..., Cancellations]) -> None:
    service = Service()
    service.error = NotFound("no such route")

    make(service, lambda task_ids: None).start()


def test_a_service_that_forgets_what_it_is_told_is_not_asked_for_ever(
    make: Callable[..., Cancellations], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancelling, "MOST_IDS", 1)
    service = Service("a")
    service.forgets_confirmations = True

    make(service, lambda task_ids: None).start()

    assert service.unconfirmed == ["a"]
