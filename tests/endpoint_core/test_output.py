"""What tasks print, on its way to the service: bounded, in order, and worth less than a result."""

from __future__ import annotations

from pathlib import Path

import pytest

from farcall.wire import Output
from farcall_endpoint import output as output_module
from farcall_endpoint.output import OutputStore


def piece(task_id: str, start: int, text: str) -> Output:
    return Output(task_id, "stdout", start, text)


def taken(store: OutputStore, **options: object) -> list[Output]:
    return list(store.take(**{"most_bytes": 10**6, **options}).values())  # type: ignore[arg-type]


def test_pieces_come_in_their_order_in_portions_and_leave_when_they_are_sent(output: OutputStore) -> None:
    output.add([piece("a", 0, "one "), piece("b", 0, "x"), piece("a", 4, "two")])

    first = output.take(most_bytes=5)
    output.sent(list(first))
    rest = output.take(most_bytes=1000)
    output.sent(list(rest))

    assert list(first.values()) == [piece("a", 0, "one "), piece("b", 0, "x")]
    assert list(rest.values()) == [piece("a", 4, "two")]
    assert not output


def test_one_piece_comes_however_large_it_is(output: OutputStore) -> None:
    output.add([piece("a", 0, "x" * 100)])

    assert taken(output, most_bytes=1) == [piece("a", 0, "x" * 100)]


def test_the_pieces_of_some_tasks_can_be_asked_for(output: OutputStore) -> None:
    output.add([piece("a", 0, "one"), piece("b", 0, "x"), piece("a", 3, "two")])

    assert taken(output, of=["a", "unknown"]) == [piece("a", 0, "one"), piece("a", 3, "two")]


def test_of_too_much_the_oldest_goes_first_of_the_task_then_of_all(
    output: OutputStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_module, "MOST_OF_A_TASK", 10)
    monkeypatch.setattr(output_module, "MOST_BYTES", 15)

    output.add([piece("a", 0, "12345"), piece("b", 0, "12345"), piece("a", 5, "12345"), piece("a", 10, "12345")])
    output.add([piece("c", 0, "1")])

    assert taken(output) == [piece("a", 5, "12345"), piece("a", 10, "12345"), piece("c", 0, "1")]


def test_what_was_not_sent_is_there_after_a_restart_with_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_module, "MOST_OF_A_TASK", 4)
    store = OutputStore(tmp_path / "output.sqlite")
    store.add([piece("a", 0, "\ud800"), piece("a", 1, "")])
    store.close()

    store = OutputStore(tmp_path / "output.sqlite")
    assert store
    assert taken(store) == [piece("a", 0, "\ud800")]
    store.add([piece("a", 1, "xy")])

    assert taken(store) == [piece("a", 1, "xy")]
    store.close()


@pytest.mark.parametrize("harm", [b"", b"this is no database" * 100])
def test_a_damaged_file_costs_only_what_was_in_it(tmp_path: Path, harm: bytes) -> None:
    (tmp_path / "output.sqlite").write_bytes(harm)

    store = OutputStore(tmp_path / "output.sqlite")
    store.add([piece("a", 0, "text")])

    assert taken(store) == [piece("a", 0, "text")]
    store.close()


def test_where_nothing_can_be_written_it_is_kept_in_memory(tmp_path: Path) -> None:
    store = OutputStore(tmp_path / "there is no such directory" / "output.sqlite")
    store.add([piece("a", 0, "text")])

    assert taken(store) == [piece("a", 0, "text")]
