"""The ledger, on real databases."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Connection, insert, text
from sqlalchemy.exc import IntegrityError

from farcall.wire import ErrorDetails, Result, TaskState, Transition
from farcall_webservice.database import Database
from farcall_webservice.ledger import CLAIM_S, GroupExists, KeyReused, Ledger, Receipt, Request, TaskFilter, history
from farcall_webservice.models import User

ENDPOINT, OTHER_ENDPOINT = str(uuid.uuid4()), str(uuid.uuid4())
FUNCTION, OTHER_FUNCTION = str(uuid.uuid4()), str(uuid.uuid4())
OWNER = str(uuid.uuid4())


@pytest.fixture
def ledger(database_url: str) -> Iterator[Ledger]:
    database = Database(database_url)
    with database.writing() as connection:
        connection.execute(insert(User), {"id": OWNER, "name": "ada", "created_at": time.time()})
    yield Ledger(database)
    database.close()


@pytest.fixture
def other_ledger(ledger: Ledger, database_url: str) -> Iterator[Ledger]:
    """That of another process, as it were. SQLite has one process, whose writers queue."""
    if ledger._database.is_sqlite:
        yield Ledger(ledger._database)
        return
    database = Database(database_url)
    yield Ledger(database)
    database.close()


def in_threads(action: Callable[[Any], object], arguments: Sequence[Any]) -> None:
    """Do it for each argument at the same time; what one raises is raised."""
    with ThreadPoolExecutor(len(arguments)) as pool:
        list(pool.map(action, arguments))


def submit(ledger: Ledger, count: int = 1, **more: object) -> Receipt:
    arguments = {"owner_id": OWNER, "endpoint_id": ENDPOINT, "payloads": {FUNCTION: ["p"] * count}, **more}
    return ledger.submit(**arguments)  # type: ignore[arg-type]


def success(task_id: str, data: str = "value") -> Result:
    return Result(task_id, data)


def state_of(ledger: Ledger, task_id: str) -> str:
    (row,) = ledger.tasks([task_id])
    return str(row.state)


def test_a_submitted_task_is_there_with_its_order_kept(ledger: Ledger) -> None:
    receipt = submit(ledger, payloads={FUNCTION: ["a", "b"], OTHER_FUNCTION: ["c"]})

    (outgoing,) = receipt.outgoing
    assert [(task.function_id, task.payload) for task in outgoing.tasks] == [
        (FUNCTION, "a"),
        (FUNCTION, "b"),
        (OTHER_FUNCTION, "c"),
    ]
    assert [task.task_id for task in outgoing.tasks[:2]] == receipt.tasks[FUNCTION]
    assert state_of(ledger, receipt.tasks[OTHER_FUNCTION][0]) == TaskState.RECEIVED


def test_what_is_submitted_together_is_written_together_or_not_at_all(ledger: Ledger) -> None:
    good = Request(OWNER, ENDPOINT, ENDPOINT, {FUNCTION: ["p"]})
    bad = replace(good, runner_id=None)  # type: ignore[arg-type]
    group_id = str(uuid.uuid4())

    with pytest.raises(IntegrityError):
        ledger.submit_together([good, bad], group_id, is_new=True)
    assert ledger.task_group_owner(group_id) is None
    assert ledger.count_unfinished(ENDPOINT) == 0

    first, second = ledger.submit_together([good, good], group_id, is_new=True)
    assert {first.task_group_id, second.task_group_id} == {group_id}
    assert ledger.count_unfinished(ENDPOINT) == 2
    with pytest.raises(GroupExists):
        ledger.submit_together([good], group_id, is_new=True)


def test_the_same_key_answers_with_the_same_ids_and_makes_no_second_task(ledger: Ledger) -> None:
    first = submit(ledger, 3, idempotency_key="k", digest="d")

    again = submit(ledger, 3, idempotency_key="k", digest="d")

    assert again.tasks == first.tasks
    assert again.task_group_id == first.task_group_id
    assert not again.outgoing
    assert len(ledger.task_group(first.task_group_id)) == 3


def test_a_key_that_comes_with_another_request_is_refused(ledger: Ledger) -> None:
    submit(ledger, idempotency_key="k", digest="d")

    with pytest.raises(KeyReused):
        submit(ledger, idempotency_key="k", digest="something else")


def test_what_was_not_dispatched_is_found_until_it_is_marked(ledger: Ledger) -> None:
    first, second = submit(ledger), submit(ledger)

    assert [batch.submission_id for batch in ledger.undispatched(alone=True)] == [first.request_id, second.request_id]

    ledger.mark_dispatched([first.request_id, second.request_id])

    assert ledger.undispatched(alone=True) == []
    assert state_of(ledger, first.tasks[FUNCTION][0]) == TaskState.WAITING_FOR_EP


def test_who_marks_and_who_cancels_do_not_wait_for_each_other_in_a_circle(
    ledger: Ledger, other_ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipt = submit(ledger, 3)
    ledger.hold_back([receipt.request_id])
    with ledger._database.writing() as connection:
        connection.execute(text("UPDATE submissions SET held_at = created_at"))
    marking = threading.Thread(target=other_ledger.mark_dispatched, args=([receipt.request_id],))
    never_sent = ledger._never_sent

    def with_somebody_who_marks(connection: Connection, task_ids: Sequence[str]) -> set[str]:
        # This one holds the tasks by now.
        marking.start()
        if not ledger._database.is_sqlite:
            wait_until_somebody_waits(ledger)
        return never_sent(connection, task_ids)

    monkeypatch.setattr(ledger, "_never_sent", with_somebody_who_marks)
    cancelled = ledger.cancel(receipt.tasks[FUNCTION])
    marking.join()

    assert len(cancelled.task_ids) == 3
    assert ledger.undispatched(alone=True) == []


def wait_until_somebody_waits(ledger: Ledger) -> None:
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    while True:
        with ledger._database.reading() as connection:
            if connection.execute(waiting).scalar_one():
                return


def test_a_submission_whose_tasks_have_ended_is_still_handed_out_to_be_marked(ledger: Ledger) -> None:
    receipt = submit(ledger)
    ledger.record_results(ENDPOINT, [success(receipt.tasks[FUNCTION][0])])

    (batch,) = ledger.undispatched(alone=True)

    assert (batch.submission_id, list(batch.tasks)) == (receipt.request_id, [])


def test_what_one_process_has_written_another_leaves_alone_until_the_claim_has_run_out(
    ledger: Ledger, other_ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, others = submit(ledger), submit(other_ledger)

    assert [batch.submission_id for batch in ledger.undispatched(alone=False)] == [mine.request_id]
    assert [batch.submission_id for batch in other_ledger.undispatched(alone=False)] == [others.request_id]

    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + CLAIM_S + 1)
    assert [batch.submission_id for batch in other_ledger.undispatched(alone=False)] == [
        mine.request_id,
        others.request_id,
    ]
    assert ledger.undispatched(alone=False) == []


def test_several_that_look_for_abandoned_submissions_at_once_share_them(
    ledger: Ledger, other_ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = {submit(ledger).request_id for _ in range(60)}
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + CLAIM_S + 1)
    successors = [Ledger(other_ledger._database) for _ in range(4)]
    taken: list[str] = []

    def take(successor: Ledger) -> None:
        while batches := successor.undispatched(alone=False, limit=3):
            taken.extend(batch.submission_id for batch in batches)
            successor.mark_dispatched([batch.submission_id for batch in batches])

    in_threads(take, successors)

    assert sorted(taken) == sorted(written)


def test_the_same_key_at_the_same_time_makes_one_task(ledger: Ledger, other_ledger: Ledger) -> None:
    for number in range(20):
        receipts: list[Receipt] = []

        def ask(one: Ledger, key: str = f"key {number}", receipts: list[Receipt] = receipts) -> None:
            receipts.append(submit(one, idempotency_key=key, digest="d"))

        in_threads(ask, [ledger, other_ledger, ledger, other_ledger])

        assert len({receipt.tasks[FUNCTION][0] for receipt in receipts}) == 1
        assert sum(bool(receipt.outgoing) for receipt in receipts) == 1


def test_an_id_that_is_none_harms_no_other_result(ledger: Ledger) -> None:
    receipt = submit(ledger, 2)
    first, second = receipt.tasks[FUNCTION]

    ledger.record_states(ENDPOINT, {"nonsense": [Transition(1, TaskState.RUNNING, "endpoint")]})
    ledger.record_results(ENDPOINT, [success("nonsense"), success(first.upper()), success("\0"), success(second)])

    assert {row.state for row in ledger.tasks([first, second])} == {"success"}


def test_those_who_write_to_the_same_tasks_at_once_do_not_block_each_other(
    ledger: Ledger, other_ledger: Ledger
) -> None:
    receipts = [submit(ledger, 40) for _ in range(10)]
    ids = [task_id for receipt in receipts for task_id in receipt.tasks[FUNCTION]]
    shuffled = random.Random(7).sample(ids, len(ids))

    def mark() -> None:
        ledger.mark_dispatched([receipt.request_id for receipt in receipts])

    def report() -> None:
        taken = Transition(time.time_ns(), TaskState.WAITING_FOR_NODES, "endpoint")
        for start in range(0, len(ids), 50):
            other_ledger.record_states(ENDPOINT, {task_id: [taken] for task_id in shuffled[start:]})

    def collect(order: list[str]) -> None:
        for start in range(0, len(order), 30):
            other_ledger.record_results(ENDPOINT, [success(task_id) for task_id in order[start : start + 60]])

    in_threads(
        lambda action: action(),
        [mark, report, lambda: collect(ids), lambda: collect(shuffled), lambda: ledger.resend(shuffled)],
    )

    rows = [
        row
        for receipt in receipts
        for row in ledger.group_results(receipt.task_group_id, after=0, limit=99, max_characters=9999)
    ]
    assert len(rows) == len(ids)


def test_the_first_result_of_a_task_wins(ledger: Ledger) -> None:
    receipt = submit(ledger)
    (task_id,) = receipt.tasks[FUNCTION]

    news = ledger.record_results(ENDPOINT, [success(task_id, "first"), success(task_id, "second")])
    later = ledger.record_results(ENDPOINT, [success(task_id, "third")])

    assert news == {receipt.task_group_id}
    assert later == set()
    assert ledger.tasks([task_id])[0].outcome == "first"


def test_a_result_for_another_endpoints_task_is_refused(ledger: Ledger) -> None:
    (task_id,) = submit(ledger).tasks[FUNCTION]

    news = ledger.record_results(OTHER_ENDPOINT, [success(task_id)])

    assert news == set()
    assert state_of(ledger, task_id) == TaskState.RECEIVED


def test_results_of_a_group_are_read_once_each_by_cursor(ledger: Ledger) -> None:
    receipt = submit(ledger, 5)
    ids = receipt.tasks[FUNCTION]
    ledger.record_results(ENDPOINT, [success(task_id) for task_id in ids[3:]])
    ledger.record_results(ENDPOINT, [success(task_id) for task_id in ids[:3]])

    read: list[str] = []
    cursor = 0
    while rows := ledger.group_results(receipt.task_group_id, after=cursor, limit=2, max_characters=1000):
        read += [row.id for row in rows]
        cursor = rows[-1].result_seq

    assert sorted(read) == sorted(ids)
    assert set(read[:2]) == set(ids[3:])


def test_an_answer_is_kept_to_a_size_yet_never_empty(ledger: Ledger) -> None:
    receipt = submit(ledger, 3)
    ledger.record_results(ENDPOINT, [success(task_id, "x" * 100) for task_id in receipt.tasks[FUNCTION]])

    rows = ledger.group_results(receipt.task_group_id, after=0, limit=10, max_characters=250)
    tiny = ledger.group_results(receipt.task_group_id, after=0, limit=10, max_characters=1)

    assert (len(rows), len(tiny)) == (2, 1)


def test_many_collectors_at_once_number_the_results_of_a_group_without_gaps(ledger: Ledger) -> None:
    receipt = submit(ledger, 200)
    ids = receipt.tasks[FUNCTION]

    def collect(some: list[str]) -> None:
        for task_id in some:
            ledger.record_results(ENDPOINT, [success(task_id)])

    threads = [threading.Thread(target=collect, args=(ids[start::4],)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    rows = ledger.group_results(receipt.task_group_id, after=0, limit=1000, max_characters=10**6)
    assert [row.result_seq for row in rows] == list(range(1, 201))


def test_the_history_tells_every_change_with_its_time(ledger: Ledger) -> None:
    receipt = submit(ledger)
    (task_id,) = receipt.tasks[FUNCTION]
    ledger.mark_dispatched([receipt.request_id])
    taken = Transition(time.time_ns(), TaskState.WAITING_FOR_NODES, "endpoint")
    ledger.record_states(ENDPOINT, {task_id: [taken]})
    started = Transition(time.time_ns(), "execution-start", "worker")
    ledger.record_results(ENDPOINT, [Result(task_id, "v", task_statuses=[started])])

    (row,) = ledger.tasks([task_id])
    states = [line.split()[0] for line in row.history.splitlines()]
    times = [float(line.split()[1]) for line in row.history.splitlines()]

    assert states == ["received", "waiting-for-ep", "waiting-for-nodes", "running", "success"]
    assert times == sorted(times)


def at(seconds: float, state: str, note: str = "") -> Transition:
    return Transition(int(seconds * 1e9), state, "endpoint", note)


def history_of(ledger: Ledger, task_id: str) -> list[list[str | float]]:
    (row,) = ledger.tasks([task_id])
    return history.read(row.history)


def test_what_an_agent_says_again_is_written_once(ledger: Ledger) -> None:
    (task_id,) = submit(ledger).tasks[FUNCTION]
    now = time.time()
    first, second = at(now + 1, "waiting-for-nodes"), at(now + 2, "running", "on n1")

    for transitions in ([first], [first, second], [second, first], [second]):
        ledger.record_states(ENDPOINT, {task_id: transitions})

    (row,) = ledger.tasks([task_id])
    assert (row.state, row.history.count("\n")) == ("running", 3)
    assert history_of(ledger, task_id)[1:] == [
        ["waiting-for-nodes", round(now + 1, 6)],
        ["running", round(now + 2, 6), "on n1"],
    ]


def test_each_attempt_is_in_the_history_with_its_end_in_words(ledger: Ledger) -> None:
    (task_id,) = submit(ledger).tasks[FUNCTION]
    now = time.time()
    lost = at(now + 2, "waiting-for-nodes", "attempt 1 of 3 ended:\nworker 2 was killed by signal 9")
    ledger.record_states(ENDPOINT, {task_id: [at(now + 1, "running"), lost]})
    assert state_of(ledger, task_id) == "waiting-for-nodes"
    again = at(now + 3, "waiting-for-nodes", "attempt 2 of 3 ended: so was this one")
    ledger.record_states(ENDPOINT, {task_id: [again]})

    error = ErrorDetails("WorkerLost", "lost")
    ledger.record_results(ENDPOINT, [Result(task_id, "lost", error_details=error, task_statuses=[lost, again])])

    assert [change[0] for change in history_of(ledger, task_id)] == [
        "received",
        "running",
        "waiting-for-nodes",
        "waiting-for-nodes",
        "failed",
    ]
    assert [change[2] for change in history_of(ledger, task_id) if len(change) > 2] == [
        "attempt 1 of 3 ended: worker 2 was killed by signal 9",
        "attempt 2 of 3 ended: so was this one",
    ]


def test_a_report_that_comes_late_does_not_take_a_task_back(ledger: Ledger) -> None:
    receipt = submit(ledger)
    (task_id,) = receipt.tasks[FUNCTION]
    now = time.time()
    ledger.record_states(ENDPOINT, {task_id: [at(now + 2, "running")]})

    ledger.record_states(ENDPOINT, {task_id: [at(now + 1, "waiting-for-nodes")]})

    assert state_of(ledger, task_id) == "running"
    assert [change[0] for change in history_of(ledger, task_id)] == ["received", "waiting-for-nodes", "running"]
    # Sent again, it may be with an agent whose clock is behind.
    ledger.resend([task_id])
    ledger.record_states(ENDPOINT, {task_id: [at(now - 60, "waiting-for-nodes")]})
    assert state_of(ledger, task_id) == "waiting-for-nodes"


def test_a_history_does_not_grow_without_end(ledger: Ledger) -> None:
    (task_id,) = submit(ledger).tasks[FUNCTION]
    for number in range(60):
        ledger.record_states(ENDPOINT, {task_id: [at(1000 + number, "running", f"{number} " + "x" * 5000)]})
    ledger.record_results(ENDPOINT, [success(task_id)])

    (row,) = ledger.tasks([task_id])
    assert len(row.history) < history.MAX_CHARACTERS + 2 * history.MAX_NOTE_CHARACTERS
    assert history.read(row.history)[-1][0] == "success"


def test_an_agent_cannot_end_a_task_by_a_state_nor_move_one_that_has_ended(ledger: Ledger) -> None:
    first, second = submit(ledger, 2).tasks[FUNCTION]
    ledger.record_results(ENDPOINT, [success(first)])

    ledger.record_states(
        ENDPOINT,
        {
            first: [Transition(1, TaskState.RUNNING, "endpoint")],
            second: [Transition(1, TaskState.SUCCESS, "endpoint"), Transition(1, "no such state", "endpoint")],
        },
    )

    assert [state_of(ledger, task_id) for task_id in (first, second)] == ["success", "received"]


def test_tasks_that_nobody_holds_are_unaccounted_for_once_the_grace_is_over(ledger: Ledger) -> None:
    receipt = submit(ledger, 3)
    held, sent, taken = receipt.tasks[FUNCTION]
    ledger.mark_dispatched([receipt.request_id])
    ledger.record_states(ENDPOINT, {taken: [Transition(1, TaskState.WAITING_FOR_NODES, "endpoint")]})

    in_grace = ledger.unaccounted(ENDPOINT, [held], grace_s=60)
    after = ledger.unaccounted(ENDPOINT, [held], grace_s=-1)

    assert (in_grace.sent, in_grace.taken) == ([], [])
    assert (after.sent, after.taken) == ([sent], [taken])


def test_what_is_held_does_not_hide_what_is_lost(ledger: Ledger) -> None:
    receipt = submit(ledger, 6)
    *held, lost = receipt.tasks[FUNCTION]
    ledger.mark_dispatched([receipt.request_id])

    assert ledger.unaccounted(ENDPOINT, held, grace_s=-1, limit=2).sent == [lost]


def test_what_is_sent_again_is_unfinished_and_says_so_in_its_history(ledger: Ledger) -> None:
    ended, lost = submit(ledger, 2).tasks[FUNCTION]
    ledger.record_results(ENDPOINT, [success(ended)])

    (batch,) = ledger.resend([ended, lost])

    assert [task.task_id for task in batch.tasks] == [lost]
    assert state_of(ledger, lost) == TaskState.WAITING_FOR_EP


def test_the_tasks_of_a_deleted_endpoint_fail_with_the_reason(ledger: Ledger) -> None:
    receipt = submit(ledger, 3)
    elsewhere = submit(ledger, endpoint_id=OTHER_ENDPOINT)

    news = ledger.fail_tasks_of_runner(ENDPOINT, "the endpoint was deleted", code="EndpointDeleted")

    assert news == {receipt.task_group_id}
    for row in ledger.tasks(receipt.tasks[FUNCTION]):
        assert (row.state, row.outcome, row.error_code) == ("failed", "the endpoint was deleted", "EndpointDeleted")
    assert ledger.count_unfinished(OTHER_ENDPOINT) == len(elsewhere.tasks[FUNCTION])


def test_tasks_are_listed_newest_first_in_pages_and_by_any_filter(ledger: Ledger) -> None:
    ids = submit(ledger, 5).tasks[FUNCTION]
    failed = submit(ledger, payloads={OTHER_FUNCTION: ["p"]}).tasks[OTHER_FUNCTION][0]
    ledger.record_results(ENDPOINT, [Result(failed, "trace", error_details=ErrorDetails("RemoteExecutionError", "no"))])

    first_page = ledger.list_tasks(OWNER, TaskFilter(), before=None, limit=4)
    second_page = ledger.list_tasks(OWNER, TaskFilter(), before=first_page.next, limit=4)

    assert [row.id for row in (*first_page.rows, *second_page.rows)] == [failed, *reversed(ids)]
    only = {
        "state": TaskFilter(state=TaskState.FAILED),
        "function": TaskFilter(function_id=OTHER_FUNCTION),
        "time": TaskFilter(created_after=first_page.rows[1].created_at),
    }
    for wanted in only.values():
        assert [row.id for row in ledger.list_tasks(OWNER, wanted, before=None, limit=9).rows] == [failed]
    assert ledger.list_tasks(str(uuid.uuid4()), TaskFilter(), before=None, limit=9).rows == []
    assert ledger.list_tasks(OWNER, TaskFilter(created_before=1.0), before=None, limit=9).rows == []


def test_a_listing_looks_through_so_many_tasks_and_says_where_to_go_on(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farcall_webservice.ledger.reading.LOOKED_THROUGH", 3)
    (oldest, *_) = submit(ledger, 7).tasks[FUNCTION]
    ledger.record_results(None, [Result(oldest, "no", error_details=ErrorDetails("X", "no"))])
    wanted, pages = TaskFilter(state=TaskState.FAILED), []

    page = ledger.list_tasks(OWNER, wanted, before=None, limit=2)
    while page.next is not None:
        pages.append(page)
        page = ledger.list_tasks(OWNER, wanted, before=page.next, limit=2)

    assert [len(each.rows) for each in pages] == [0, 0]
    assert [row.id for row in page.rows] == [oldest]


def test_of_very_many_unfinished_tasks_those_held_back_are_counted_by_submission(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farcall_webservice.ledger.reading.COUNTED", 4)
    first = submit(ledger, 2)
    ledger.mark_dispatched([first.request_id])
    held = submit(ledger, 3)
    ledger.hold_back([held.request_id])
    submit(ledger, 4)

    assert ledger.count_unfinished(ENDPOINT) == 9
