"""Messages come again, in another order or long after their time: nothing loops, and what is recorded stays."""

from __future__ import annotations

import itertools
import random
import time

import pytest
from carrying import FUNCTION, Loop

from farcall import wire
from farcall_webservice import dead_letters, queues


def transition(state: wire.TaskState, at_s: float) -> wire.Transition:
    return wire.Transition(int(at_s * 1e9), state, "endpoint")


def report(endpoint_id: str, task_id: str, state: wire.TaskState, at_s: float) -> bytes:
    statuses = {task_id: [transition(state, at_s)]}
    return wire.encode(wire.StatusReport(endpoint_id, {"heartbeat_period": 30}, statuses))


def wait_until_all_is_read(loop: Loop, endpoint_id: str) -> None:
    """Until what was said so far has been recorded, which is when its last message has: a result of a task of its."""
    (last,) = loop.submit(endpoint_id).tasks[FUNCTION]
    loop.say(endpoint_id, queues.HEARTBEATS, report(endpoint_id, last, wire.TaskState.RUNNING, time.time()))
    loop.wait_until(lambda: loop.state_of(last) == "running")
    loop.say(endpoint_id, queues.RESULTS, wire.encode(wire.Result(last, "value")))
    loop.wait_until(lambda: loop.state_of(last) == "success")


def test_a_result_that_comes_again_changes_nothing_and_is_no_dead_letter(loop: Loop) -> None:
    endpoint_id = loop.add_endpoint(accepts=["task_batch"])
    receipt = loop.submit(endpoint_id, 2)
    first, second = receipt.tasks[FUNCTION]
    sent = wire.encode(wire.ResultBatch([wire.Result(first, "value"), wire.Result(second, "value")]))
    error = wire.ErrorDetails("RemoteExecutionError", "another end")

    loop.say(endpoint_id, queues.RESULTS, sent)
    loop.wait_until(lambda: loop.state_of(second) == "success")
    before = loop.ledger.tasks([first, second])
    for body in (sent, wire.encode(wire.Result(first, "other")), wire.encode(wire.Result(second, "x", None, error))):
        loop.say(endpoint_id, queues.RESULTS, body)
    wait_until_all_is_read(loop, endpoint_id)

    assert loop.ledger.tasks([first, second]) == before
    numbered = loop.ledger.group_results(receipt.task_group_id, after=0, limit=10, max_characters=10_000)
    assert [row.result_seq for row in numbered] == [1, 2]
    assert dead_letters.letters(loop.broker_url) == []
    assert loop.dispatcher.queued_results() == 0


def test_a_report_after_the_result_does_not_bring_the_task_back(loop: Loop) -> None:
    endpoint_id = loop.add_endpoint(accepts=["task_batch"])
    (task_id,) = loop.submit(endpoint_id).tasks[FUNCTION]
    late = report(endpoint_id, task_id, wire.TaskState.RUNNING, time.time())

    loop.say(endpoint_id, queues.RESULTS, wire.encode(wire.Result(task_id, "value")))
    loop.wait_until(lambda: loop.state_of(task_id) == "success")
    loop.say(endpoint_id, queues.HEARTBEATS, late)
    wait_until_all_is_read(loop, endpoint_id)

    assert loop.state_of(task_id) == "success"
    assert dead_letters.letters(loop.broker_url) == []


def test_a_report_of_long_ago_takes_no_task_back(loop: Loop) -> None:
    endpoint_id = loop.add_endpoint(accepts=["task_batch"])
    (task_id,) = loop.submit(endpoint_id).tasks[FUNCTION]
    now = time.time()
    earlier = report(endpoint_id, task_id, wire.TaskState.WAITING_FOR_NODES, now - 3600)

    loop.say(endpoint_id, queues.HEARTBEATS, report(endpoint_id, task_id, wire.TaskState.RUNNING, now))
    loop.wait_until(lambda: loop.state_of(task_id) == "running")
    for _ in range(3):
        loop.say(endpoint_id, queues.HEARTBEATS, earlier)
    wait_until_all_is_read(loop, endpoint_id)

    assert loop.state_of(task_id) == "running"


@pytest.mark.parametrize("seed", range(3))
def test_all_that_is_said_of_a_task_may_come_in_any_order_and_twice(loop: Loop, seed: int) -> None:
    shuffled = random.Random(seed)
    endpoint_id, stranger = (loop.add_endpoint(accepts=["task_batch"]) for _ in range(2))
    (task_id,) = loop.submit(endpoint_id).tasks[FUNCTION]
    now = time.time()
    states = (wire.TaskState.WAITING_FOR_NODES, wire.TaskState.WAITING_FOR_LAUNCH, wire.TaskState.RUNNING)
    said = [
        *((queues.HEARTBEATS, report(endpoint_id, task_id, state, now + n)) for n, state in enumerate(states)),
        (queues.RESULTS, wire.encode(wire.Result(task_id, "value"))),
        (queues.RESULTS, wire.encode(wire.OutputBatch([wire.Output(task_id, "stdout", 0, "printed")]))),
        (queues.RESULTS, wire.encode(wire.OutputBatch([wire.Output(task_id, "stdout", 7, " twice")]))),
    ] * 2
    shuffled.shuffle(said)

    for (queue, body), who in itertools.product(said, (endpoint_id, stranger)):
        loop.say(who, queue, body)
    wait_until_all_is_read(loop, endpoint_id)
    loop.wait_until(lambda: loop.dispatcher.queued_results() == 0)

    (row,) = loop.ledger.tasks([task_id])
    assert (row.state, row.outcome, row.result_seq) == ("success", "value", 1)
    assert loop.ledger.log_part(task_id, "stdout", 0).text == "printed twice"
    # Whose task it is not has been told so, each time.
    loop.wait_until(lambda: len(dead_letters.letters(loop.broker_url)) == 8)
    assert {letter.sender for letter in dead_letters.letters(loop.broker_url)} == {stranger}


def test_messages_for_agents_that_end_up_on_the_services_queues_are_set_aside(loop: Loop) -> None:
    endpoint_id = loop.add_endpoint(accepts=["task_batch"])
    loop.submit(endpoint_id)
    ((batch, _),) = loop.take(endpoint_id)

    for body in (wire.encode(batch), wire.encode(wire.Command("stop")), wire.encode(wire.Task("a", "b"))):
        for queue in (queues.RESULTS, queues.HEARTBEATS):
            loop.say(endpoint_id, queue, body)
    wait_until_all_is_read(loop, endpoint_id)

    loop.wait_until(lambda: len(dead_letters.letters(loop.broker_url)) == 6)
    reasons = {letter.reason for letter in dead_letters.letters(loop.broker_url)}
    assert reasons == {f"a {kind} does not belong here" for kind in ("TaskBatch", "Command", "Task")}
