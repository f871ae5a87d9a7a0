"""Tasks over HTTP: submitting them and asking what became of them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import delete

from farcall.wire import ErrorDetails, Result, Transition
from farcall_webservice import registration, submission
from farcall_webservice.models import Task

if TYPE_CHECKING:
    from conftest import Answer, Person, Service

PAYLOAD = "9\n11\n[1, 2]5\n11\n{}"


class Place:
    """A person's endpoint and function."""

    def __init__(self, person: Person) -> None:
        self.person = person
        self.endpoint_id, self.function_id = person.endpoint(), person.function()

    def submit(self, count: int = 1, **more: Any) -> Any:
        return self.person.submit(self.endpoint_id, self.function_id, count, **more)

    def try_to_submit(self, body: dict[str, Any], **more: Any) -> Answer:
        return self.person.post(f"/v3/endpoints/{self.endpoint_id}/submit", body, **more)

    def ids(self, receipt: Any) -> list[str]:
        return list(receipt["tasks"][self.function_id])


@pytest.fixture
def place(ada: Person) -> Place:
    return Place(ada)


# -- submitting -------------------------------------------------------------------------------------------------------


def test_submitted_tasks_are_answered_in_order_and_handed_to_the_dispatcher(
    service: Service, ada: Person, place: Place
) -> None:
    other = ada.function()
    body = {
        "tasks": {place.function_id: ["a", "b"], other: ["c"]},
        "create_queue": True,
        "resource_specification": {"num_nodes": 2},
        "result_serializers": ["x.Y"],
        "user_endpoint_config": {},
        "user_runtime": {"python_version": "3.11.7"},
    }

    receipt = place.try_to_submit(body).done()

    assert set(receipt) == {"request_id", "task_group_id", "endpoint_id", "tasks"}
    sent = {task.task_id: task.payload for task in service.outbox.sent}
    assert [sent[task_id] for task_id in receipt["tasks"][place.function_id]] == ["a", "b"]
    assert [sent[task_id] for task_id in receipt["tasks"][other]] == ["c"]
    assert service.outbox.sent[0].options == {"resource_specification": {"num_nodes": 2}, "result_serializers": ["x.Y"]}


def test_retries_and_a_timeout_go_with_the_tasks(service: Service, ada: Person) -> None:
    endpoint_id, function_id = ada.endpoint(metadata={"accepts": ["task_batch"]}), ada.function()
    options = {"max_retries": 0, "timeout_s": 2.5}

    receipt = ada.submit(endpoint_id, function_id, **options)
    old = {"tasks": [[function_id, endpoint_id, PAYLOAD]], **options}
    ada.post("/v2/submit", old).done()

    assert "ha_warning" not in receipt
    assert [task.options for task in service.outbox.sent] == [options, options]


@pytest.mark.parametrize(
    "wrong",
    [
        *({"max_retries": wrong} for wrong in (-1, 1.5, "1", True)),
        *({"timeout_s": wrong} for wrong in (0, -1, "x", 1e300)),
    ],
)
def test_retries_and_timeouts_that_mean_nothing_are_refused(place: Place, wrong: dict[str, Any]) -> None:
    (name,) = wrong

    message = place.try_to_submit({"tasks": {place.function_id: [PAYLOAD]}, **wrong}).refused(
        422, "SEMANTICALLY_INVALID"
    )

    assert name in message


def test_an_endpoint_that_knows_no_retries_is_warned_of(place: Place) -> None:
    receipt = place.submit(max_retries=1)

    assert "does not know max_retries" in receipt["ha_warning"]


def test_a_task_group_goes_on_over_several_requests(ada: Person, place: Place) -> None:
    first = place.submit()

    second = place.submit(2, task_group_id=first["task_group_id"])

    group = ada.get(f"/v2/taskgroup/{first['task_group_id']}").done()
    assert group["taskgroup_id"] == first["task_group_id"]
    assert [task["id"] for task in group["tasks"]] == place.ids(first) + place.ids(second)


def test_the_same_idempotency_key_makes_no_second_task(service: Service, place: Place) -> None:
    body = {"tasks": {place.function_id: [PAYLOAD]}}
    key = {"Idempotency-Key": "once"}

    first, again = place.try_to_submit(body, headers=key).done(), place.try_to_submit(body, headers=key).done()

    assert first == again
    assert len(service.outbox.sent) == 1


def test_an_idempotency_key_is_not_for_another_request_and_not_for_another_user(place: Place, bob: Person) -> None:
    key = {"Idempotency-Key": "once"}
    place.try_to_submit({"tasks": {place.function_id: [PAYLOAD]}}, headers=key).done()

    message = place.try_to_submit({"tasks": {place.function_id: ["other"]}}, headers=key).refused(
        409, "RESOURCE_CONFLICT"
    )

    assert "'once'" in message
    theirs = Place(bob)
    theirs.try_to_submit({"tasks": {theirs.function_id: [PAYLOAD]}}, headers=key).done()


def test_too_long_an_idempotency_key_is_refused(place: Place) -> None:
    answer = place.try_to_submit({"tasks": {place.function_id: ["p"]}}, headers={"Idempotency-Key": "k" * 129})

    assert "Idempotency-Key:" in answer.refused(422, "SEMANTICALLY_INVALID")


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ({}, "tasks: an object is needed"),
        ([], "tasks: an object is needed"),
        ({"add": ["p"]}, "'add' is not a function's id"),
        ({"F": []}, "tasks.F: a list of packed arguments is needed"),
        ({"F": "p"}, "tasks.F: a list of packed arguments is needed"),
        ({"F": ["p", 7]}, "tasks.F: number 1 is 7, not a text"),
        ({"F": ["p\0"]}, "tasks.F: the character NUL"),
    ],
)
def test_wrong_tasks_are_named_with_their_place(place: Place, tasks: Any, words: str) -> None:
    if isinstance(tasks, dict):
        tasks = {place.function_id if key == "F" else key: value for key, value in tasks.items()}

    message = place.try_to_submit({"tasks": tasks}).refused(422, "SEMANTICALLY_INVALID")

    assert words.replace("tasks.F", f"tasks.{place.function_id}") in message


def test_a_function_named_twice_in_two_spellings_is_refused(place: Place) -> None:
    tasks = {place.function_id: ["p"], place.function_id.upper(): ["p"]}

    assert "named twice" in place.try_to_submit({"tasks": tasks}).refused(422, "SEMANTICALLY_INVALID")


def test_too_large_arguments_and_too_many_tasks_are_refused_with_the_limit(place: Place) -> None:
    large = place.try_to_submit({"tasks": {place.function_id: ["p", "x" * 1001]}})
    wide = place.try_to_submit({"tasks": {place.function_id: ["\u20ac" * 400]}})
    many = place.try_to_submit({"tasks": {place.function_id: ["p"] * 21}})
    heavy = place.try_to_submit({"tasks": {place.function_id: ["x" * 900] * 6}})

    assert "1001" in large.refused(413, "TASK_PAYLOAD_TOO_LARGE")
    assert "1200" in wide.refused(413, "TASK_PAYLOAD_TOO_LARGE")
    assert "21 tasks" in many.refused(413, "BATCH_RUN_TOO_LARGE")
    assert "5400" in heavy.refused(413, "BATCH_RUN_TOO_LARGE")


def test_nothing_of_a_refused_request_is_kept(service: Service, ada: Person, place: Place, unknown_id: str) -> None:
    place.try_to_submit({"tasks": {place.function_id: ["p"], unknown_id: ["p"]}}).refused(404, "FUNCTION_NOT_FOUND")

    assert ada.get("/v2/tasks").done() == {"tasks": [], "next": None}
    assert service.outbox.sent == []


def test_endpoint_function_and_group_have_to_be_known_and_mine(place: Place, bob: Person, unknown_id: str) -> None:
    theirs = Place(bob)
    group_of_bob = theirs.submit()["task_group_id"]
    mine = {"tasks": {place.function_id: ["p"]}}
    submit = place.person.post

    submit(f"/v3/endpoints/{unknown_id}/submit", mine).refused(404, "ENDPOINT_NOT_FOUND")
    submit(f"/v3/endpoints/{theirs.endpoint_id}/submit", mine).refused(403, "ENDPOINT_ACCESS_FORBIDDEN")
    place.try_to_submit({"tasks": {theirs.function_id: ["p"]}}).refused(403, "FUNCTION_ACCESS_FORBIDDEN")
    place.try_to_submit({**mine, "task_group_id": unknown_id}).refused(404, "TASK_GROUP_NOT_FOUND")
    place.try_to_submit({**mine, "task_group_id": group_of_bob}).refused(403, "TASK_GROUP_ACCESS_FORBIDDEN")


def test_an_endpoint_may_be_restricted_to_some_functions(ada: Person) -> None:
    allowed, other = ada.function(), ada.function()
    endpoint_id = ada.endpoint(allowed_functions=[allowed])

    ada.submit(endpoint_id, allowed)
    answer = ada.post(f"/v3/endpoints/{endpoint_id}/submit", {"tasks": {other: ["p"]}})

    assert answer.refused(403, "FUNCTION_NOT_PERMITTED") == f"Function {other} not permitted on endpoint {endpoint_id}"


def test_a_task_that_slips_in_while_its_endpoint_is_deleted_fails_instead_of_waiting(
    ada: Person, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = submission.check

    def check_and_then_delete(*arguments: Any) -> Any:
        endpoints = checked(*arguments)
        registration.delete(arguments[0], place.endpoint_id)
        return endpoints

    monkeypatch.setattr(submission, "check", check_and_then_delete)
    (task_id,) = place.ids(place.submit())

    assert ada.get(f"/v2/tasks/{task_id}").done()["error_code"] == "EndpointDeleted"


def test_the_older_submit_takes_several_endpoints_and_answers_in_order(
    service: Service, ada: Person, place: Place
) -> None:
    elsewhere = ada.endpoint()
    triples = [
        [place.function_id, place.endpoint_id, "a"],
        [place.function_id, elsewhere, "b"],
        [place.function_id, place.endpoint_id, "c"],
    ]

    body = ada.post("/v2/submit", {"tasks": triples, "create_websocket_queue": False}).done()

    payloads = {task.task_id: task.payload for task in service.outbox.sent}
    assert [payloads[result["task_uuid"]] for result in body["results"]] == ["a", "b", "c"]
    assert {(result["status"], result["http_status_code"]) for result in body["results"]} == {("success", 200)}
    assert len(ada.get(f"/v2/taskgroup/{body['task_group_id']}").done()["tasks"]) == 3


def test_the_older_submit_makes_the_group_whose_id_its_sender_made(ada: Person, bob: Person, place: Place) -> None:
    group_id = "5b1f4c53-4d04-4a8c-8a5e-6e4d8f0f9d6a"
    request = {"tasks": [[place.function_id, place.endpoint_id, "a"]], "task_group_id": group_id}

    first, second = (ada.post("/v2/submit", request).done() for _ in range(2))

    assert first["task_group_id"] == second["task_group_id"] == group_id
    assert len(ada.get(f"/v2/taskgroup/{group_id}").done()["tasks"]) == 2
    bob.get(f"/v2/taskgroup/{group_id}").refused(403, "TASK_GROUP_ACCESS_FORBIDDEN")


def test_two_older_submits_that_make_the_same_group_at_once_are_both_done(
    service: Service, ada: Person, bob: Person, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    group_id = "5b1f4c53-4d04-4a8c-8a5e-6e4d8f0f9d6a"
    request = {"tasks": [[place.function_id, place.endpoint_id, "a"]], "task_group_id": group_id}
    find = service.ledger.task_group_owner
    ada.post("/v2/submit", request).done()
    for person in (ada, bob):
        # As if the other one's had come between the look and the making.
        first_look = iter([None])
        monkeypatch.setattr(service.ledger, "task_group_owner", lambda of, look=first_look: next(look, find(of)))
        if person is ada:
            assert ada.post("/v2/submit", request).done()["task_group_id"] == group_id
        else:
            request = {**request, "tasks": [[bob.function(), bob.endpoint(), "a"]]}
            bob.post("/v2/submit", request).refused(403, "TASK_GROUP_ACCESS_FORBIDDEN")
    assert len(service.outbox.sent) == 2


def test_the_older_submit_is_done_whole_or_not_at_all(
    service: Service, ada: Person, place: Place, unknown_id: str
) -> None:
    triples = [[place.function_id, place.endpoint_id, "a"], [place.function_id, unknown_id, "b"]]

    ada.post("/v2/submit", {"tasks": triples}).refused(404, "ENDPOINT_NOT_FOUND")
    ada.post("/v2/submit", {"tasks": [["a"]]}).refused(422, "SEMANTICALLY_INVALID")

    assert service.outbox.sent == []


# -- asking -----------------------------------------------------------------------------------------------------------


def test_a_waiting_task_shows_neither_result_nor_completion(ada: Person, place: Place) -> None:
    (task_id,) = place.ids(place.submit())

    task = ada.get(f"/v2/tasks/{task_id}").done()

    assert task["status"] == "received"
    assert (task["endpoint_id"], task["function_id"]) == (place.endpoint_id, place.function_id)
    assert not {"result", "exception", "completion_t", "details"} & set(task)
    ((state, since),) = task["history"]
    assert state == "received" and since > 0


def test_a_task_that_ended_shows_its_result_and_what_the_worker_said(
    service: Service, ada: Person, place: Place
) -> None:
    (task_id,) = place.ids(place.submit())
    started = Transition(1_700_000_000_000_000_000, "execution-start", "worker")
    service.ledger.record_results(
        None, [Result(task_id, "11\n3", details={"python_version": "3.11.7"}, task_statuses=[started])]
    )

    task = ada.get(f"/v2/tasks/{task_id}").done()

    assert (task["status"], task["result"]) == ("success", "11\n3")
    assert float(task["completion_t"]) > 0
    assert task["details"]["python_version"] == "3.11.7"
    assert "exception" not in task


def test_a_failed_task_shows_why_for_people_and_for_programs(service: Service, ada: Person, place: Place) -> None:
    (task_id,) = place.ids(place.submit())
    error = ErrorDetails("RemoteExecutionError", "it raised")
    service.ledger.record_results(
        None, [Result(task_id, "Traceback...", error_details=error, exception_object="00\nabc")]
    )

    task = ada.get(f"/v2/tasks/{task_id}").done()

    assert (task["status"], task["exception"]) == ("failed", "Traceback...")
    assert (task["error_code"], task["exception_object"]) == ("RemoteExecutionError", "00\nabc")
    assert "result" not in task


def test_somebody_elses_task_and_group_are_not_shown(bob: Person, place: Place, unknown_id: str) -> None:
    receipt = place.submit()
    (task_id,) = place.ids(receipt)

    bob.get(f"/v2/tasks/{task_id}").refused(403, "TASK_ACCESS_FORBIDDEN")
    for path in ("/v2/taskgroup/{}", "/v2/taskgroup/{}/results"):
        bob.get(path.format(receipt["task_group_id"])).refused(403, "TASK_GROUP_ACCESS_FORBIDDEN")
        bob.get(path.format(unknown_id)).refused(404, "TASK_GROUP_NOT_FOUND")
    shown = bob.post("/v2/batch_status", {"task_ids": [task_id]}).done()["results"][task_id]
    assert shown["error_code"] == "TASK_NOT_FOUND"


def test_many_tasks_are_asked_for_at_once_and_unknown_ones_count_as_failed(
    service: Service, ada: Person, place: Place, unknown_id: str
) -> None:
    ended, waiting = place.ids(place.submit(2))
    service.finish(ended)

    body = ada.post("/v2/batch_status", {"task_ids": [ended, waiting, unknown_id]}).done()

    assert body["response"] == "batch"
    statuses = {task_id: task["status"] for task_id, task in body["results"].items()}
    assert statuses == {ended: "success", waiting: "received", unknown_id: "failed"}
    assert unknown_id in body["results"][unknown_id]["exception"]


def test_asking_for_too_many_tasks_at_once_is_refused(ada: Person, unknown_id: str) -> None:
    ada.post("/v2/batch_status", {"task_ids": [unknown_id] * 21}).refused(413, "BATCH_RUN_TOO_LARGE")


def test_results_of_a_group_come_in_order_and_in_pieces(service: Service, ada: Person, place: Place) -> None:
    receipt = place.submit(3)
    first, second, third = place.ids(receipt)
    service.finish(second)
    service.finish(first, third)
    path = f"/v2/taskgroup/{receipt['task_group_id']}/results"

    page = ada.get(f"{path}?limit=1").done()
    rest = ada.get(f"{path}?after={page['cursor']}").done()
    nothing = ada.get(f"{path}?after={rest['cursor']}").done()

    assert [task["task_id"] for task in page["results"]] == [second]
    assert {task["task_id"] for task in rest["results"]} == {first, third}
    assert nothing == {"taskgroup_id": receipt["task_group_id"], "cursor": rest["cursor"], "results": []}


def ask_in_the_background(person: Person, path: str) -> tuple[threading.Thread, list[Answer]]:
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(person.get(path)))
    thread.start()
    return thread, answers


def test_a_held_request_is_answered_when_a_result_comes(service: Service, ada: Person, place: Place) -> None:
    receipt = place.submit()
    (task_id,) = place.ids(receipt)
    thread, answers = ask_in_the_background(ada, f"/v2/taskgroup/{receipt['task_group_id']}/results?wait=25")
    assert service.waiting.somebody_waits.wait(10)

    service.finish(task_id)
    thread.join(10)

    (answer,) = answers
    assert [task["task_id"] for task in answer.done()["results"]] == [task_id]


def test_a_held_request_for_one_task_does_not_return_for_another_of_its_group(
    service: Service, ada: Person, place: Place
) -> None:
    wanted, other = place.ids(place.submit(2))
    thread, answers = ask_in_the_background(ada, f"/v2/tasks/{wanted}?wait=25")
    assert service.waiting.somebody_waits.wait(10)

    service.waiting.somebody_waits.clear()
    service.finish(other)
    assert service.waiting.somebody_waits.wait(10), "it has to begin to wait again"
    service.finish(wanted)
    thread.join(10)

    assert answers[0].done()["status"] == "success"


def test_a_held_request_for_a_task_that_is_removed_meanwhile_says_so(
    service: Service, ada: Person, place: Place
) -> None:
    receipt = place.submit()
    (task_id,) = place.ids(receipt)
    thread, answers = ask_in_the_background(ada, f"/v2/tasks/{task_id}?wait=25")
    assert service.waiting.somebody_waits.wait(10)

    with service.database.writing() as connection:
        connection.execute(delete(Task).where(Task.id == task_id))
    service.waiting.wake([receipt["task_group_id"]])
    thread.join(60)

    answers[0].refused(404, "TASK_NOT_FOUND")


def test_a_held_request_ends_with_nothing_when_its_time_is_over(ada: Person, place: Place) -> None:
    receipt = place.submit()

    body = ada.get(f"/v2/taskgroup/{receipt['task_group_id']}/results?wait=0.01").done()

    assert (body["cursor"], body["results"]) == (0, [])
    assert ada.get(f"/v2/tasks/{place.ids(receipt)[0]}?wait=0.01").done()["status"] == "received"


def test_held_requests_are_let_go_when_the_service_stops(service: Service, ada: Person, place: Place) -> None:
    receipt = place.submit()
    path = f"/v2/taskgroup/{receipt['task_group_id']}/results?wait=25"
    thread, answers = ask_in_the_background(ada, path)
    assert service.waiting.somebody_waits.wait(10)

    service.waiting.close()
    thread.join(10)

    assert answers[0].done()["results"] == []
    assert ada.get(path).done()["results"] == []


def test_too_many_held_requests_are_asked_to_come_back(service: Service, ada: Person, place: Place) -> None:
    group_id = place.submit()["task_group_id"]

    with service.waiting.listen("a"), service.waiting.listen("b"):
        answer = ada.get(f"/v2/taskgroup/{group_id}/results?wait=25")

    answer.refused(429, "TOO_MANY_WAITING")
    assert answer.headers["Retry-After"] == "1"


def test_tasks_are_listed_newest_first_and_page_by_page(ada: Person, place: Place) -> None:
    ids = place.ids(place.submit(5))

    first = ada.get("/v2/tasks?limit=3").done()
    second = ada.get(f"/v2/tasks?limit=3&after={first['next']}").done()

    assert [task["task_id"] for task in first["tasks"] + second["tasks"]] == ids[::-1]
    assert second["next"] is None
    assert "result" not in first["tasks"][0]


def test_tasks_are_filtered(service: Service, ada: Person, place: Place, unknown_id: str) -> None:
    receipt = place.submit(2)
    ended, waiting = place.ids(receipt)
    service.finish(ended)

    def found(**query: Any) -> set[str]:
        return {task["task_id"] for task in ada.get("/v2/tasks", query_string=query).done()["tasks"]}

    assert found(state="success") == {ended}
    assert found(state="received") == {waiting}
    assert found(endpoint_id=place.endpoint_id, function_id=place.function_id) == {ended, waiting}
    assert found(endpoint_id=unknown_id) == found(function_id=unknown_id) == set()
    assert found(task_group_id=receipt["task_group_id"]) == {ended, waiting}
    assert found(created_after="2000-01-01T00:00:00Z") == {ended, waiting}
    assert found(created_after="2999-01-01T00:00:00+01:00") == set()
    assert found(created_before="2000-01-01") == set()


@pytest.mark.parametrize(
    "query",
    ["state=done", "after=x", "endpoint_id=x", "created_after=yesterday"],
)
def test_a_wrong_filter_is_named(ada: Person, query: str) -> None:
    answer = ada.get(f"/v2/tasks?{query}")

    assert f"{query.partition('=')[0]}:" in answer.refused(422, "SEMANTICALLY_INVALID")


def test_results_over_amqp_are_declined_in_words(ada: Person) -> None:
    assert "GET /v2/taskgroup" in ada.get("/v2/get_amqp_result_connection_url").refused(409, "AMQP_NOT_AVAILABLE")


def test_a_filter_that_does_not_exist_is_refused_instead_of_listing_everything(ada: Person) -> None:
    assert "endpoint" in ada.get("/v2/tasks?endpoint=mine").refused(422, "SEMANTICALLY_INVALID")
