"""How many tasks travel together."""

from __future__ import annotations

import doctest

from farcall_endpoint import chunking


def test_the_examples_in_the_module_are_true() -> None:
    assert doctest.testmod(chunking).failed == 0


def test_one_slow_call_makes_the_next_ones_smaller_for_a_while() -> None:
    expected = chunking.estimate(None, 0.0001)
    before = chunking.tasks_per_call(expected, waiting=1000, free_calls=1)

    expected = chunking.estimate(expected, 0.010)
    after = chunking.tasks_per_call(expected, waiting=1000, free_calls=1)
    for _ in range(50):
        expected = chunking.estimate(expected, 0.0001)
    later = chunking.tasks_per_call(expected, waiting=1000, free_calls=1)

    assert (before, after, later) == (200, 3, 200)


def test_a_function_that_takes_no_time_at_all_is_no_division_by_zero() -> None:
    assert chunking.tasks_per_call(0.0, waiting=1000, free_calls=1) == chunking.MOST_TASKS
