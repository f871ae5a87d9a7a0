"""One GPU for each worker, and only those that the block has been given."""

from __future__ import annotations

import doctest

import pytest

from farcall_endpoint import accelerators
from farcall_endpoint.accelerators import given_to_us


def test_the_examples_in_the_docstring_are_right() -> None:
    assert doctest.testmod(accelerators).failed == 0


@pytest.mark.parametrize("name", ["CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"])
def test_numbers_count_among_the_devices_that_the_block_was_given(name: str) -> None:
    assert given_to_us(["0", "1"], {name: "GPU-6f3c,GPU-77aa"}) == ["GPU-6f3c", "GPU-77aa"]


def test_names_are_taken_as_they_are() -> None:
    assert given_to_us(["GPU-6f3c"], {"CUDA_VISIBLE_DEVICES": "2,3"}) == ["GPU-6f3c"]


def test_there_are_no_more_workers_than_the_block_has_devices() -> None:
    assert given_to_us(["0", "1", "2", "3"], {"CUDA_VISIBLE_DEVICES": "5"}) == ["5"]


def test_an_empty_variable_says_nothing() -> None:
    assert given_to_us(["0", "1"], {"CUDA_VISIBLE_DEVICES": ""}) == ["0", "1"]
