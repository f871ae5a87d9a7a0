"""Globus Compute's endpoint, as its user drives it: configure, start, stop, restart, delete, and what goes wrong."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from islands import OWN_NAMES, Island

LIVES = (
    "a_child_that_cannot_start_fails_its_tasks_in_words",
    "each_configuration_has_a_child_of_its_own",
    "a_task_of_a_killed_child_runs_again",
    "a_child_without_work_ends_and_comes_back_for_more",
)


@pytest.fixture(scope="module")
def lively(new_lively_endpoint) -> Iterator:  # type: ignore[no-untyped-def, type-arg]
    endpoint = new_lively_endpoint("lively")
    yield endpoint
    endpoint.stop()


@pytest.mark.parametrize("life", LIVES)
@pytest.mark.parametrize("sdk", ["globus"])
def test_what_becomes_of_tasks(sessions, lively, sdk: str, life: str) -> None:  # type: ignore[no-untyped-def]
    sessions[sdk].run(life, lively.id, timeout_s=130)


def test_a_stopped_endpoint_is_offline_and_keeps_its_id_and_its_tasks(sessions, lively) -> None:  # type: ignore[no-untyped-def]
    known = lively.id
    lively.stop()

    sessions["globus"].run("tasks_wait_for_an_endpoint_that_is_stopped", known)
    lively.start()

    assert lively.id == known
    sessions["globus"].run("the_task_that_waited_has_run", known)


def test_the_commands_say_who_and_what(lively) -> None:  # type: ignore[no-untyped-def]
    assert "owner" in lively.command("whoami").stdout
    listed = lively.command("list").stdout
    assert lively.id in listed and "Running" in listed


def test_an_endpoint_takes_the_id_that_it_is_given(new_endpoint) -> None:  # type: ignore[no-untyped-def]
    given = "7a3c9a6e-52a8-4f0e-9c39-0d1b2f0a6c11"
    endpoint = new_endpoint("given")
    endpoint.command("configure", "given")
    endpoint.start("--endpoint-uuid", given)

    assert endpoint.id == given
    endpoint.stop()


def test_an_endpoint_is_stopped_from_elsewhere_and_deleted(new_endpoint, their_endpoint_is_running) -> None:  # type: ignore[no-untyped-def]
    endpoint = new_endpoint("doomed")
    endpoint.command("configure", "doomed")
    endpoint.start()

    endpoint.stop("--remote")
    their_endpoint_is_running(endpoint, False)
    refused = endpoint.command("start", "doomed", check=False)
    assert "locked" in refused.stdout + refused.stderr
    endpoint.command("delete", "doomed", "--yes", "--force")

    assert not endpoint.directory.exists()


def test_an_endpoint_asks_for_no_host_of_globus(isle: Island, sessions, their_endpoint: str) -> None:  # type: ignore[no-untyped-def]
    sessions["globus"].run("a_call_comes_back", their_endpoint)

    # The Parsl in it asks a public site for its own address, and goes on without an answer.
    assert set(isle.names_asked_for()) <= {*OWN_NAMES, "api.ipify.org"}
