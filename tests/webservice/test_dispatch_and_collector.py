"""Tasks go out and results come in: SQLite with a real Valkey, PostgreSQL with a real RabbitMQ."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace

import pytest
from carrying import CODE, FUNCTION, OWNER, TIMEOUT_S, Loop
from kombu import Connection
from sqlalchemy import insert, select

from farcall import wire
from farcall_webservice import queues
from farcall_webservice.catalogue import CHARACTERS_PER_MESSAGE, TASKS_PER_MESSAGE
from farcall_webservice.dispatch import Dispatcher
from farcall_webservice.ledger import Ledger
from farcall_webservice.models import Endpoint, Function
from farcall_webservice.valkey import Valkey


def test_an_agent_that_takes_batches_gets_many_tasks_and_their_code_once(loop: Loop) -> None:
    endpoint_id = loop.add_endpoint(accepts=["task_batch"])

    receipt = loop.submit(endpoint_id, 5, result_serializers=["a.B"])
    ((batch, _),) = loop.take(endpoint_id)

    assert isinstance(batch, wire.TaskBatch)
    assert batch.functions == {FUNCTION: wire.FunctionCode(CODE, "3.11.7")}
    assert [task.task_id for task in batch.tasks] == receipt.tasks[FUNCTION]
    assert batch.tasks[0].options == {"result_serializers": ["a.B"]}
    loop.wait_until(lambda: loop.state_of(receipt.tasks[FUNCTION][0]) == "waiting-for-ep")


def test_a_large_submission_is_cut_into_messages_of_bounded_size(loop: Loop) -> None:
    endpoint_id = loop.add_endpoint(accepts=["task_batch"])

    loop.submit(endpoint_id, TASKS_PER_MESSAGE + 1)
    sizes = [len(batch.tasks) for batch, _ in loop.take(endpoint_id, 2) if isinstance(batch, wire.TaskBatch)]

    # Where the queue is made between the two, the first one comes later.
    assert sorted(sizes) == [1, TASKS_PER_MESSAGE]


def test_an_endpoint_that_announced_nothing_gets_one_task_a_message_with_its_headers(loop: Loop) -> None:
    endpoint_id = loop.add_endpoint()

    receipt = loop.submit(endpoint_id, 2)
    taken = loop.take(endpoint_id, 2)

    for (message, headers), task_id in zip(taken, receipt.tasks[FUNCTION], strict=True):
        assert message == wire.Task(task_id, CODE + "p")
        assert headers["task_uuid"] == task_id
        assert headers["function_uuid"] == FUNCTION


def test_a_result_is_recorded_and_wakes_who_waits(loop: Loop) -> None:
    endpoint_id = loop.add_endpoint(accepts=["task_batch"])
    receipt = loop.submit(endpoint_id, 2)
    first, second = receipt.tasks[FUNCTION]

    with loop.waiting.listen(receipt.task_group_id) as news:
        loop.say(endpoint_id, queues.RESULTS, wire.encode(wire.Result(first, "value")))
        loop.say(endpoint_id, queues.RESULTS, wire.encode(wire.ResultBatch([wire.Result(second, "value")])))

        assert news.wait(TIMEOUT_S)
    loop.wait_until(lambda: [loop.state_of(task_id) for task_id in (first, second)] == ["success", "success"])


def test_what_a_task_prints_is_kept_and_wakes_who_reads_it(loop: Loop) -> None:
    endpoint_id = loop.add_endpoint(accepts=["task_batch"])
    (task_id,) = loop.submit(endpoint_id).tasks[FUNCTION]

    with loop.waiting.listen(task_id) as news:
        loop.say(endpoint_id, queues.RESULTS, wire.encode(wire.OutputBatch([wire.Output(task_id, "stdout", 0, "hi")])))

        assert news.wait(TIMEOUT_S)
    assert loop.ledger.log_part(task_id, "stdout", 0).text == "hi"


def test_messages_that_make_no_sense_are_set_aside_and_the_next_one_is_read(loop: Loop) -> None:
    endpoint_id = loop.add_endpoint(accepts=["task_batch"])
    (task_id,) = loop.submit(endpoint_id).tasks[FUNCTION]

    for body in (b"", b"garbage", b"\x01{}", wire.encode(wire.Command("stop")), b"\x01\xff\xfe"):
        loop.say(endpoint_id, queues.RESULTS, body)
    loop.say(str(uuid.uuid4()), queues.RESULTS, wire.encode(wire.Result(task_id, "not mine to send")))
    loop.say(endpoint_id, queues.RESULTS, wire.encode(wire.Result(task_id, "value")))

    loop.wait_until(lambda: loop.state_of(task_id) == "success")
    assert loop.ledger.tasks([task_id])[0].outcome == "value"


def test_a_result_that_cannot_be_written_fails_its_task_and_keeps_no_other_waiting(loop: Loop) -> None:
    endpoint_id = loop.add_endpoint(accepts=["task_batch"])
    good, odd, unstorable = loop.submit(endpoint_id, 3).tasks[FUNCTION]
    broken_details = {"a number that no database takes": 2**70}
    failure = wire.ErrorDetails("RemoteExecutionError", "it failed")

    loop.say(
        endpoint_id,
        queues.RESULTS,
        wire.encode(
            wire.ResultBatch(
                [
                    wire.Result(unstorable, "value", broken_details),
                    wire.Result(odd, "bad name \udcff and \0", error_details=failure),
                    wire.Result(good, "value"),
                ]
            )
        ),
    )

    loop.wait_until(lambda: loop.state_of(good) == "success" and loop.state_of(unstorable) == "failed")
    rows = {row.id: row for row in loop.ledger.tasks([odd, unstorable])}
    assert rows[unstorable].error_code == "MALFORMED_RESULT"
    assert rows[odd].outcome == "bad name \\udcff and \\x00"


def test_a_report_that_cannot_be_noted_keeps_no_result_waiting(loop: Loop) -> None:
    endpoint_id = loop.add_endpoint(accepts=["task_batch"])
    (task_id,) = loop.submit(endpoint_id).tasks[FUNCTION]

    loop.say(endpoint_id, queues.HEARTBEATS, wire.encode(wire.StatusReport(endpoint_id, {"odd": 2**70})))
    loop.say(endpoint_id, queues.RESULTS, wire.encode(wire.Result(task_id, "value")))

    loop.wait_until(lambda: loop.state_of(task_id) == "success")


def test_functions_with_much_code_do_not_travel_in_one_message(loop: Loop) -> None:
    endpoint_id = loop.add_endpoint(accepts=["task_batch"])
    large = [str(uuid.uuid4()) for _ in range(3)]
    with loop.database.writing() as connection:
        connection.execute(
            insert(Function),
            [
                {
                    "id": each,
                    "owner_id": OWNER,
                    "name": "f",
                    "code": "x" * (CHARACTERS_PER_MESSAGE - 10),
                    "created_at": 0.0,
                }
                for each in large
            ],
        )

    receipt = loop.ledger.submit(owner_id=OWNER, endpoint_id=endpoint_id, payloads={each: ["p", "p"] for each in large})
    loop.dispatcher.send(receipt.outgoing)
    batches = [batch for batch, _ in loop.take(endpoint_id, 3)]

    assert [[*batch.functions] for batch in batches if isinstance(batch, wire.TaskBatch)] == [[each] for each in large]


def test_a_heartbeat_is_noted_with_what_it_says(loop: Loop) -> None:
    endpoint_id = loop.add_endpoint(accepts=["task_batch"])
    report = {"heartbeat_period": 7, "total_workers": 3}

    loop.say(endpoint_id, queues.HEARTBEATS, wire.encode(wire.StatusReport(endpoint_id, report)))

    def noted() -> bool:
        with loop.database.reading() as connection:
            row = connection.execute(select(Endpoint).where(Endpoint.id == endpoint_id)).one()
        return bool(row.heartbeat_period == 7 and row.last_report == report and row.last_heartbeat_at)

    loop.wait_until(noted)


def test_what_neither_agent_nor_queue_holds_is_sent_again(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farcall_webservice.reports.GRACE_S", -1.0)
    monkeypatch.setattr("farcall_webservice.reports.BELIEVED_AFTER_S", 0.0)
    endpoint_id = loop.add_endpoint(accepts=["task_batch"])
    kept, lost = loop.submit(endpoint_id, 2).tasks[FUNCTION]
    loop.take(endpoint_id)
    loop.wait_until(lambda: loop.state_of(lost) == "waiting-for-ep")

    loop.say(endpoint_id, queues.HEARTBEATS, wire.encode(wire.StatusReport(endpoint_id, {}, holds=[kept])))
    ((again, _),) = loop.take(endpoint_id)

    assert isinstance(again, wire.TaskBatch)
    assert [task.task_id for task in again.tasks] == [lost]


def test_what_still_waits_on_the_queue_is_not_sent_again(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farcall_webservice.reports.GRACE_S", -1.0)
    monkeypatch.setattr("farcall_webservice.reports.BELIEVED_AFTER_S", 0.0)
    endpoint_id = loop.add_endpoint(accepts=["task_batch"])
    (task_id,) = loop.submit(endpoint_id).tasks[FUNCTION]
    loop.wait_until(lambda: loop.state_of(task_id) == "waiting-for-ep")

    unaccounted = loop.ledger.unaccounted(endpoint_id, [], grace_s=-1)

    assert unaccounted.sent == [task_id]
    assert loop.dispatcher.queued_messages(endpoint_id) == 1


def test_a_submit_during_the_brokers_absence_goes_out_when_it_is_back(database_url: str, valkey: Valkey) -> None:
    with Loop(database_url, valkey.url).running() as loop:
        endpoint_id = loop.add_endpoint(accepts=["task_batch"])
        receipt = loop.submit(endpoint_id, 3)

        valkey.start()
        ((batch, _),) = loop.take(endpoint_id)

    assert isinstance(batch, wire.TaskBatch)
    assert [task.task_id for task in batch.tasks] == receipt.tasks[FUNCTION]


def test_what_a_dead_process_has_left_is_published_by_another(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint_id = loop.add_endpoint(accepts=["task_batch"])
    monkeypatch.setattr("farcall_webservice.ledger.book.CLAIM_S", 0.0)
    monkeypatch.setattr("farcall_webservice.dispatch.LEFT_S", 0.05)
    loop.dispatcher.stop()
    successor = Dispatcher(loop.broker_url, loop.database, Ledger(loop.database), alone=False)
    successor.start()

    # Committed by a process that does not live to publish it.
    receipt = Ledger(loop.database).submit(owner_id=OWNER, endpoint_id=endpoint_id, payloads={FUNCTION: ["p"]})
    ((batch, _),) = loop.take(endpoint_id)
    successor.stop()

    assert isinstance(batch, wire.TaskBatch)
    assert [task.task_id for task in batch.tasks] == receipt.tasks[FUNCTION]


def test_what_another_process_may_have_taken_over_is_not_published_from_memory(loop: Loop) -> None:
    endpoint_id = loop.add_endpoint(accepts=["task_batch"])
    loop.dispatcher.stop()
    slow = Dispatcher(loop.broker_url, loop.database, loop.ledger, alone=False)
    slow.start()
    loop.wait_until(lambda: not slow._backlog)
    receipt = loop.ledger.submit(owner_id=OWNER, endpoint_id=endpoint_id, payloads={FUNCTION: ["p"]})
    # Another one has published it meanwhile.
    loop.ledger.mark_dispatched([receipt.request_id])

    slow.send([replace(batch, claimed_until=time.time() + 1) for batch in receipt.outgoing])
    fresh = loop.ledger.submit(owner_id=OWNER, endpoint_id=endpoint_id, payloads={FUNCTION: ["p"]})
    slow.send(fresh.outgoing)
    ((batch, _),) = loop.take(endpoint_id)
    slow.stop()

    assert isinstance(batch, wire.TaskBatch)
    assert [task.task_id for task in batch.tasks] == fresh.tasks[FUNCTION]
    assert loop.dispatcher.queued_messages(endpoint_id) == 0


def test_what_is_too_much_for_memory_is_read_from_the_ledger(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farcall_webservice.dispatch.CHARACTERS_HELD", 2)
    endpoint_id = loop.add_endpoint(accepts=["task_batch"])

    receipt = loop.submit(endpoint_id, 3)

    assert loop.dispatcher._outgoing == []
    ((batch, _),) = loop.take(endpoint_id)
    assert isinstance(batch, wire.TaskBatch)
    assert [task.task_id for task in batch.tasks] == receipt.tasks[FUNCTION]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_broker_that_is_killed_comes_back_with_what_it_held(loop: Loop, valkey: Valkey) -> None:
    endpoint_id = loop.add_endpoint(accepts=["task_batch"])
    receipt = loop.submit(endpoint_id, 3)
    loop.wait_until(lambda: loop.state_of(receipt.tasks[FUNCTION][0]) == "waiting-for-ep")

    process = valkey._process
    assert process is not None
    process.kill()
    process.wait()

    def answers() -> bool:
        connection = Connection(loop.broker_url)
        try:
            connection.connect()
        except connection.connection_errors:
            return False
        finally:
            connection.release()
        return True

    loop.wait_until(answers)
    again = loop.submit(endpoint_id)

    wanted, taken = {*receipt.tasks[FUNCTION], *again.tasks[FUNCTION]}, set[str]()
    while not wanted <= taken:
        # A message may come twice around a failure; an agent notices.
        ((batch, _),) = loop.take(endpoint_id)
        assert isinstance(batch, wire.TaskBatch)
        taken |= {task.task_id for task in batch.tasks}
    assert taken == wanted
