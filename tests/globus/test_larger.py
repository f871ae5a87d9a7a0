"""Globus Compute's SDK and endpoint with a service of several processes, on PostgreSQL and RabbitMQ."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.parametrize("service", ["larger"], indirect=True, scope="session")

FLOWS = (
    "a_call_comes_back",
    "several_executors_work_side_by_side",
    "run_and_get_result_work_without_an_executor",
)


@pytest.fixture(scope="module")
def larger_endpoint(new_lively_endpoint) -> Iterator:  # type: ignore[no-untyped-def, type-arg]
    endpoint = new_lively_endpoint("larger")
    yield endpoint
    endpoint.stop()


@pytest.mark.parametrize("flow", FLOWS)
def test_flow(sessions, larger_endpoint, flow: str) -> None:  # type: ignore[no-untyped-def]
    sessions["globus"].run(flow, larger_endpoint.id)


def test_a_task_of_a_killed_user_endpoint_runs_again(sessions, larger_endpoint) -> None:  # type: ignore[no-untyped-def]
    sessions["globus"].run("a_task_of_a_killed_child_runs_again", larger_endpoint.id, timeout_s=130)


def test_endpoint_and_users_have_accounts_of_their_own(broker, sessions, larger_endpoint) -> None:  # type: ignore[no-untyped-def]
    sessions["globus"].run("a_call_comes_back", larger_endpoint.id)

    names = broker.ctl("-q", "list_users")
    assert f"farcall-endpoint-{larger_endpoint.id}" in names
    assert "farcall-user-" in names
