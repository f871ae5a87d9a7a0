"""Results of a group go to its queue at the broker, as Globus Compute's Executor consumes them."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from foreign_support import Listener, Somebody, World, listening
from kombu import Queue
from sqlalchemy import select, update

from farcall import wire
from farcall.wire import ErrorDetails, Result
from farcall_webservice import queues
from farcall_webservice.models import ResultQueue, Task
from farcall_webservice.pruning import prune_result_queues


class Place:
    """Somebody with a function, and an endpoint that is ours."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.ada = world.person("ada")
        self.function_id = self.ada.function()
        body = {"endpoint_name": "e", "metadata": {"accepts": ["task_batch"]}}
        self.endpoint_id = str(self.ada.ask("POST", "/v3/endpoints", body)["endpoint_id"])

    def submit(self, count: int = 1, **more: Any) -> tuple[str, list[str]]:
        answer = self.ada.submit(self.endpoint_id, self.function_id, count, **more)
        return str(answer["task_group_id"]), list(answer["tasks"][self.function_id])

    def finish(self, *results: Result) -> None:
        for result in results:
            self.world.say(self.endpoint_id, queues.RESULTS, result)

    def queue_of(self, group_id: str, somebody: Somebody | None = None) -> str:
        answer = (somebody or self.ada).ask("GET", "/v2/get_amqp_result_connection_url")
        return f"{answer['queue_prefix']}{group_id}"


@pytest.fixture
def place(world: World) -> Place:
    return Place(world)


def taken(listener: Listener) -> tuple[dict[str, Any], Any]:
    message = listener.take()
    body = message.body.encode() if isinstance(message.body, str) else message.body
    assert body[:1] == b"\x01"
    document = json.loads(body[1:])
    assert document["message_type"] == "result"
    return document["data"], message


def test_the_queue_is_there_when_the_submit_is_answered_and_gets_each_result(place: Place) -> None:
    group_id, (first, second) = place.submit(2, create_queue=True)

    with listening(place.world.broker_url, place.queue_of(group_id)) as listener:
        place.finish(Result(first, "11\n3", {"os": "Linux", "endpoint_id": place.endpoint_id}))
        data, message = taken(listener)
        assert (data["task_id"], data["data"]) == (first, "11\n3")
        assert data["details"]["os"] == "Linux"
        assert "error_details" not in data
        assert message.properties["timestamp"] == int(place.world.task(first).completed_at)

        place.finish(Result(second, "Traceback ...", error_details=ErrorDetails("RemoteExecutionError", "it failed")))
        data, _ = taken(listener)
        assert (data["task_id"], data["data"]) == (second, "Traceback ...")
        assert data["error_details"]["code"] == "RemoteExecutionError"


def test_the_connection_url_can_be_used_by_who_was_told_it(place: Place) -> None:
    answer = place.ada.ask("GET", "/v2/get_amqp_result_connection_url")
    group_id, (task_id,) = place.submit(create_queue=True)
    place.finish(Result(task_id, "11\n3"))

    with listening(answer["connection_url"], answer["queue_prefix"] + group_id) as listener:
        assert taken(listener)[0]["task_id"] == task_id


def test_everybody_has_a_prefix_of_their_own(place: Place, world: World) -> None:
    assert place.queue_of("x") != place.queue_of("x", world.person("bob"))


def test_a_group_that_wants_no_queue_has_none(place: Place) -> None:
    group_id, (task_id,) = place.submit()
    place.finish(Result(task_id, "11\n3"))
    place.world.wait_until(lambda: place.world.task(task_id).state == "success")

    place.ada.ask("GET", f"/v2/taskgroup/{group_id}?create_queue=false")
    with place.world.database.reading() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM result_queues").scalar_one() == 0


def test_an_older_group_gets_its_queue_when_it_is_asked_for_and_only_what_comes_then(place: Place) -> None:
    group_id, (before, after) = place.submit(2)
    place.finish(Result(before, "11\n1"))
    place.world.wait_until(lambda: place.world.task(before).state == "success")

    place.ada.ask("GET", f"/v2/taskgroup/{group_id}")
    with listening(place.world.broker_url, place.queue_of(group_id)) as listener:
        place.finish(Result(after, "11\n2"))
        assert taken(listener)[0]["task_id"] == after


def test_what_the_service_itself_has_to_say_of_a_task_goes_the_same_way(place: Place) -> None:
    group_id, (task_id,) = place.submit(create_queue=True)

    place.ada.ask("DELETE", f"/v2/endpoints/{place.endpoint_id}")

    with listening(place.world.broker_url, place.queue_of(group_id)) as listener:
        data, _ = taken(listener)
    assert (data["task_id"], data["error_details"]["code"]) == (task_id, "EndpointDeleted")


def test_more_results_than_go_out_at_a_time_all_arrive(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farcall_webservice.forward.RESULTS_PER_TURN", 3)
    group_id, ids = place.submit(10, create_queue=True)
    place.world.say(place.endpoint_id, queues.RESULTS, wire.ResultBatch([Result(each, "11\n3") for each in ids]))

    with listening(place.world.broker_url, place.queue_of(group_id)) as listener:
        assert sorted(taken(listener)[0]["task_id"] for _ in ids) == sorted(ids)


def test_results_that_nobody_forwarded_are_forwarded_at_the_next_start(place: Place) -> None:
    group_id, (task_id,) = place.submit(create_queue=True)
    # As if the process had been killed between the commit and the message.
    place.world.ledger.record_results(None, [Result(task_id, "11\n3")])

    place.world.stop()
    place.world.restart()

    with listening(place.world.broker_url, place.queue_of(group_id)) as listener:
        assert taken(listener)[0]["task_id"] == task_id
        assert listener.is_quiet()


def test_a_queue_that_has_gone_is_made_again(place: Place) -> None:
    group_id, (task_id,) = place.submit(create_queue=True)
    queues.delete(place.world.broker_url, queues.group_queue(place.ada.id, group_id))

    place.finish(Result(task_id, "11\n3"))
    place.world.wait_until(lambda: place.world.forwarded(group_id) == 1)

    with listening(place.world.broker_url, place.queue_of(group_id)) as listener:
        assert taken(listener)[0]["task_id"] == task_id


def test_somebody_elses_group_gets_no_queue(place: Place, world: World) -> None:
    group_id, _ = place.submit()
    bob = world.person("bob")

    assert bob.refused("GET", f"/v2/taskgroup/{group_id}")[1] == "TASK_GROUP_ACCESS_FORBIDDEN"
    body = {"tasks": {place.function_id: ["p"]}, "create_queue": True, "task_group_id": str(uuid.uuid4())}
    path = f"/v3/endpoints/{place.endpoint_id}/submit"
    assert place.ada.refused("POST", path, body)[1] == "TASK_GROUP_NOT_FOUND"
    with world.database.reading() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM result_queues").scalar_one() == 0


def test_queues_that_the_broker_has_forgotten_are_forgotten(place: Place) -> None:
    _, (ended,) = place.submit(create_queue=True)
    used, _ = place.submit(create_queue=True)
    place.world.ledger.record_results(None, [Result(ended, "11\n3")])
    assert prune_result_queues(place.world.database) == 0

    with place.world.database.writing() as connection:
        connection.execute(update(ResultQueue).values(created_at=0.0))
        connection.execute(update(Task).where(Task.id == ended).values(completed_at=1.0))

    assert prune_result_queues(place.world.database) == 1
    with place.world.database.reading() as connection:
        assert connection.execute(select(ResultQueue.task_group_id)).scalars().all() == [used]


def test_a_queue_with_other_arguments_serves_as_it_is(place: Place) -> None:
    group_id, (task_id,) = place.submit(create_queue=True)
    queue = queues.group_queue(place.ada.id, group_id)
    queues.delete(place.world.broker_url, queue)
    queues.declare(place.world.broker_url, Queue(queue.name, durable=True))

    place.finish(Result(task_id, "11\n3"))

    with listening(place.world.broker_url, queue.name) as listener:
        assert taken(listener)[0]["task_id"] == task_id


def test_a_queue_that_takes_nothing_keeps_no_other_group_waiting(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farcall_webservice.forward.REFUSED_PAUSE_S", 0.2)
    group_id, (task_id,) = place.submit(create_queue=True)
    queue = queues.group_queue(place.ada.id, group_id)
    queues.delete(place.world.broker_url, queue)
    full = Queue(queue.name, durable=True, max_length=1, queue_arguments={"x-overflow": "reject-publish"})
    queues.declare(place.world.broker_url, full)
    place.world.publish(full.name, b"in the way", {})
    other_id, (other,) = place.submit(create_queue=True)

    place.finish(Result(task_id, "11\n1"), Result(other, "11\n2"))

    with listening(place.world.broker_url, place.queue_of(other_id)) as listener:
        assert taken(listener)[0]["task_id"] == other
    assert place.world.forwarded(group_id) == 0
    (later,) = place.submit()[1]
    place.world.wait_until(lambda: place.world.task(later).state == "waiting-for-ep")

    with listening(place.world.broker_url, full.name) as listener:
        listener.take()
        assert taken(listener)[0]["task_id"] == task_id


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_a_group_that_another_process_is_at_keeps_no_other_waiting(place: Place) -> None:
    group_id, (task_id,) = place.submit(create_queue=True)
    other_id, (other,) = place.submit(create_queue=True)

    with place.world.database.writing() as connection:
        query = "SELECT 1 FROM result_queues WHERE task_group_id = %(group)s FOR UPDATE"
        connection.exec_driver_sql(query, {"group": group_id})
        place.finish(Result(task_id, "11\n1"), Result(other, "11\n2"))
        with listening(place.world.broker_url, place.queue_of(other_id)) as listener:
            assert taken(listener)[0]["task_id"] == other

    with listening(place.world.broker_url, place.queue_of(group_id)) as listener:
        assert taken(listener)[0]["task_id"] == task_id
