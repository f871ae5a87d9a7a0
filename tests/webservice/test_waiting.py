"""Whoever waits for a group is woken by its news and by nothing else."""

from __future__ import annotations

import threading

import pytest

from farcall_webservice.waiting import TooManyWaiting, Waiting


def test_news_of_a_group_wake_its_listeners_only() -> None:
    waiting = Waiting(max_waiters=10)

    with waiting.listen("a") as first, waiting.listen("a") as second, waiting.listen("b") as other:
        waiting.wake(["a"])

        assert first.is_set() and second.is_set()
        assert not other.is_set()


def test_news_that_come_between_listening_and_waiting_are_not_missed() -> None:
    waiting = Waiting(max_waiters=1)

    with waiting.listen("a") as news:
        waiting.wake(["a"])

        assert news.wait(timeout=0)


def test_no_more_wait_than_there_are_places_and_a_place_is_given_back() -> None:
    waiting = Waiting(max_waiters=1)

    with waiting.listen("a"), pytest.raises(TooManyWaiting), waiting.listen("b"):
        pass

    with waiting.listen("b"):
        pass


def test_a_service_that_goes_down_keeps_nobody_waiting() -> None:
    waiting = Waiting(max_waiters=10)
    woken = threading.Event()

    def wait() -> None:
        with waiting.listen("a") as news:
            listening.set()
            news.wait(timeout=30)
            woken.set()

    listening = threading.Event()
    thread = threading.Thread(target=wait)
    thread.start()
    listening.wait(timeout=30)
    waiting.close()

    assert woken.wait(timeout=30)
    thread.join()
    with waiting.listen("b") as news:
        assert news.is_set()
