"""Endpoints over HTTP."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import update

from farcall_webservice import queues
from farcall_webservice.accounts import SharedAccount
from farcall_webservice.management import ManagementError
from farcall_webservice.models import Endpoint

if TYPE_CHECKING:
    from conftest import Person, Service

HERE = {"endpoint_name": "cluster", "metadata": {"instance": "login1:/home/ada/.farcall/cluster", "hostname": "login1"}}
ELSEWHERE = {"endpoint_name": "cluster", "metadata": {"instance": "login2:/scratch/cluster"}}


def heard_from(
    service: Service, endpoint_id: str, *, seconds_ago: float = 0.0, period: float = 10.0, **report: Any
) -> None:
    """Play the collector: the endpoint's agent has reported."""
    values = {
        "last_heartbeat_at": time.time() - seconds_ago,
        "heartbeat_period": period,
        "last_report": {"heartbeat_period": period, **report},
    }
    with service.database.writing() as connection:
        connection.execute(update(Endpoint).where(Endpoint.id == endpoint_id).values(**values))


def registered_long_ago(service: Service, endpoint_id: str) -> None:
    with service.database.writing() as connection:
        connection.execute(update(Endpoint).where(Endpoint.id == endpoint_id).values(registered_at=0.0))


def test_a_registration_tells_the_agent_its_queues(ada: Person) -> None:
    body = ada.post("/v3/endpoints", HERE).done()

    endpoint_id = body["endpoint_id"]
    assert body["task_queue_info"]["queue"] == f"{endpoint_id}.tasks"
    assert body["command_queue_info"]["queue"] == f"{endpoint_id}.commands"
    publishing = body["result_queue_info"]["queue_publish_kwargs"]
    assert (publishing["exchange"], publishing["routing_key"]) == ("results", f"{endpoint_id}.results")
    assert publishing["properties"]["delivery_mode"] == 2
    assert body["heartbeat_queue_info"]["queue"] == "heartbeats"
    assert {info["connection_url"] for name, info in body.items() if name.endswith("_info")} == {"memory://"}


def test_a_registration_that_gets_no_account_leaves_no_endpoint(ada: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise ManagementError("nobody answers")

    monkeypatch.setattr(SharedAccount, "for_endpoint", refuse)

    ada.post("/v3/endpoints", HERE).refused(503, "BROKER_UNAVAILABLE")

    assert ada.get("/v2/endpoints").done() == []


def test_an_agent_may_bring_an_id_that_the_service_has_never_seen(ada: Person, unknown_id: str) -> None:
    assert ada.put(f"/v3/endpoints/{unknown_id}", HERE).done()["endpoint_id"] == unknown_id
    assert ada.get(f"/v2/endpoints/{unknown_id}").done()["hostname"] == "login1"


def test_the_older_route_takes_an_id_in_the_body(ada: Person, unknown_id: str) -> None:
    body = {"endpoint_name": "old", "endpoint_uuid": unknown_id, "metadata": {}, "multi_tenant": False}

    assert ada.post("/v2/endpoints", body).done()["endpoint_id"] == unknown_id


def test_without_its_broker_the_service_asks_the_agent_to_try_again(
    ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ConnectionRefusedError

    monkeypatch.setattr(queues, "declare", refuse)

    ada.post("/v3/endpoints", HERE).refused(503, "BROKER_UNAVAILABLE")

    assert ada.get("/v2/endpoints").done() == []


def test_the_same_agent_may_register_again_while_it_is_online(service: Service, ada: Person) -> None:
    endpoint_id = ada.endpoint(**HERE)
    heard_from(service, endpoint_id)

    ada.put(f"/v3/endpoints/{endpoint_id}", {**HERE, "display_name": "New name"}).done()

    assert ada.get(f"/v2/endpoints/{endpoint_id}").done()["display_name"] == "New name"


def test_a_second_agent_is_told_where_the_first_one_runs(service: Service, ada: Person) -> None:
    endpoint_id = ada.endpoint(**HERE)
    heard_from(service, endpoint_id)

    message = ada.put(f"/v3/endpoints/{endpoint_id}", ELSEWHERE).refused(409, "RESOURCE_CONFLICT")

    assert "login1:/home/ada/.farcall/cluster" in message


def test_a_second_agent_is_refused_before_the_first_one_has_sent_a_heartbeat(ada: Person) -> None:
    endpoint_id = ada.endpoint(**HERE)

    ada.put(f"/v3/endpoints/{endpoint_id}", ELSEWHERE).refused(409, "RESOURCE_CONFLICT")


@pytest.mark.parametrize("last_words", [{"seconds_ago": 31.0}, {"period": 0.0}])
def test_an_endpoint_may_move_once_its_agent_is_gone(
    service: Service, ada: Person, last_words: dict[str, float]
) -> None:
    endpoint_id = ada.endpoint(**HERE)
    registered_long_ago(service, endpoint_id)
    heard_from(service, endpoint_id, **last_words)

    ada.put(f"/v3/endpoints/{endpoint_id}", ELSEWHERE).done()


def test_somebody_elses_endpoint_cannot_be_taken_over(ada: Person, bob: Person) -> None:
    endpoint_id = ada.endpoint(public=True)

    bob.put(f"/v3/endpoints/{endpoint_id}", HERE).refused(403, "ENDPOINT_ALREADY_REGISTERED")
    bob.post(f"/v3/endpoints/{endpoint_id}/lock").refused(403, "ENDPOINT_ACCESS_FORBIDDEN")
    bob.delete(f"/v2/endpoints/{endpoint_id}").refused(403, "ENDPOINT_ACCESS_FORBIDDEN")


def test_unknown_and_foreign_endpoints_are_told_apart(ada: Person, bob: Person, unknown_id: str) -> None:
    endpoint_id = ada.endpoint()

    for path in ("v2/endpoints/{}", "v2/endpoints/{}/status", "v3/endpoints/{}/allowed_functions"):
        bob.get("/" + path.format(unknown_id)).refused(404, "ENDPOINT_NOT_FOUND")
        bob.get("/" + path.format(endpoint_id)).refused(403, "ENDPOINT_ACCESS_FORBIDDEN")


def test_the_list_shows_mine_and_with_role_any_the_public_ones(ada: Person, bob: Person) -> None:
    mine, public = ada.endpoint(), bob.endpoint(public=True)
    bob.endpoint()

    assert [each["uuid"] for each in ada.get("/v2/endpoints").done()] == [mine]
    assert {each["uuid"] for each in ada.get("/v2/endpoints?role=any").done()} == {mine, public}


def test_the_status_shows_what_the_agent_last_reported_and_what_the_ledger_counts_now(
    service: Service, ada: Person
) -> None:
    endpoint_id = ada.endpoint()
    heard_from(service, endpoint_id, total_workers=4, outstanding_tasks=7)
    ada.submit(endpoint_id, ada.function(), count=3)

    body = ada.get(f"/v2/endpoints/{endpoint_id}/status").done()

    assert body["status"] == "online"
    assert (body["details"]["total_workers"], body["details"]["outstanding_tasks"]) == (4, 7)
    assert (body["logs"][0]["total_workers"], body["logs"][0]["outstanding_tasks"]) == (4, 3)


def test_an_endpoint_that_never_reported_is_offline_and_its_waiting_tasks_are_counted(ada: Person) -> None:
    endpoint_id = ada.endpoint()
    ada.submit(endpoint_id, ada.function(), count=3)

    body = ada.get(f"/v2/endpoints/{endpoint_id}/status").done()

    assert body["status"] == "offline"
    assert (body["logs"][0]["total_workers"], body["logs"][0]["outstanding_tasks"]) == (0, 3)


def test_an_endpoint_is_offline_after_three_missed_heartbeats(service: Service, ada: Person) -> None:
    endpoint_id = ada.endpoint()

    heard_from(service, endpoint_id, seconds_ago=29, total_workers=4)
    assert ada.get(f"/v2/endpoints/{endpoint_id}/status").done()["status"] == "online"

    heard_from(service, endpoint_id, seconds_ago=31, total_workers=4)
    body = ada.get(f"/v2/endpoints/{endpoint_id}/status").done()
    assert body["status"] == "offline"
    assert body["logs"][0]["total_workers"] == 0


def test_a_lock_stops_the_agent_and_keeps_it_from_registering(service: Service, ada: Person) -> None:
    endpoint_id = ada.endpoint(**HERE)

    ada.post(f"/v3/endpoints/{endpoint_id}/lock").done()

    ((told, command),) = service.outbox.commands
    assert (told, command.command) == (endpoint_id, "stop")
    answer = ada.put(f"/v3/endpoints/{endpoint_id}", HERE)
    assert "temporarily locked" in answer.refused(423, "RESOURCE_LOCKED")
    assert 0 < int(answer.headers["Retry-After"]) <= 61


def test_a_deleted_endpoint_fails_its_tasks_stops_its_agent_and_stays_deleted(service: Service, ada: Person) -> None:
    endpoint_id, function_id = ada.endpoint(), ada.function()
    (task_id,) = ada.submit(endpoint_id, function_id)["tasks"][function_id]

    ada.delete(f"/v2/endpoints/{endpoint_id}").done()

    task = ada.get(f"/v2/tasks/{task_id}").done()
    assert (task["status"], task["error_code"]) == ("failed", "EndpointDeleted")
    assert endpoint_id in task["exception"]
    assert [command.command for _, command in service.outbox.commands] == ["stop"]
    ada.get(f"/v2/endpoints/{endpoint_id}").refused(404, "ENDPOINT_NOT_FOUND")
    ada.put(f"/v3/endpoints/{endpoint_id}", HERE).refused(404, "ENDPOINT_NOT_FOUND")
    ada.post(f"/v3/endpoints/{endpoint_id}/submit", {"tasks": {function_id: ["p"]}}).refused(404, "ENDPOINT_NOT_FOUND")


def test_the_functions_that_an_endpoint_is_restricted_to_are_listed(ada: Person) -> None:
    function_id = ada.function()
    open_one, restricted = ada.endpoint(), ada.endpoint(allowed_functions=[function_id])

    assert ada.get(f"/v3/endpoints/{open_one}/allowed_functions").done()["restricted"] is False
    assert ada.get(f"/v3/endpoints/{restricted}/allowed_functions").done() == {
        "endpoint_id": restricted,
        "restricted": True,
        "functions": [function_id],
    }
