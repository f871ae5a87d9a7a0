"""What is more than an endpoint's queue needs waits in the ledger, and goes out in its order when there is room."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from carrying import FUNCTION, OWNER, Loop
from kombu import Queue

from farcall import wire
from farcall_webservice import queues
from farcall_webservice.catalogue import Catalogue
from farcall_webservice.dispatch import Dispatcher
from farcall_webservice.ledger import Ledger, Load
from farcall_webservice.window import Window

SUBMISSIONS, TASKS_EACH = 12, 3


@pytest.fixture(autouse=True)
def small_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farcall_webservice.window.WINDOW", Load(10, 1000))
    monkeypatch.setattr("farcall_webservice.window.UNASKED", Load(4, 500))
    monkeypatch.setattr("farcall_webservice.window.LOOKS_APART_S", 0.01)
    monkeypatch.setattr("farcall_webservice.window.ASKED_APART_S", 0.01)


@pytest.fixture
def endpoint_id(loop: Loop) -> str:
    return loop.add_endpoint(accepts=["task_batch"])


def submit_many(loop: Loop, endpoint_id: str) -> list[str]:
    """The ids of the tasks in their order. Returns when everything is either on the queue or held back."""
    ids: list[str] = []
    for _ in range(SUBMISSIONS):
        ids += loop.submit(endpoint_id, TASKS_EACH).tasks[FUNCTION]
    settle(loop)
    return ids


def settle(loop: Loop) -> None:
    loop.wait_until(lambda: not loop.ledger.undispatched(alone=True))


def held(loop: Loop, ids: list[str]) -> list[str]:
    return [each for each in ids if loop.ledger.held_since(each) is not None]


def take(loop: Loop, endpoint_id: str) -> list[str]:
    """Take one message, as an agent would."""
    ((batch, _),) = loop.take(endpoint_id)
    assert isinstance(batch, wire.TaskBatch)
    return [task.task_id for task in batch.tasks]


def answer(loop: Loop, endpoint_id: str, ids: list[str]) -> None:
    results = wire.ResultBatch([wire.Result(each, "11\n3") for each in ids])
    loop.say(endpoint_id, queues.RESULTS, wire.encode(results))


def take_and_answer_all(loop: Loop, endpoint_id: str, count: int) -> list[str]:
    taken: list[str] = []
    while len(taken) < count:
        ids = take(loop, endpoint_id)
        answer(loop, endpoint_id, ids)
        taken += ids
    return taken


@contextmanager
def another_process(loop: Loop, *, alone: bool) -> Iterator[Dispatcher]:
    dispatcher = Dispatcher(loop.broker_url, loop.database, Ledger(loop.database), alone=alone)
    dispatcher.start()
    yield dispatcher
    dispatcher.stop()


def test_no_more_than_the_window_waits_on_the_queue_and_all_of_it_comes_in_order(loop: Loop, endpoint_id: str) -> None:
    ids = submit_many(loop, endpoint_id)

    waiting = [each for each in ids if loop.state_of(each) == "waiting-for-ep"]
    assert TASKS_EACH <= len(waiting) < 10 + TASKS_EACH
    assert waiting + held(loop, ids) == ids
    assert take_and_answer_all(loop, endpoint_id, len(ids)) == ids
    loop.wait_until(lambda: all(loop.state_of(each) == "success" for each in ids))
    assert not loop.ledger.held_for()


def test_what_is_submitted_while_something_is_held_back_is_held_back_too(loop: Loop, endpoint_id: str) -> None:
    ids = submit_many(loop, endpoint_id)

    receipt = loop.submit(endpoint_id)

    assert receipt.is_held and not receipt.outgoing
    ids += receipt.tasks[FUNCTION]
    assert take_and_answer_all(loop, endpoint_id, len(ids)) == ids


def test_large_arguments_fill_the_window_too(loop: Loop, endpoint_id: str) -> None:
    for _ in range(4):
        receipt = loop.ledger.submit(owner_id=OWNER, endpoint_id=endpoint_id, payloads={FUNCTION: ["p" * 600]})
        loop.dispatcher.send(receipt.outgoing)
    settle(loop)

    assert loop.ledger.held_since(receipt.tasks[FUNCTION][0]) is not None
    assert take_and_answer_all(loop, endpoint_id, 4)[-1] == receipt.tasks[FUNCTION][0]


def test_one_endpoint_does_not_hold_up_another(loop: Loop, endpoint_id: str) -> None:
    submit_many(loop, endpoint_id)
    other_id = loop.add_endpoint(accepts=["task_batch"])

    receipt = loop.submit(other_id)

    assert take(loop, other_id) == receipt.tasks[FUNCTION]


def test_an_endpoint_that_never_says_what_it_has_taken_is_sent_everything(loop: Loop) -> None:
    endpoint_id = loop.add_endpoint()

    ids = submit_many(loop, endpoint_id)

    assert not held(loop, ids)
    assert len(loop.take(endpoint_id, len(ids))) == len(ids)


def test_what_is_held_back_outlives_the_process_that_held_it_back(loop: Loop, endpoint_id: str) -> None:
    ids = submit_many(loop, endpoint_id)
    loop.dispatcher.stop()

    with another_process(loop, alone=True) as dispatcher:
        taken = take(loop, endpoint_id)
        while len(taken) < len(ids):
            answer(loop, endpoint_id, taken)
            last = taken[-1]
            loop.wait_until(lambda last=last: loop.state_of(last) == "success")
            dispatcher.heed(endpoint_id, held=False)
            taken += take(loop, endpoint_id)

    assert taken == ids


def test_several_processes_keep_the_order(loop: Loop, endpoint_id: str) -> None:
    with another_process(loop, alone=False) as dispatcher:
        ids = submit_many(loop, endpoint_id)
        taken: list[str] = []
        while len(taken) < len(ids):
            some = take(loop, endpoint_id)
            answer(loop, endpoint_id, some)
            dispatcher.heed(endpoint_id, held=False)
            taken += some

    assert taken == ids


def test_a_held_task_that_is_cancelled_is_not_sent(loop: Loop, endpoint_id: str) -> None:
    ids = submit_many(loop, endpoint_id)
    # All of one submission, and one of another.
    doomed = {*ids[-2 * TASKS_EACH : -TASKS_EACH], ids[-1]}

    cancelled = loop.ledger.cancel(sorted(doomed))

    assert {*cancelled.task_ids} == doomed
    assert take_and_answer_all(loop, endpoint_id, len(ids) - len(doomed)) == [
        each for each in ids if each not in doomed
    ]
    loop.wait_until(lambda: not loop.ledger.held_for())


def test_of_a_cancelled_task_that_was_held_back_from_the_beginning_no_agent_is_told(
    loop: Loop, endpoint_id: str
) -> None:
    submit_many(loop, endpoint_id)
    late = loop.submit(endpoint_id, TASKS_EACH).tasks[FUNCTION]

    cancelled = loop.ledger.cancel(late)

    assert {*cancelled.task_ids} == {*late} and not cancelled.agents


def test_only_so_much_is_let_go_at_a_time_whoever_it_is_for(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farcall_webservice.window.LET_GO_AT_ONCE", 1)
    loop.dispatcher.stop()
    window = Window(loop.ledger, Catalogue(loop.database), alone=True)
    for _ in range(3):
        receipt = loop.submit(loop.add_endpoint(accepts=["task_batch"]))
        loop.ledger.hold_back([receipt.request_id])
    window.recall()

    rounds = [len({batch.runner_id for batch in window.let_go()}) for _ in range(3)]

    assert rounds == [1, 1, 1]


def test_a_broker_that_has_lost_everything_loses_the_window_and_no_more(
    loop: Loop, endpoint_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farcall_webservice.reports.GRACE_S", 0.0)
    monkeypatch.setattr("farcall_webservice.reports.BELIEVED_AFTER_S", 0.0)
    ids = submit_many(loop, endpoint_id)
    with queues.connect(loop.broker_url) as connection:
        Queue(f"{endpoint_id}.tasks", durable=True)(connection.default_channel).purge()

    report = wire.StatusReport(endpoint_id, {"heartbeat_period": 5}, {}, holds=[])
    loop.say(endpoint_id, queues.HEARTBEATS, wire.encode(report))

    assert sorted(take_and_answer_all(loop, endpoint_id, len(ids))) == sorted(ids)
