"""What the agent remembers when it is killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from farcall.wire import BatchedTask, FunctionCode, TaskBatch
from farcall_endpoint import journal as journal_module
from farcall_endpoint.attempts import Attempt
from farcall_endpoint.journal import Journal, JournalError, Unfinished


def batch_of(*task_ids: str, payload: str = "payload") -> TaskBatch:
    return TaskBatch(
        {"f": FunctionCode("code", "3.11.7")}, [BatchedTask(task_id, "f", payload) for task_id in task_ids]
    )


def unsent_ids(journal: Journal) -> list[str]:
    return [task_id for task_id, _ in journal.unsent(most=100, most_bytes=10_000)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


def test_what_was_accepted_and_not_finished_is_there_after_a_restart(path: Path) -> None:
    journal = Journal(path)
    with_options = BatchedTask("b", "g", "payload", {"result_serializers": ["x.JSONData"]})
    journal.accept(batch_of("a"))
    journal.accept(TaskBatch({"g": FunctionCode("other code")}, [with_options]))
    journal.attempted([Attempt("b", 5, "attempt 1 of 3 ended: \u2028\nit \ud800 burned"), Attempt("b", 6, "no", False)])
    journal.close()

    functions, tasks = Journal(path).unfinished()

    assert functions == {"f": FunctionCode("code", "3.11.7"), "g": FunctionCode("other code", None)}
    assert tasks == [
        Unfinished(BatchedTask("a", "f", "payload")),
        Unfinished(
            with_options,
            1,
            (Attempt("b", 5, "attempt 1 of 3 ended: \u2028\nit \ud800 burned"), Attempt("b", 6, "no", False)),
        ),
    ]


def test_a_result_is_kept_until_it_is_sent(path: Path) -> None:
    journal = Journal(path)
    journal.accept(batch_of("a", "b"))
    journal.finish([("a", "result of a")])
    journal.close()

    journal = Journal(path)
    before = journal.unsent(most=100, most_bytes=10_000), sorted(journal.held())
    journal.sent(["a"])
    after = journal.unsent(most=100, most_bytes=10_000), journal.held()

    assert before == ([("a", "result of a")], ["a", "b"])
    assert after == ([], ["b"])


def test_a_task_that_is_held_is_not_accepted_twice(path: Path) -> None:
    journal = Journal(path)
    journal.accept(batch_of("a"))

    again = journal.accept(batch_of("a", "b", "b"))

    assert [each.task.task_id for each in again] == ["b"]


def test_a_task_whose_result_was_sent_is_answered_again_and_not_run_again(path: Path) -> None:
    journal = Journal(path)
    journal.accept(batch_of("a"))
    journal.finish([("a", "result of a")])
    journal.sent(["a"])

    again = journal.accept(batch_of("a"))

    assert again == []
    assert journal.unsent(most=100, most_bytes=10_000) == [("a", "result of a")]
    assert journal.held() == ["a"]


def test_the_first_result_of_a_task_counts(path: Path) -> None:
    journal = Journal(path)
    journal.accept(batch_of("a"))

    journal.finish([("a", "first")])
    journal.finish([("a", "second"), ("nobody's", "third")])

    assert journal.unsent(most=100, most_bytes=10_000) == [("a", "first")]


def test_unsent_results_come_in_bounded_portions_and_at_least_one(path: Path) -> None:
    journal = Journal(path)
    journal.accept(batch_of("a", "b", "c"))
    journal.finish([(task_id, task_id * 10) for task_id in "abc"])

    assert [task_id for task_id, _ in journal.unsent(most=2, most_bytes=1000)] == ["a", "b"]
    assert [task_id for task_id, _ in journal.unsent(most=3, most_bytes=25)] == ["a", "b"]
    assert [task_id for task_id, _ in journal.unsent(most=3, most_bytes=1)] == ["a"]


def test_old_results_are_forgotten_and_with_them_functions_that_nobody_needs(path: Path) -> None:
    journal = Journal(path)
    journal.accept(batch_of("a"))
    journal.finish([("a", "result")])
    journal.sent(["a"])

    young, old = journal.purge(keep_s=60), journal.purge(keep_s=0)

    assert (young, old) == (0, 1)
    assert [each.task.task_id for each in journal.accept(batch_of("a"))] == ["a"]
    assert journal.unfinished()[0] == {"f": FunctionCode("code", "3.11.7")}


def test_sent_results_are_forgotten_early_if_they_are_large(path: Path) -> None:
    journal = Journal(path)
    journal.accept(batch_of("a", "b"))
    journal.finish([("a", "x" * 100), ("b", "y" * 100)])
    journal.sent(["a"])
    journal.sent(["b"])

    removed = journal.purge(keep_s=60, keep_bytes=150)

    assert removed == 1
    assert journal.accept(batch_of("b")) == []


def test_sent_results_are_forgotten_early_if_they_are_many(path: Path) -> None:
    journal = Journal(path)
    journal.accept(batch_of("a", "b", "c"))
    journal.finish([(task_id, "result") for task_id in "abc"])
    for task_id in "abc":
        journal.sent([task_id])

    removed = journal.purge(keep_s=60, keep_results=2)

    assert removed == 1
    assert [each.task.task_id for each in journal.accept(batch_of("a", "b", "c"))] == ["a"]


def test_to_find_the_functions_in_use_only_the_tasks_that_are_held_are_looked_at(path: Path) -> None:
    journal = Journal(path)
    statements: list[str] = []
    journal._db.set_trace_callback(statements.append)

    journal.purge()

    (statement,) = (each for each in statements if each.startswith("DELETE FROM functions"))
    plan = " ".join(row[3] for row in journal._db.execute(f"EXPLAIN QUERY PLAN {statement}"))
    assert "held" in plan
    assert "sent" not in plan


def test_what_is_not_sent_is_never_purged(path: Path) -> None:
    journal = Journal(path)
    journal.accept(batch_of("a", "b"))
    journal.finish([("a", "result")])

    assert journal.purge(keep_s=0, keep_bytes=0) == 0
    assert unsent_ids(journal) == ["a"]
    assert sorted(journal.held()) == ["a", "b"]


def test_a_payload_with_lone_surrogates_is_kept_as_it_is(path: Path) -> None:
    journal = Journal(path)

    journal.accept(batch_of("a", payload="\ud800 and more"))

    assert journal.unfinished()[1][0].task.payload == "\ud800 and more"


def test_a_damaged_file_is_refused_with_advice_and_left_alone(path: Path) -> None:
    path.write_bytes(b"this is no database, it only lies where one should be" * 100)

    with pytest.raises(JournalError, match=r"is damaged .* Move it away, with the files beside it"):
        Journal(path)

    assert path.read_bytes().startswith(b"this is no database")


def test_a_journal_of_another_version_is_refused(path: Path) -> None:
    journal = Journal(path)
    journal._db.execute("PRAGMA user_version = 99")
    journal.close()

    with pytest.raises(JournalError, match="written by another version"):
        Journal(path)


def accepted(journal: Journal, *task_ids: str) -> list[Unfinished]:
    return journal.accept(batch_of(*task_ids))


def test_a_task_that_was_cancelled_before_it_came_is_known_as_such_also_after_a_restart(path: Path) -> None:
    journal = Journal(path)
    journal.cancel(["a", "b"])
    journal.cancel(["a"])
    journal.close()

    journal = Journal(path)
    new = accepted(journal, "a", "c")
    journal.close()

    assert [(each.task.task_id, each.cancelled) for each in new] == [("a", True), ("c", False)]
    assert [each.cancelled for each in Journal(path).unfinished()[1]] == [True, False]


def test_what_was_cancelled_is_on_the_disk_when_that_returns(path: Path) -> None:
    """A power cut cannot be had here; SQLite promises it for one of its settings, which counts for all that follows."""
    journal = Journal(path)
    done: list[str] = []
    journal._db.set_trace_callback(done.append)

    journal.cancel(["a"])
    accepted(journal, "b")

    full, normal = done.index("PRAGMA synchronous = FULL"), done.index("PRAGMA synchronous = NORMAL")
    assert full < done.index("COMMIT") < normal
    assert "tombstones" in "".join(done[full:normal])


def test_a_task_that_was_handed_over_is_known_as_such_after_a_restart_unless_it_was_taken_back(path: Path) -> None:
    journal = Journal(path)
    accepted(journal, "a", "b", "c")
    journal.hand_over(["a", "b"])
    journal.take_back(["b"])
    journal.close()

    assert [each.handed_over for each in Journal(path).unfinished()[1]] == [True, False, False]


def test_what_must_not_start_twice_is_remembered_for_longer_than_its_result(path: Path) -> None:
    journal = Journal(path)
    accepted(journal, "once", "often")
    journal.hand_over(["once"])
    journal.finish([("once", "result"), ("often", "result")])
    journal.sent(["once", "often"])
    journal.purge(keep_s=0)

    again = accepted(journal, "once", "often")

    assert [(each.task.task_id, each.handed_over) for each in again] == [("once", True), ("often", False)]


def test_a_task_that_is_sent_again_is_answered_if_its_result_is_here_and_else_known_to_have_been_handed_over(
    path: Path,
) -> None:
    journal = Journal(path)
    accepted(journal, "here")
    journal.finish([("here", "result")])
    journal.sent(["here"])
    tasks = [BatchedTask(task_id, "f", "payload", may_have_started=True) for task_id in ("here", "gone")]

    new = journal.accept(TaskBatch({"f": FunctionCode("code", "3.11.7")}, tasks))

    assert [(each.task.task_id, each.handed_over) for each in new] == [("gone", True)]
    assert unsent_ids(journal) == ["here"]
    journal.close()
    assert [each.handed_over for each in Journal(path).unfinished()[1]] == [True]


def test_tombstones_are_forgotten_in_the_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(path)
    journal.cancel(["a"])

    monkeypatch.setattr(journal_module, "KEEP_TOMBSTONES_S", -1.0)
    journal.purge()

    assert not accepted(journal, "a")[0].cancelled


def test_many_tombstones_are_forgotten_a_few_at_a_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(path)
    journal.cancel([str(number) for number in range(25)])
    monkeypatch.setattr(journal_module, "KEEP_TOMBSTONES_S", -1.0)
    monkeypatch.setattr(journal_module, "PURGE_ROWS", 10)
    done: list[str] = []
    journal._db.set_trace_callback(done.append)

    journal.purge()

    assert sum("DELETE FROM tombstones" in statement for statement in done) == 4
    assert not any(each.cancelled for each in accepted(journal, *map(str, range(25))))
