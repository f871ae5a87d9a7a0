"""Ids in the order of time."""

from __future__ import annotations

import threading
import time
import uuid

import pytest

from farcall_webservice.ids import new_id, new_ids


def test_ids_are_uuids_of_version_7_with_the_time_in_front() -> None:
    before = time.time_ns() // 1_000_000
    made = uuid.UUID(new_id())
    after = time.time_ns() // 1_000_000

    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert before <= made.int >> 80 <= after


def test_each_id_is_greater_than_the_one_before_whatever_the_clock_does(monkeypatch: pytest.MonkeyPatch) -> None:
    first = new_ids(5000)
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    then = new_ids(5000)

    assert sorted(first + then) == first + then
    assert len({*first, *then}) == 10_000


def test_threads_make_no_id_twice() -> None:
    made: list[str] = []
    threads = [threading.Thread(target=lambda: made.extend(new_ids(1000))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(made)) == 8000
