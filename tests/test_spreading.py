"""Tests that share what is expensive to start stay together, and those that share nothing do not."""

from __future__ import annotations

from pathlib import Path

import pytest
from spreading import APART, LONG, group

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("globus/test_matrix.py::test_cell[theirs-globus-a_flow]", "globus/test_their_endpoint.py::test_it"),
        ("globus/test_matrix.py::test_cell[ours-farcall-a_flow]", "globus/test_mpi.py::test_ranks[ours-globus]"),
        ("flow/test_a_function_comes_back.py::test_it[larger]", "flow/test_service_life.py::test_it[larger]"),
        ("flow/test_a_function_comes_back.py::test_it[embedded-a.b]", "test_documentation.py::test_it[README.md]"),
        ("webservice/test_tasks.py::test_one", "webservice/test_tasks.py::test_other[larger]"),
    ],
)
def test_what_shares_servers_is_one_group(one: str, other: str) -> None:
    assert group(f"tests/{one}") == group(f"tests/{other}")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            "globus/test_matrix.py::test_cell[theirs-globus-a_flow]",
            "globus/test_matrix.py::test_cell[ours-globus-a_flow]",
        ),
        ("flow/test_service_life.py::test_it[larger]", "flow/test_service_life.py::test_it[embedded]"),
        ("flow/test_kills.py::test_it[warden]", "flow/test_kills.py::test_it[interchange]"),
        ("webservice/test_tasks.py::test_one", "webservice/test_auth.py::test_one"),
    ],
)
def test_what_shares_nothing_is_in_two_groups(one: str, other: str) -> None:
    assert group(f"tests/{one}") != group(f"tests/{other}")


def test_the_files_that_it_names_exist() -> None:
    named = [name for name in (*LONG, *APART) if name.endswith(".py")]

    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
