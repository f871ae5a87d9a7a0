"""What tasks print: as agents send it, as the ledger keeps it, as people read it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from farcall.wire import Output

if TYPE_CHECKING:
    from conftest import Person, Service


class Printer:
    """A task that prints."""

    def __init__(self, service: Service, person: Person) -> None:
        self._service, self._person = service, person
        self.endpoint_id = person.endpoint()
        function_id = person.function()
        receipt = person.submit(self.endpoint_id, function_id)
        (self.task_id,) = receipt["tasks"][function_id]

    def print(self, start: int, text: str, stream: str = "stdout") -> set[str]:
        piece = Output(self.task_id, stream, start, text)
        news = self._service.ledger.record_output(self.endpoint_id, [piece])
        self._service.waiting.wake(news)
        return news

    def read(self, after: int = 0, **query: Any) -> Any:
        parameters = "&".join(f"{name}={value}" for name, value in {"after": after, **query}.items())
        return self._person.get(f"/v2/tasks/{self.task_id}/log?{parameters}").done()

    def place_and_text(self, after: int = 0) -> tuple[int, str, int]:
        part = self.read(after)
        return part["start"], part["text"], part["next"]


@pytest.fixture
def printer(service: Service, ada: Person) -> Printer:
    return Printer(service, ada)


def test_what_a_running_task_prints_is_read_from_any_place(printer: Printer) -> None:
    assert printer.print(0, "one\n") == {printer.task_id}
    printer.print(4, "two\n")
    printer.print(0, "oh\n", "stderr")

    assert printer.read() == {
        "task_id": printer.task_id,
        "stream": "stdout",
        "start": 0,
        "next": 8,
        "text": "one\ntwo\n",
        "ended": False,
    }
    assert printer.place_and_text(after=2) == (2, "e\ntwo\n", 8)
    assert printer.place_and_text(after=8) == (8, "", 8)
    assert printer.place_and_text(after=100) == (100, "", 100)
    assert printer.read(stream="stderr")["text"] == "oh\n"


def test_the_end_of_a_task_is_the_end_of_its_log_once_all_is_read(service: Service, printer: Printer) -> None:
    printer.print(0, "all")

    assert not printer.read()["ended"]
    service.finish(printer.task_id)

    assert printer.read()["ended"]
    assert printer.read(after=3)["ended"]


def test_pieces_that_come_twice_or_overlap_or_in_another_order_make_one_text(printer: Printer) -> None:
    for start, text in ((4, "4567"), (0, "0123"), (0, "0123"), (2, "234"), (6, "6789"), (0, "01234"), (0, "0")):
        printer.print(start, text)

    assert printer.place_and_text() == (0, "0123456789", 10)


def test_a_gap_is_seen_by_whoever_reads_on(printer: Printer) -> None:
    printer.print(0, "abc")
    printer.print(10, "xyz")

    assert printer.place_and_text() == (0, "abc", 3)
    assert printer.place_and_text(after=3) == (10, "xyz", 13)


def test_of_a_task_that_prints_much_the_end_is_kept(service: Service, printer: Printer) -> None:
    service.ledger.max_log_characters = 100
    for number in range(100):
        printer.print(10 * number, f"{number:09d}\n")

    start, text, until = printer.place_and_text()

    assert (until, len(text)) == (1000, until - start)
    assert 100 <= len(text) < 120

    printer.print(1000, "x" * 5000)
    assert printer.place_and_text() == (5900, "x" * 100, 6000)


def test_output_of_others_tasks_is_refused(service: Service, ada: Person, printer: Printer, unknown_id: str) -> None:
    pieces = [Output(printer.task_id, "stdout", 0, "mine?"), Output(unknown_id, "stdout", 0, "?")]

    assert service.ledger.record_output(ada.endpoint(), pieces) == set()

    assert printer.place_and_text() == (0, "", 0)


def test_nonsense_is_passed_over_and_characters_that_no_database_takes_keep_their_places(
    service: Service, printer: Printer
) -> None:
    pieces = [
        Output("nonsense", "stdout", 0, "x"),
        Output(printer.task_id, "stdout", 2**80, "x"),
        Output(printer.task_id, "stdout", 0, ""),
        Output(printer.task_id, "stdout", 0, "a\0b\ud800c"),
    ]

    assert service.ledger.record_output(printer.endpoint_id, pieces) == {printer.task_id}

    assert printer.place_and_text() == (0, "a\ufffdb\ufffdc", 5)


def test_a_request_that_waits_is_answered_when_the_task_prints(service: Service, printer: Printer) -> None:
    printer.print(0, "old")

    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(printer.read, 3, wait=25)
        assert service.waiting.somebody_waits.wait(30)
        printer.print(3, "new")
        part = held.result(timeout=60)

    assert (part["start"], part["text"]) == (3, "new")


def test_a_request_that_waits_is_answered_when_the_task_ends(service: Service, printer: Printer) -> None:
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(printer.read, wait=25)
        assert service.waiting.somebody_waits.wait(30)
        service.finish(printer.task_id)
        part = held.result(timeout=60)

    assert (part["text"], part["ended"]) == ("", True)


def test_only_the_owner_reads_a_log(ada: Person, bob: Person, printer: Printer, unknown_id: str) -> None:
    bob.get(f"/v2/tasks/{printer.task_id}/log").refused(403, "TASK_ACCESS_FORBIDDEN")
    ada.get(f"/v2/tasks/{unknown_id}/log").refused(404, "TASK_NOT_FOUND")
    ada.get(f"/v2/tasks/{printer.task_id}/log?stream=stdin").refused(422, "SEMANTICALLY_INVALID")
    ada.get(f"/v2/tasks/{printer.task_id}/log?after=-1").refused(422, "SEMANTICALLY_INVALID")
