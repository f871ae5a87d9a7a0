"""A disk that is full: nothing is lost, it is said, and the work goes on when there is room again."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from farcall.wire import BatchedTask, FunctionCode, Output, TaskBatch
from farcall_endpoint import writing
from farcall_endpoint.attempts import Attempt
from farcall_endpoint.journal import Journal
from farcall_endpoint.output import OutputStore
from farcall_endpoint.writing import Writer


def batch(*task_ids: str) -> TaskBatch:
    return TaskBatch({"f": FunctionCode("code")}, [BatchedTask(key, "f", "payload " * 1000) for key in task_ids])


#: Everything that writes, on a journal that holds `a` and `b`, where `b` has a result.
WRITES: dict[str, Callable[[Journal], Any]] = {
    "accept": lambda journal: journal.accept(batch("c")),
    "hand over": lambda journal: journal.hand_over(["a"]),
    "take back": lambda journal: journal.take_back(["a"]),
    "attempted": lambda journal: journal.attempted([Attempt("a", 5, "attempt 1 of 3 ended")]),
    "cancel": lambda journal: journal.cancel(["a"]),
    "finish": lambda journal: journal.finish([("a", "result of a")]),
    "sent": lambda journal: journal.sent(["b"]),
    "purge": lambda journal: journal.purge(),
}


def fill_to_the_brim(journal: Journal, disk: Any) -> None:
    """Until not even the room that the journal's files have already suffices."""
    disk.fill()
    with pytest.raises(sqlite3.Error):
        for number in range(1000):
            journal.accept(batch(f"filler-{number}"))


@pytest.mark.parametrize("what", WRITES)
def test_whatever_cannot_be_written_loses_nothing_and_can_be_written_later(disk: Any, what: str) -> None:
    journal = Journal(disk.path / "journal.sqlite")
    journal.accept(batch("a", "b"))
    journal.finish([("b", "result of b")])
    fill_to_the_brim(journal, disk)
    before = journal.unfinished(), journal.unsent(most=10, most_bytes=10**6), sorted(journal.held())

    try:
        WRITES[what](journal)
    except sqlite3.Error:
        assert before == (journal.unfinished(), journal.unsent(most=10, most_bytes=10**6), sorted(journal.held()))
    disk.make_room()
    WRITES[what](journal)

    journal.close()
    again = Journal(disk.path / "journal.sqlite")
    assert again.doubt is None
    assert {"a", "b"} <= {*again.held(), *(["b"] if what == "sent" else [])}
    again.close()


def test_a_journal_on_a_full_disk_can_be_opened_when_there_is_room(disk: Any) -> None:
    journal = Journal(disk.path / "journal.sqlite")
    journal.accept(batch("a", "b"))
    fill_to_the_brim(journal, disk)
    held = sorted(journal.held())
    journal.close()

    disk.make_room()
    journal = Journal(disk.path / "journal.sqlite")

    assert sorted(journal.held()) == held
    journal.close()


def test_results_wait_in_memory_and_are_written_when_there_is_room(
    disk: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(disk.path / "journal.sqlite")
    journal.accept(batch("a", "b"))
    told: list[int] = []
    writer = Writer(journal, on_results=lambda: told.append(1))
    fill_to_the_brim(journal, disk)

    writer.attempted([Attempt("a", 5, "attempt 1 of 3 ended" * 1000)])
    writer.ended([("a", "result of a" * 10_000)])
    trouble = writer.trouble
    writer.write()
    stuck = writer.is_stuck
    disk.make_room()
    writer.write()
    monkeypatch.setattr(writing, "OVER_AFTER_S", 0.0)
    writer.write()

    assert "disk is full" in (trouble or "")
    assert "1 results wait in its memory" in (trouble or "")
    assert stuck
    assert not writer.is_stuck
    assert told == [1]
    assert [task_id for task_id, _ in journal.unsent(most=10, most_bytes=10**6)] == ["a"]
    assert caplog.text.count("disk is full") == 1
    assert "can be written again" in caplog.text
    journal.close()


def test_that_a_task_has_not_started_is_not_written_any_more_when_it_was_handed_over_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(task_ids: Iterable[str]) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    journal = Journal(tmp_path / "journal.sqlite")
    journal.accept(batch("once"))
    writer = Writer(journal, on_results=lambda: None)
    writer.handing_over(["once"])
    with monkeypatch.context() as full:
        full.setattr(journal, "take_back", fail)
        writer.not_started(["once"])

    writer.handing_over(["once"])
    writer.write()

    assert [each.handed_over for each in journal.unfinished()[1]] == [True]
    journal.close()


def test_output_that_cannot_be_kept_is_lost_and_later_output_is_not(disk: Any) -> None:
    store = OutputStore(disk.path / "output.sqlite")
    store.add([Output("a", "stdout", 0, "before")])
    disk.fill()

    store.add([Output("a", "stdout", 6, "x" * 1_000_000)])
    disk.make_room()
    store.add([Output("a", "stdout", 1_000_006, "after")])

    assert [piece.text for piece in store.take(most_bytes=10**7).values()] == ["before", "after"]
    store.close()
