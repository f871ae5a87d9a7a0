"""Globus Compute's endpoint, played by hand over a real RabbitMQ: start commands, tasks, lives and deaths."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from foreign_support import BUSY, CORE, TIMEOUT_S, CoreEndpoint, Somebody, UserEndpoint, World, listening
from sqlalchemy import select

from farcall import wire
from farcall_webservice import foreign, queues
from farcall_webservice.models import Endpoint


@pytest.fixture
def ada(world: World) -> Somebody:
    return world.person("ada")


@pytest.fixture
def core(world: World, ada: Somebody) -> Iterator[CoreEndpoint]:
    endpoint = world.core_endpoint(ada)
    world.wait_until(lambda: ada.ask("GET", f"/v2/endpoints/{endpoint.id}/status")["status"] == "online")
    yield endpoint
    endpoint.close()


def submit(ada: Somebody, core: CoreEndpoint, count: int = 1, **more: Any) -> list[str]:
    function_id = ada.function()
    answer = ada.submit(core.id, function_id, count, **more)
    assert answer["endpoint_id"] == core.id
    return list(answer["tasks"][function_id])


def state(world: World, *task_ids: str) -> list[str]:
    return [str(world.task(task_id).state) for task_id in task_ids]


def ended(world: World, *task_ids: str) -> None:
    world.wait_until(lambda: all(world.task(task_id).completed_at for task_id in task_ids))


def look_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user endpoint without a connection counts as gone in no time."""
    monkeypatch.setattr("farcall_webservice.publisher.SETTLED_AFTER_S", 0.0)
    monkeypatch.setattr("farcall_webservice.children.SECOND_LOOK_S", 0.01)


def is_told_nothing(ada: Somebody, core: CoreEndpoint) -> bool:
    """Whether nothing that the dispatcher has to do by now is a command: two later ones, one by one, come first."""
    markers = [{"marker": uuid.uuid4().hex} for _ in range(2)]
    told = []
    for config in markers:
        submit(ada, core, user_endpoint_config=config)
        told.append(core.take_command()[0]["kwargs"]["user_opts"])
    return told == markers


def gets_nothing(ada: Somebody, core: CoreEndpoint, child: UserEndpoint) -> bool:
    """Whether no task is on its way to a user endpoint: one that is submitted now comes first."""
    later = submit(ada, core)
    return child.take() == later


def heard(world: World, sender: CoreEndpoint | UserEndpoint, **state: Any) -> None:
    """Let somebody send a heartbeat, and wait until it is noted."""
    marker = uuid.uuid4().hex
    sender.heartbeat(marker=marker, **state)

    def noted() -> bool:
        with world.database.reading() as connection:
            report = connection.execute(select(Endpoint.last_report).where(Endpoint.id == sender.id)).scalar_one()
        return bool(report and report.get("marker") == marker)

    world.wait_until(noted)


# -- the messages -----------------------------------------------------------------------------------------------------


def test_a_submit_commands_the_start_of_a_user_endpoint_with_all_that_it_needs(
    world: World, ada: Somebody, core: CoreEndpoint
) -> None:
    submit(ada, core, user_endpoint_config={"workers": 3}, user_runtime={"python": {"version": "3.12"}})

    command, message = core.take_command()

    assert message.content_type == "application/json"
    assert abs(message.properties["timestamp"] - time.time()) < 60
    assert 0 < int(message.properties["expiration"]) < 180_000
    assert command["command"] == "cmd_start_endpoint"
    assert command["globus_effective_identity"] == ada.id
    assert [identity["sub"] for identity in command["globus_identity_set"]] == [ada.id]
    assert command["globus_username"] == "ada"
    kwargs = command["kwargs"]
    child_id = kwargs["amqp_creds"]["endpoint_id"]
    assert kwargs["name"] == f"uep.{core.id}.{child_id}"
    assert kwargs["user_opts"] == {"workers": 3}
    assert kwargs["user_runtime"] == {}
    assert kwargs["amqp_creds"]["task_queue_info"]["queue"] == f"{child_id}.tasks"
    for name in ("result", "heartbeat"):
        info = kwargs["amqp_creds"][f"{name}_queue_info"]
        assert info["queue_publish_kwargs"]["routing_key"] == f"{child_id}.{name}s"
    # Of how things were when no collector ran, nobody needs to hear. Results are kept.
    properties = {
        name: kwargs["amqp_creds"][f"{name}_queue_info"]["queue_publish_kwargs"]["properties"]
        for name in ("result", "heartbeat")
    }
    assert properties["heartbeat"]["expiration"] == "60000"
    assert "expiration" not in properties["result"]


def test_a_task_comes_alone_with_its_headers(world: World, ada: Somebody, core: CoreEndpoint) -> None:
    function_id = ada.function()
    options = {"resource_specification": {"num_nodes": 2}, "result_serializers": ["a.B", "c.D"]}
    answer = ada.submit(core.id, function_id, **options)
    (task_id,) = answer["tasks"][function_id]

    message = core.start_child().tasks.take()

    body = message.body.encode() if isinstance(message.body, str) else message.body
    assert wire.decode(body) == wire.Task(task_id, "4\nst\nx9\n11\n[1, 2]5\n11\n{}")
    assert message.headers["function_uuid"] == function_id
    assert message.headers["task_uuid"] == task_id
    assert json.loads(message.headers["resource_specification"]) == {"num_nodes": 2}
    assert message.headers["result_serializers"] == ["a.B", "c.D"]


def test_results_of_the_user_endpoint_end_the_tasks(world: World, ada: Somebody, core: CoreEndpoint) -> None:
    ids = submit(ada, core, 3)
    child = core.start_child()

    child.answer(*child.take(3))

    ended(world, *ids)
    assert state(world, *ids) == ["success"] * 3


def test_nobody_but_the_user_endpoint_may_answer(world: World, ada: Somebody, core: CoreEndpoint) -> None:
    (task_id,) = submit(ada, core)
    child = core.start_child()

    world.say(core.id, queues.RESULTS, wire.Result(task_id, "not mine to send"))
    child.answer(task_id)

    ended(world, task_id)
    assert world.task(task_id).outcome == "11\n3"


def test_user_endpoints_are_one_for_each_user_and_configuration(world: World, ada: Somebody) -> None:
    public = world.core_endpoint(ada, public=True)
    bob = world.person("bob")
    world.wait_until(lambda: bob.ask("GET", f"/v2/endpoints/{public.id}/status")["status"] == "online")
    children = []
    for somebody, config in ((ada, {"a": 1, "b": 2}), (ada, {"a": 2}), (bob, {"a": 1, "b": 2}), (ada, None)):
        submit(somebody, public, user_endpoint_config=config)
        children.append(public.take_command()[0]["kwargs"]["amqp_creds"]["endpoint_id"])
    assert len(set(children)) == 4

    # The same again goes to the same.
    submit(ada, public, user_endpoint_config={"b": 2, "a": 1})
    assert foreign.child_id(public.id, ada.id, {"b": 2, "a": 1}) == children[0]
    with queues.connect(world.broker_url) as connection:
        assert queues.tasks_queue(children[0])(connection.channel()).queue_declare().message_count >= 1
    public.close()


def test_a_user_endpoint_that_runs_is_not_commanded_to_start(world: World, ada: Somebody, core: CoreEndpoint) -> None:
    submit(ada, core)
    child = core.start_child()
    child.answer(*child.take())

    again = submit(ada, core)

    assert child.take() == again
    assert is_told_nothing(ada, core)


# -- what others see --------------------------------------------------------------------------------------------------


def test_user_endpoints_are_seen_by_nobody(world: World, ada: Somebody, core: CoreEndpoint) -> None:
    submit(ada, core)
    child = core.start_child()

    assert [each["uuid"] for each in ada.ask("GET", "/v2/endpoints?role=any")] == [core.id]
    for method, path in (
        ("GET", f"/v2/endpoints/{child.id}"),
        ("GET", f"/v2/endpoints/{child.id}/status"),
        ("DELETE", f"/v2/endpoints/{child.id}"),
        ("POST", f"/v3/endpoints/{child.id}/lock"),
    ):
        assert ada.refused(method, path) == (404, "ENDPOINT_NOT_FOUND")
    body = {"tasks": {ada.function(): ["p"]}}
    assert ada.refused("POST", f"/v3/endpoints/{child.id}/submit", body) == (404, "ENDPOINT_NOT_FOUND")
    registration = {"endpoint_name": "stolen", "metadata": CORE}
    assert ada.refused("PUT", f"/v3/endpoints/{child.id}", registration)[0] == 403


def test_the_status_counts_the_workers_of_user_endpoints(world: World, ada: Somebody, core: CoreEndpoint) -> None:
    submit(ada, core, 2)
    child = core.start_child()
    child.heartbeat(total_workers=4, **BUSY)

    def status() -> Any:
        return ada.ask("GET", f"/v2/endpoints/{core.id}/status")

    world.wait_until(lambda: bool(status()["details"]["total_workers"] == 4))
    assert status()["logs"][0]["outstanding_tasks"] == 2


def test_a_configuration_that_an_endpoint_does_not_use_is_warned_of(world: World, ada: Somebody) -> None:
    body = {"endpoint_name": "ours", "metadata": {"accepts": ["task_batch"]}}
    endpoint_id = ada.ask("POST", "/v3/endpoints", body)["endpoint_id"]
    function_id = ada.function()

    assert "ha_warning" not in ada.submit(endpoint_id, function_id)
    assert "not used" in ada.submit(endpoint_id, function_id, user_endpoint_config={"a": 1})["ha_warning"]


# -- starts that fail -------------------------------------------------------------------------------------------------


def test_a_start_that_fails_fails_the_tasks_with_what_the_endpoint_says(
    world: World, ada: Somebody, core: CoreEndpoint
) -> None:
    ids = submit(ada, core, 2)
    command, _ = core.take_command()
    child_id = command["kwargs"]["amqp_creds"]["endpoint_id"]

    world.report(child_id, error="no such provider", heartbeat_period=3)
    # The endpoint says it twice, the second time as if it meant itself.
    core.heartbeat(error="(SystemExit) 73", heartbeat_period=3)

    ended(world, *ids)
    row = world.task(ids[0])
    assert (row.state, row.error_code) == ("failed", "USER_ENDPOINT_START_FAILED")
    assert "no such provider" in row.outcome
    assert ada.ask("GET", f"/v2/endpoints/{core.id}/status")["details"]["heartbeat_period"] == 30

    # What had failed is not run when the next start works.
    again = submit(ada, core)
    assert core.start_child().take() == again


def test_a_failed_start_that_is_reported_again_fails_nothing_of_a_later_one(
    world: World, ada: Somebody, core: CoreEndpoint
) -> None:
    (task_id,) = submit(ada, core)
    child = core.start_child()

    world.report(child.id, error="no such provider", heartbeat_period=3)
    heard(world, child)

    assert not world.task(task_id).completed_at
    assert world.phase(child.id) == "up"


def test_a_start_that_a_dead_predecessors_file_prevents_is_repeated(
    world: World, ada: Somebody, core: CoreEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farcall_webservice.foreign.USUAL_PERIOD_S", 0.1)
    ids = submit(ada, core, 2)
    command, _ = core.take_command()
    child_id = command["kwargs"]["amqp_creds"]["endpoint_id"]

    text = "PID file content:\n 444\n\n Another instance of this endpoint is running.  Refusing to start."
    world.report(child_id, error=text, heartbeat_period=3)

    assert core.start_child().take(2) == ids


def test_what_a_parent_reports_in_its_own_name_leaves_it_online(
    world: World, ada: Somebody, core: CoreEndpoint
) -> None:
    core.heartbeat(error="(SystemExit) 73", heartbeat_period=0)
    core.heartbeat(noted=True)

    def status() -> Any:
        return ada.ask("GET", f"/v2/endpoints/{core.id}/status")

    world.wait_until(lambda: bool(status()["details"].get("noted")))
    assert status()["status"] == "online"


def test_a_start_that_is_never_answered_is_repeated_and_then_given_up(
    world: World, ada: Somebody, core: CoreEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farcall_webservice.children.AWAITED_S", 0.0)
    monkeypatch.setattr("farcall_webservice.children.MOST_ATTEMPTS", 3)
    (task_id,) = submit(ada, core)

    core.take_command()
    for _ in range(2):
        core.heartbeat()
        core.take_command()
    core.heartbeat()

    ended(world, task_id)
    assert world.task(task_id).error_code == "USER_ENDPOINT_DID_NOT_START"


# -- lives and deaths -------------------------------------------------------------------------------------------------


def test_tasks_wait_for_an_endpoint_that_is_offline_and_start_it_when_it_comes(world: World, ada: Somebody) -> None:
    body = {"endpoint_name": "core", "metadata": CORE}
    answer = ada.ask("POST", "/v3/endpoints", body)
    core = CoreEndpoint(world, answer)
    ids = submit(ada, core, 2)
    world.wait_until(lambda: state(world, *ids) == ["waiting-for-ep"] * 2)

    core.heartbeat()
    child = core.start_child()

    # Each once, although they had been on the queue before.
    assert sorted(child.take(2)) == sorted(ids)
    assert gets_nothing(ada, core, child)
    # The one command was the only one.
    assert is_told_nothing(ada, core)
    core.close()


def test_what_a_killed_user_endpoint_had_taken_is_sent_again_with_what_still_waited(
    world: World, ada: Somebody, core: CoreEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_again_at_once(monkeypatch)
    ids = submit(ada, core, 4)
    child = core.start_child()
    done, *taken = child.take(3)
    child.answer(done)
    ended(world, done)

    child.die()
    core.heartbeat()
    successor = core.start_child()

    assert successor.id == child.id
    assert sorted(successor.take(3)) == sorted(set(ids) - {done})
    assert gets_nothing(ada, core, successor)
    assert set(taken) < set(ids)


def test_what_another_process_has_published_but_not_noted_survives_the_emptying_of_the_queue(
    world: World, ada: Somebody, core: CoreEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_again_at_once(monkeypatch)
    function_id = ada.function()
    (lost,) = ada.submit(core.id, function_id)["tasks"][function_id]
    child = core.start_child()
    child.take()
    child.die()

    receipt = world.ledger.submit(
        owner_id=ada.id, endpoint_id=core.id, runner_id=child.id, payloads={function_id: ["p"]}
    )
    ((task,),) = [batch.tasks for batch in receipt.outgoing]
    body, headers = foreign.task_message(task, "4\nst\nx")
    world.publish(queues.tasks_queue(child.id).name, body, headers)
    core.heartbeat()

    successor = core.start_child()
    assert sorted(successor.take(2)) == sorted([lost, task.task_id])
    assert gets_nothing(ada, core, successor)


def test_a_submit_notices_that_nobody_consumes(
    world: World, ada: Somebody, core: CoreEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_again_at_once(monkeypatch)
    (lost,) = submit(ada, core)
    child = core.start_child()
    child.take()
    child.die()

    (new,) = submit(ada, core)

    assert sorted(core.start_child().take(2)) == sorted([lost, new])


def test_a_user_endpoint_that_is_connected_is_left_alone(
    world: World, ada: Somebody, core: CoreEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_again_at_once(monkeypatch)
    submit(ada, core)
    child = core.start_child()
    child.take()

    heard(world, core)

    assert is_told_nothing(ada, core)


def test_a_user_endpoint_that_went_idle_is_started_for_the_next_task(
    world: World, ada: Somebody, core: CoreEndpoint
) -> None:
    submit(ada, core)
    child = core.start_child()
    child.answer(*child.take())
    child.heartbeat(active=False)
    child.die()
    world.wait_until(lambda: world.phase(child.id) == "down")

    again = submit(ada, core)

    assert core.start_child().take() == again


def test_a_task_that_meets_the_goodbye_is_not_left_behind(
    world: World, ada: Somebody, core: CoreEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farcall_webservice.reports.GOODBYE_S", 0.1)
    submit(ada, core)
    child = core.start_child()
    child.answer(*child.take())

    again = submit(ada, core)
    child.take()
    child.die()
    child.heartbeat(active=False)

    assert core.start_child().take() == again


def test_a_task_that_ends_whoever_takes_it_fails_in_the_end(
    world: World, ada: Somebody, core: CoreEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_again_at_once(monkeypatch)
    (task_id,) = submit(ada, core)

    for _ in range(3):
        child = core.start_child()
        assert child.take() == [task_id]
        child.die()
        core.heartbeat()

    ended(world, task_id)
    assert world.task(task_id).error_code == "USER_ENDPOINT_LOST"


def test_a_restart_of_the_endpoint_is_held_against_no_task(
    world: World, ada: Somebody, core: CoreEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_again_at_once(monkeypatch)
    (task_id,) = submit(ada, core)
    current = core
    for _ in range(4):
        child = current.start_child()
        assert child.take() == [task_id]
        child.die()
        current.close()
        answer = ada.ask("PUT", f"/v3/endpoints/{core.id}", {"endpoint_name": "core", "metadata": CORE})
        current = CoreEndpoint(world, answer)
        current.heartbeat()

    child = current.start_child()
    child.answer(*child.take())
    ended(world, task_id)
    assert world.task(task_id).state == "success"
    current.close()


def test_a_task_that_got_lost_on_its_way_is_sent_again_once_the_user_endpoint_has_twice_said_that_it_is_idle(
    world: World, ada: Somebody, core: CoreEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farcall_webservice.reports.GRACE_S", 0.0)
    ids = submit(ada, core)
    child = core.start_child()
    child.take()
    world.wait_until(lambda: state(world, *ids) == ["waiting-for-ep"])

    # The period says how far apart two reports have to be.
    heard(world, child, heartbeat_period=0.001, **BUSY)
    heard(world, child, heartbeat_period=0.001)
    (later,) = submit(ada, core)
    assert child.take() == [later]
    child.answer(later)
    ended(world, later)
    heard(world, child, heartbeat_period=0.001)

    assert child.take() == ids


def test_two_reports_that_have_waited_for_a_collector_together_say_nothing_twice(
    world: World, ada: Somebody, core: CoreEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farcall_webservice.reports.GRACE_S", 0.0)
    ids = submit(ada, core)
    child = core.start_child()
    child.take()
    world.wait_until(lambda: state(world, *ids) == ["waiting-for-ep"])

    heard(world, child)
    heard(world, child)

    assert gets_nothing(ada, core, child)


def test_a_user_endpoint_that_loses_its_connection_for_a_moment_gets_nothing_twice(
    world: World, ada: Somebody, core: CoreEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farcall_webservice.publisher.SETTLED_AFTER_S", 0.0)
    submit(ada, core)
    child = core.start_child()
    child.take()

    child.die()
    meanwhile = submit(ada, core)
    heard(world, core)
    child.connect()

    assert child.take() == meanwhile
    assert gets_nothing(ada, core, child)
    assert is_told_nothing(ada, core)


def test_an_older_endpoint_takes_its_tasks_itself_and_gets_again_what_it_lost_when_it_died(
    world: World, ada: Somebody, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farcall_webservice.reports.GRACE_S", 0.0)
    body = {"endpoint_name": "old", "metadata": {"endpoint_version": "2.11.0"}}
    answer = ada.ask("POST", "/v3/endpoints", body)
    endpoint = UserEndpoint(world, answer)
    function_id = ada.function()
    (task_id,) = ada.submit(endpoint.id, function_id)["tasks"][function_id]
    assert endpoint.take() == [task_id]
    world.wait_until(lambda: state(world, task_id) == ["waiting-for-ep"])

    endpoint.die()
    successor = UserEndpoint(world, ada.ask("PUT", f"/v3/endpoints/{endpoint.id}", body))
    for _ in range(2):
        heard(world, successor, heartbeat_period=0.001)

    assert successor.take() == [task_id]
    successor.answer(task_id)
    ended(world, task_id)
    successor.die()


def test_tasks_follow_an_endpoint_that_is_upgraded_and_one_that_is_changed_for_ours(
    world: World, ada: Somebody, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farcall_webservice.reports.GRACE_S", -1.0)
    monkeypatch.setattr("farcall_webservice.reports.BELIEVED_AFTER_S", 0.0)
    old = {"endpoint_name": "e", "metadata": {"endpoint_version": "2.11.0"}}
    endpoint_id = ada.ask("POST", "/v3/endpoints", old)["endpoint_id"]
    function_id = ada.function()
    ids = ada.submit(endpoint_id, function_id, 2)["tasks"][function_id]
    world.wait_until(lambda: state(world, *ids) == ["waiting-for-ep"] * 2)

    path = f"/v3/endpoints/{endpoint_id}"
    core = CoreEndpoint(world, ada.ask("PUT", path, {"endpoint_name": "e", "metadata": CORE}))
    core.heartbeat()
    child = core.start_child()
    done, taken = child.take(2)
    child.answer(done)
    ended(world, done)
    child.die()
    core.close()
    ours = {"endpoint_name": "e", "metadata": {"accepts": ["task_batch"]}}
    answer = ada.ask("PUT", path, ours)
    world.say(endpoint_id, queues.HEARTBEATS, wire.StatusReport(endpoint_id, {}, holds=[]))

    with listening(world.broker_url, answer["task_queue_info"]["queue"]) as listener:
        body = listener.take().body
    batch = wire.decode(body.encode() if isinstance(body, str) else body)
    assert isinstance(batch, wire.TaskBatch)
    assert [task.task_id for task in batch.tasks] == [taken]


# -- registering, stopping, deleting ----------------------------------------------------------------------------------


def test_a_lock_takes_the_queue_of_commands_away_and_lets_nobody_register(
    world: World, ada: Somebody, core: CoreEndpoint
) -> None:
    ada.ask("POST", f"/v3/endpoints/{core.id}/lock")

    again = ("PUT", f"/v3/endpoints/{core.id}", {"endpoint_name": "core", "metadata": CORE})
    assert ada.refused(*again) == (423, "RESOURCE_LOCKED")
    # A task meanwhile waits; no command makes the queue anew.
    ids = submit(ada, core)
    world.wait_until(lambda: state(world, *ids) == ["waiting-for-ep"])
    with queues.connect(world.broker_url) as connection, pytest.raises(connection.channel_errors):
        queues.commands_queue(core.id)(connection.channel()).queue_declare(passive=True)


def test_a_second_instance_is_refused_while_the_first_is_connected(
    world: World, ada: Somebody, core: CoreEndpoint
) -> None:
    again = ("PUT", f"/v3/endpoints/{core.id}", {"endpoint_name": "core", "metadata": CORE})

    assert ada.refused(*again) == (409, "RESOURCE_CONFLICT")
    core.close()
    world.wait_until(lambda: queues.consumers(world.broker_url, queues.commands_queue(core.id)) == 0)
    assert ada.ask(*again)["endpoint_id"] == core.id


def test_nobody_waits_for_the_broker_while_an_endpoint_registers(
    world: World, ada: Somebody, core: CoreEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def slow(*_: Any) -> bool:
        report = threading.Thread(target=heard, args=(world, core))
        report.start()
        report.join(TIMEOUT_S / 3)
        written.append(not report.is_alive())
        return False

    monkeypatch.setattr("farcall_webservice.registration._is_consumed", slow)
    ada.ask("PUT", f"/v3/endpoints/{core.id}", {"endpoint_name": "core", "metadata": CORE})

    assert written == [True]


def test_deleting_an_endpoint_fails_the_tasks_of_its_user_endpoints(
    world: World, ada: Somebody, core: CoreEndpoint
) -> None:
    ids = submit(ada, core) + submit(ada, core, user_endpoint_config={"a": 1})

    ada.ask("DELETE", f"/v2/endpoints/{core.id}")

    ended(world, *ids)
    assert {world.task(task_id).error_code for task_id in ids} == {"EndpointDeleted"}


@pytest.mark.parametrize(
    ("details", "core"),
    [
        (CORE, True),
        ({"endpoint_version": "4.0.0"}, True),
        ({"endpoint_version": "3.2.0", "multi_user": True}, True),
        ({"endpoint_version": "3.2.0", "user_config_template": None}, False),
        ({"endpoint_version": "2.11.0"}, False),
        ({"accepts": ["task_batch"], "endpoint_version": "4.0.0"}, False),
        ({}, False),
    ],
)
def test_which_endpoints_have_user_endpoints(details: dict[str, Any], core: bool) -> None:
    assert foreign.is_core(details) is core
