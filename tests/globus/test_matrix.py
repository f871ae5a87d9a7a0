"""Either SDK with either endpoint: the same flows pass in all four cells, but for what LIMITS lists."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from islands import OWN_NAMES, Island

_spec = importlib.util.spec_from_file_location("flows", Path(__file__).with_name("flows.py"))
assert _spec is not None and _spec.loader is not None
flows = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(flows)


def test_nothing_of_ours_and_no_sdk_asks_for_an_outside_host(request, isle: Island) -> None:  # type: ignore[no-untyped-def]
    known = len(isle.names_asked_for())
    endpoint_id, sessions = (request.getfixturevalue(name) for name in ("our_endpoint", "sessions"))

    for sdk in ("farcall", "globus"):
        sessions[sdk].run("a_call_comes_back", endpoint_id)

    assert set(isle.names_asked_for()[known:]) <= OWN_NAMES


#: What a cell cannot do, and why: (SDK, endpoint, flow) -> reason. docs/globus.md shows the same. Where cells do it in
#: different words, the flow says so.
LIMITS: dict[tuple[str, str, str], str] = {}


@pytest.mark.parametrize("flow", flows.FLOWS)
@pytest.mark.parametrize("sdk", ["farcall", "globus"])
@pytest.mark.parametrize("endpoint", ["ours", "theirs"])
def test_cell(request, isle, sessions, sdk: str, endpoint: str, flow: str) -> None:  # type: ignore[no-untyped-def]
    limit = LIMITS.get((sdk, endpoint, flow))
    if limit is not None:
        pytest.skip(limit)
    endpoint_id = request.getfixturevalue({"ours": "our_endpoint", "theirs": "their_endpoint"}[endpoint])

    sessions[sdk].run(flow, endpoint_id)


@pytest.mark.parametrize("flow", ["a_call_comes_back", "run_and_get_result_work_without_an_executor"])
def test_a_token_does_without_environment_and_client(sessions, our_endpoint: str, flow: str) -> None:  # type: ignore[no-untyped-def]
    sessions["globus with a token"].run(flow, our_endpoint)
