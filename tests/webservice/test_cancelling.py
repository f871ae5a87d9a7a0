"""Cancelling over HTTP: what the owner of a task is told, and what the agent that may have it."""

from __future__ import annotations

import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from farcall.wire import Command, Result, Transition
from farcall_webservice.forward import result_of
from farcall_webservice.ledger import Cancelled

if TYPE_CHECKING:
    from conftest import Person, Service

PAYLOAD = "9\n11\n[1, 2]5\n11\n{}"
AGENT = {"metadata": {"accepts": ["task_batch"], "instance": "here"}}
GLOBUS = {"User-Agent": "globus-sdk-py-4.9.1/globus-compute-sdk-4.19.0"}


class Place:
    """A person's endpoint, with an agent of ours, and function."""

    def __init__(self, person: Person, **endpoint: Any) -> None:
        self.person = person
        self.endpoint_id, self.function_id = person.endpoint(**(endpoint or AGENT)), person.function()

    def submit(self, count: int = 1) -> tuple[str, list[str]]:
        """The group, and its tasks."""
        receipt = self.person.submit(self.endpoint_id, self.function_id, count)
        return receipt["task_group_id"], receipt["tasks"][self.function_id]

    def cancellations(self) -> list[str]:
        return list(self.person.get(f"/v3/endpoints/{self.endpoint_id}/cancellations").done()["task_ids"])


@pytest.fixture
def place(ada: Person) -> Place:
    return Place(ada)


def test_a_cancelled_task_ends_at_once_and_its_agent_is_told(service: Service, ada: Person, place: Place) -> None:
    group_id, (task_id, other) = place.submit(2)

    said = ada.post(f"/v2/tasks/{task_id}/cancel").done()

    assert (said["task_id"], said["status"], said["cancelled"]) == (task_id, "cancelled", True)
    assert "endpoint is told" in said["reason"]
    assert service.outbox.commands == [(place.endpoint_id, Command("cancel"))]
    assert service.outbox.forwarded == [group_id]
    assert place.cancellations() == [task_id]
    task = ada.get(f"/v2/tasks/{task_id}").done()
    assert (task["status"], task["error_code"]) == ("cancelled", "Cancelled")
    assert task["reason"] == task["exception"] == "The task was cancelled by its owner"
    assert [change[0] for change in task["history"]] == ["received", "cancelled"]
    assert ada.get(f"/v2/tasks/{other}").done()["status"] == "received"


def test_cancelling_twice_is_no_error_and_tells_nobody_again(service: Service, ada: Person, place: Place) -> None:
    _, (task_id,) = place.submit()
    ada.post(f"/v2/tasks/{task_id}/cancel").done()
    service.outbox.commands.clear()

    again = ada.post(f"/v2/tasks/{task_id}/cancel").done()

    assert again["cancelled"]
    assert "before" in again["reason"]
    assert service.outbox.commands == []
    assert place.cancellations() == [task_id]


def test_a_task_that_has_ended_stays_what_it_is(service: Service, ada: Person, place: Place) -> None:
    _, (task_id,) = place.submit()
    service.finish(task_id)

    said = ada.post(f"/v2/tasks/{task_id}/cancel").done()

    assert (said["status"], said["cancelled"]) == ("success", False)
    assert "success" in said["reason"]
    assert place.cancellations() == []


def test_the_result_of_a_cancelled_task_is_passed_over(service: Service, ada: Person, place: Place) -> None:
    _, (task_id,) = place.submit()
    ada.post(f"/v2/tasks/{task_id}/cancel").done()

    assert service.ledger.record_results(place.endpoint_id, [Result(task_id, "11\n3")]) == set()

    assert ada.get(f"/v2/tasks/{task_id}").done()["status"] == "cancelled"


def test_what_an_agent_says_of_a_cancelled_task_does_not_bring_it_back(
    service: Service, ada: Person, place: Place
) -> None:
    _, (task_id,) = place.submit()
    ada.post(f"/v2/tasks/{task_id}/cancel").done()

    service.ledger.record_states(place.endpoint_id, {task_id: [Transition(time.time_ns(), "running", "endpoint")]})

    assert ada.get(f"/v2/tasks/{task_id}").done()["status"] == "cancelled"


def test_whoever_waits_for_the_group_is_given_the_cancelled_task(service: Service, ada: Person, place: Place) -> None:
    group_id, (task_id,) = place.submit()

    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(ada.get, f"/v2/taskgroup/{group_id}/results?wait=25")
        assert service.waiting.somebody_waits.wait(30)
        ada.post(f"/v2/tasks/{task_id}/cancel").done()
        body = held.result(timeout=60).done()

    assert [(result["task_id"], result["status"]) for result in body["results"]] == [(task_id, "cancelled")]


def test_a_whole_group_is_cancelled_but_for_what_has_ended(service: Service, ada: Person, place: Place) -> None:
    group_id, ids = place.submit(10)
    service.finish(*ids[:3])

    said = ada.post(f"/v2/taskgroup/{group_id}/cancel").done()
    again = ada.post(f"/v2/taskgroup/{group_id}/cancel").done()

    assert said == {"taskgroup_id": group_id, "cancelled": 7, "ended": 3, "more": False}
    assert again == {"taskgroup_id": group_id, "cancelled": 0, "ended": 10, "more": False}
    results = ada.get(f"/v2/taskgroup/{group_id}/results").done()
    assert results["cursor"] == 10
    assert {r["task_id"] for r in results["results"] if r["status"] == "cancelled"} == {*ids[3:]}


def test_a_group_is_cancelled_in_small_transactions(
    service: Service, ada: Person, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farcall_webservice.ledger.cancelling.CANCELLED_AT_ONCE", 4)
    group_id, _ = place.submit(10)

    steps: list[Cancelled] = list(service.ledger.cancel_group(group_id))

    assert [len(step.task_ids) for step in steps] == [4, 4, 2]


def test_who_cancels_more_than_some_seconds_are_enough_for_is_answered_and_asks_again(
    ada: Person, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farcall_webservice.ledger.cancelling.CANCELLED_AT_ONCE", 4)
    monkeypatch.setattr("farcall_webservice.cancelling.ANSWERED_WITHIN_S", 0.0)
    group_id, _ = place.submit(6)

    said = [ada.post(f"/v2/taskgroup/{group_id}/cancel").done() for _ in range(3)]

    assert [(each["cancelled"], each["ended"], each["more"]) for each in said] == [
        (4, 0, True),
        (2, 4, True),
        (0, 6, False),
    ]


def test_what_is_cancelled_before_it_was_sent_is_not_sent(service: Service, ada: Person, place: Place) -> None:
    _, (task_id, other) = place.submit(2)
    ada.post(f"/v2/tasks/{task_id}/cancel").done()

    (batch,) = service.ledger.undispatched(alone=True)

    assert [task.task_id for task in batch.tasks] == [other]
    assert service.ledger.resend([task_id]) == []


def test_the_agent_is_told_of_what_was_published_by_somebody_who_did_not_live_to_note_it_and_held_back_then(
    service: Service, ada: Person, place: Place
) -> None:
    _, (published,) = place.submit()
    (batch,) = service.ledger.undispatched(alone=True)
    service.ledger.hold_back([batch.submission_id])
    _, (never_sent,) = place.submit()

    for task_id in (published, never_sent):
        ada.post(f"/v2/tasks/{task_id}/cancel").done()

    assert place.cancellations() == [published]


def test_only_the_owner_cancels(ada: Person, bob: Person, place: Place, unknown_id: str) -> None:
    group_id, (task_id,) = place.submit()

    bob.post(f"/v2/tasks/{task_id}/cancel").refused(403, "TASK_ACCESS_FORBIDDEN")
    bob.post(f"/v2/taskgroup/{group_id}/cancel").refused(403, "TASK_GROUP_ACCESS_FORBIDDEN")
    ada.post(f"/v2/tasks/{unknown_id}/cancel").refused(404, "TASK_NOT_FOUND")
    ada.post(f"/v2/taskgroup/{unknown_id}/cancel").refused(404, "TASK_GROUP_NOT_FOUND")
    ada.post("/v2/tasks/nonsense/cancel").refused(400, "INVALID_UUID")
    assert ada.get(f"/v2/tasks/{task_id}").done()["status"] == "received"


def test_an_agent_confirms_what_it_knows_and_is_not_told_again(ada: Person, place: Place, unknown_id: str) -> None:
    group_id, ids = place.submit(3)
    ada.post(f"/v2/taskgroup/{group_id}/cancel").done()
    path = f"/v3/endpoints/{place.endpoint_id}/cancellations"

    assert len(ada.get(f"{path}?limit=2").done()["task_ids"]) == 2
    assert ada.post(path, {"task_ids": [ids[0], ids[0], unknown_id]}).done() == {"result": 1}

    assert {*place.cancellations()} == {*ids[1:]}
    assert ada.post(path, {"task_ids": ids}).done() == {"result": 2}
    assert place.cancellations() == []


def test_only_the_owner_of_an_endpoint_sees_and_confirms_its_cancellations(
    ada: Person, bob: Person, unknown_id: str
) -> None:
    place = Place(ada, public=True, **AGENT)
    path = f"/v3/endpoints/{place.endpoint_id}/cancellations"

    bob.get(path).refused(403, "ENDPOINT_ACCESS_FORBIDDEN")
    bob.post(path, {"task_ids": []}).refused(403, "ENDPOINT_ACCESS_FORBIDDEN")
    ada.get(f"/v3/endpoints/{unknown_id}/cancellations").refused(404, "ENDPOINT_NOT_FOUND")
    ada.get(f"{path}?limit=10001").refused(422, "SEMANTICALLY_INVALID")


def test_confirming_for_one_endpoint_does_not_hide_anothers(ada: Person, place: Place) -> None:
    other = Place(ada)
    _, (task_id,) = place.submit()
    ada.post(f"/v2/tasks/{task_id}/cancel").done()

    said = ada.post(f"/v3/endpoints/{other.endpoint_id}/cancellations", {"task_ids": [task_id]}).done()

    assert said == {"result": 0}
    assert place.cancellations() == [task_id]


def test_an_endpoint_of_globus_compute_cannot_be_told_and_the_owner_knows(service: Service, ada: Person) -> None:
    place = Place(ada, metadata={"endpoint_version": "2.20.0"})
    _, (task_id,) = place.submit()

    said = ada.post(f"/v2/tasks/{task_id}/cancel").done()

    assert "cannot be told" in said["reason"]
    assert service.outbox.commands == []
    assert place.cancellations() == []


def test_clients_of_globus_compute_see_a_cancelled_task_as_failed(service: Service, ada: Person, place: Place) -> None:
    _, (task_id,) = place.submit()
    ada.post(f"/v2/tasks/{task_id}/cancel").done()

    one = ada.get(f"/v2/tasks/{task_id}", headers=GLOBUS).done()
    many = ada.post("/v2/batch_status", {"task_ids": [task_id]}, headers=GLOBUS).done()["results"][task_id]
    (row,) = service.ledger.tasks([task_id])
    message = result_of(row)

    for task in (one, many):
        assert (task["status"], task["exception"]) == ("failed", "The task was cancelled by its owner")
        assert task["completion_t"]
    assert message.error_details is not None
    assert message.error_details.code == "Cancelled"


def test_many_are_cancelled_at_once_and_each_is_answered_for(
    service: Service, ada: Person, bob: Person, place: Place
) -> None:
    _, (first, second, ended) = place.submit(3)
    _, (foreign,) = Place(bob).submit()
    service.ledger.record_results(place.endpoint_id, [Result(ended, "11\n3")])
    nobody = str(uuid.uuid4())

    said = ada.post("/v2/tasks/cancel", {"task_ids": [first, second, ended, foreign, nobody, first]}).done()["results"]

    assert {task_id: (each["task_id"], each["status"], each["cancelled"]) for task_id, each in said.items()} == {
        first: (first, "cancelled", True),
        second: (second, "cancelled", True),
        ended: (ended, "success", False),
        foreign: (foreign, "unknown", False),
        nobody: (nobody, "unknown", False),
    }
    assert said[foreign]["reason"] == f"Task {foreign} not found"
    assert "endpoint is told" in said[first]["reason"]
    assert service.outbox.commands == [(place.endpoint_id, Command("cancel"))]
    assert {*place.cancellations()} == {first, second}
    again = ada.post("/v2/tasks/cancel", {"task_ids": [first]}).done()["results"][first]
    assert again["cancelled"]
    assert "was cancelled before" in again["reason"]


def test_each_task_of_a_race_between_cancelling_and_completion_has_one_end(
    service: Service, ada: Person, place: Place
) -> None:
    group_id, ids = "", []
    for _ in range(10):
        receipt = ada.post(
            f"/v3/endpoints/{place.endpoint_id}/submit",
            {"tasks": {place.function_id: [PAYLOAD] * 20}, **({"task_group_id": group_id} if group_id else {})},
        ).done()
        group_id = receipt["task_group_id"]
        ids += receipt["tasks"][place.function_id]
    start = threading.Barrier(4)
    cancelled: list[str] = []

    def complete(some: list[str]) -> None:
        start.wait()
        for position in range(0, len(some), 5):
            results = [Result(task_id, "11\n3") for task_id in some[position : position + 5]]
            service.ledger.record_results(place.endpoint_id, results)

    def cancel(some: list[str]) -> None:
        start.wait()
        for position in range(0, len(some), 5):
            cancelled.extend(service.ledger.cancel(some[position : position + 5]).task_ids)

    with ThreadPoolExecutor(4) as pool:
        list(
            pool.map(
                lambda job: job[0](job[1]),
                [(complete, ids), (complete, ids[::-1]), (cancel, ids), (cancel, ids[::-1])],
            )
        )

    states = {row.id: row.state for row in service.ledger.tasks(ids)}
    assert len(cancelled) == len({*cancelled})
    assert {task_id for task_id, state in states.items() if state == "cancelled"} == {*cancelled}
    assert {*states.values()} <= {"cancelled", "success"}
    assert {*place.cancellations()} == {*cancelled}
    rows = service.ledger.group_results(group_id, after=0, limit=1000, max_characters=10**9)
    assert [row.result_seq for row in rows] == list(range(1, len(ids) + 1))
    assert {row.id for row in rows} == {*ids}


def test_what_was_cancelled_some_time_ago_and_not_confirmed_is_known(service: Service, ada: Person) -> None:
    place = Place(ada)
    _, (task_id,) = place.submit()
    assert not service.ledger.has_unconfirmed(place.endpoint_id, older_than_s=0)

    ada.post(f"/v2/tasks/{task_id}/cancel").done()

    assert service.ledger.has_unconfirmed(place.endpoint_id, older_than_s=0)
    assert not service.ledger.has_unconfirmed(place.endpoint_id, older_than_s=3600)
    assert not service.ledger.has_unconfirmed(str(uuid.uuid4()), older_than_s=0)
