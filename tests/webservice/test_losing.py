"""What becomes of tasks that an endpoint has lost, and of cancellations that it has not heard of."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from carrying import FUNCTION, TIMEOUT_S, Loop
from kombu import Consumer, Message

from farcall import wire
from farcall_webservice import queues
from farcall_webservice.ledger import Outgoing
from farcall_webservice.window import Window


@pytest.fixture(autouse=True)
def without_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farcall_webservice.reports.GRACE_S", -1.0)
    monkeypatch.setattr("farcall_webservice.reports.BELIEVED_AFTER_S", 0.0)


def say(loop: Loop, endpoint_id: str, *, holds: list[str], **states: str) -> None:
    """A heartbeat; ``states`` are keyed by the ids of tasks."""
    statuses = {task_id: [wire.Transition(time.time_ns(), state, "endpoint")] for task_id, state in states.items()}
    loop.say(endpoint_id, queues.HEARTBEATS, wire.encode(wire.StatusReport(endpoint_id, {}, statuses, holds=holds)))


def taken(loop: Loop, endpoint_id: str, count: int, **options: object) -> list[str]:
    """The ids of tasks that the endpoint has taken from its queue."""
    ids = loop.submit(endpoint_id, count, **options).tasks[FUNCTION]
    loop.take(endpoint_id)
    loop.wait_until(lambda: {loop.state_of(task_id) for task_id in ids} == {"waiting-for-ep"})
    return ids


def test_of_lost_tasks_that_are_sent_again_it_is_said_each_time_which_may_have_started(loop: Loop) -> None:
    endpoint_id = loop.add_endpoint(accepts=["task_batch"])
    running, launching, waiting = taken(loop, endpoint_id, 3, max_retries=0)
    states = {running: "running", launching: "waiting-for-launch", waiting: "waiting-for-nodes"}
    say(loop, endpoint_id, holds=[running, launching, waiting], **states)
    loop.wait_until(lambda: {task_id: loop.state_of(task_id) for task_id in states} == states)

    for _ in range(2):
        say(loop, endpoint_id, holds=[])
        ((again, _),) = loop.take(endpoint_id)
        assert isinstance(again, wire.TaskBatch)
        said = {task.task_id: task.may_have_started for task in again.tasks}
        assert said == {running: True, launching: True, waiting: False}

    # Its agent has the result, or refuses it.
    loop.say(endpoint_id, queues.RESULTS, wire.encode(wire.Result(running, "11\n3")))
    loop.wait_until(lambda: loop.state_of(running) == "success")


def test_a_task_that_may_be_started_twice_is_sent_again_from_any_state(loop: Loop) -> None:
    endpoint_id = loop.add_endpoint(accepts=["task_batch"])
    (task_id,) = taken(loop, endpoint_id, 1, max_retries=1)
    say(loop, endpoint_id, holds=[task_id], **{task_id: "running"})
    loop.wait_until(lambda: loop.state_of(task_id) == "running")

    say(loop, endpoint_id, holds=[])
    ((again, _),) = loop.take(endpoint_id)

    assert isinstance(again, wire.TaskBatch)
    assert [task.task_id for task in again.tasks] == [task_id]


def test_a_task_is_not_lost_whose_result_is_in_the_hands_of_a_collector(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farcall_webservice.reports.BELIEVED_AFTER_S", 3600.0)
    endpoint_id = loop.add_endpoint(accepts=["task_batch"])
    task_id, other = taken(loop, endpoint_id, 2, max_retries=0)
    say(loop, endpoint_id, holds=[task_id, other], **{task_id: "running"})
    loop.wait_until(lambda: loop.state_of(task_id) == "running")

    # Nothing is on the queue of results: one has been taken off, and is not written yet.
    say(loop, endpoint_id, holds=[other])
    say(loop, endpoint_id, holds=[other], **{other: "running"})
    loop.wait_until(lambda: loop.state_of(other) == "running")
    assert loop.state_of(task_id) == "running"
    loop.say(endpoint_id, queues.RESULTS, wire.encode(wire.Result(task_id, "11\n3")))

    loop.wait_until(lambda: loop.state_of(task_id) == "success")


def test_what_is_missed_twice_is_lost_and_then_has_to_be_missed_anew(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farcall_webservice.reports.BELIEVED_AFTER_S", 5.0)
    times = iter([100.0, 104.0, 105.0, 106.0])
    reports = loop.collector._reports

    def believed(lost: list[str]) -> list[str]:
        now = next(times)
        monkeypatch.setattr("farcall_webservice.reports.time", SimpleNamespace(monotonic=lambda: now))
        return reports._believed("e", lost)

    assert [believed(["a"]), believed(["a", "b"]), believed(["a", "b"]), believed(["a"])] == [[], [], ["a"], []]


def test_more_than_there_is_room_for_is_sent_again_in_parts_and_counted_when_it_is(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farcall_webservice.dispatch.CHARACTERS_HELD", 1)
    monkeypatch.setattr("farcall_webservice.dispatch.CHARACTERS_SENT_AGAIN", 2)
    endpoint_id = loop.add_endpoint(accepts=["task_batch"])
    ids = taken(loop, endpoint_id, 5)

    sent: list[int] = []
    again: list[str] = []
    while len(again) < len(ids):
        loop.wait_until(lambda: loop.dispatcher.room_to_send_again == 2)
        say(loop, endpoint_id, holds=again)
        ((batch, _),) = loop.take(endpoint_id)
        assert isinstance(batch, wire.TaskBatch)
        again += [task.task_id for task in batch.tasks]
        sent.append(len(batch.tasks))

    assert sent == [2, 2, 1]
    assert sorted(again) == sorted(ids)
    assert {*loop.ledger.sent(endpoint_id).values()} == {2}


def test_a_task_that_never_arrives_is_not_sent_for_ever(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farcall_webservice.ledger.dispatching.MOST_SENDS", 3)
    endpoint_id = loop.add_endpoint(accepts=["task_batch"])
    (task_id,) = taken(loop, endpoint_id, 1)

    for _ in range(2):
        say(loop, endpoint_id, holds=[])
        loop.take(endpoint_id)
    say(loop, endpoint_id, holds=[])

    loop.wait_until(lambda: loop.state_of(task_id) == "failed")
    (row,) = loop.ledger.tasks([task_id])
    assert row.error_code == "TASK_LOST"
    assert row.outcome.startswith("This task was sent to its endpoint")


def test_an_agent_that_has_not_confirmed_a_cancellation_is_told_with_its_heartbeats(loop: Loop) -> None:
    endpoint_id = loop.add_endpoint(accepts=["task_batch"])
    (task_id,) = loop.submit(endpoint_id).tasks[FUNCTION]
    loop.ledger.cancel([task_id])

    said = [_next_command(loop, endpoint_id) for _ in range(2)]
    loop.ledger.confirm_cancellations(endpoint_id, [task_id])

    assert said == [wire.Command("cancel")] * 2
    assert not loop.ledger.has_unconfirmed(endpoint_id, older_than_s=-1)


def test_a_command_is_not_lost_where_tasks_cannot_be_published_beside_it(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint_id = loop.add_endpoint(accepts=["task_batch"])
    window = loop.dispatcher._window
    failures = iter([RuntimeError("not now")])

    def admit(outgoing: Sequence[Outgoing]) -> list[Outgoing]:
        for failure in failures:
            raise failure
        return Window.admit(window, outgoing)

    monkeypatch.setattr(window, "admit", admit)
    loop.dispatcher.command(endpoint_id, wire.Command("cancel"))

    assert _next_command(loop, endpoint_id) == wire.Command("cancel")


def _next_command(loop: Loop, endpoint_id: str) -> wire.Message:
    received: list[Message] = []
    queue = queues.commands_queue(endpoint_id)
    queues.declare(loop.broker_url, queue)
    say(loop, endpoint_id, holds=[])
    with queues.connect(loop.broker_url) as connection:
        with Consumer(connection.channel(), [queue], on_message=received.append, prefetch_count=1):
            while not received:
                connection.drain_events(timeout=TIMEOUT_S)
        received[0].ack()
    body = received[0].body
    return wire.decode(body.encode() if isinstance(body, str) else bytes(body))
