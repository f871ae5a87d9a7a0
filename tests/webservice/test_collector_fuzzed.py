"""Whatever an endpoint says, the collector reads it, sets it aside or records it, and goes on."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from carrying import FUNCTION, Loop
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st

from farcall import wire
from farcall_webservice import dead_letters
from farcall_webservice.dead_letters import Letter

TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=10)
ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=5,
)
TRANSITION = st.fixed_dictionaries(
    {
        "timestamp": st.integers() | st.floats(),
        "state": st.sampled_from([*wire.TaskState, wire.EXECUTION_START, wire.EXECUTION_END]) | TEXT,
        "actor": TEXT,
    },
    optional={"note": TEXT},
)
OBJECT = st.dictionaries(TEXT, ANYTHING, max_size=3)


class Said:
    """A message as the transport hands it out."""

    def __init__(self, endpoint_id: str, queue: str, body: bytes) -> None:
        self.body = body
        self.delivery_info = {"exchange": queue, "routing_key": f"{endpoint_id}.{queue}"}


@pytest.fixture
def filed(monkeypatch: pytest.MonkeyPatch) -> list[Letter]:
    """What would be filed at the broker, of which there is none here."""
    letters: list[Letter] = []
    monkeypatch.setattr(dead_letters, "file", lambda _url, some: letters.extend(some))
    return letters


@pytest.fixture
def quiet_loop(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loop]:
    """Nothing of it runs: the test calls the collector itself."""
    loop = Loop(database_url, "memory://")
    monkeypatch.setattr(loop.dispatcher, "queued_messages", lambda _endpoint_id: 1)
    monkeypatch.setattr(loop.dispatcher, "queued_results", lambda: 1)
    yield loop
    loop.database.close()


def envelope(message_type: str, data: Any) -> bytes:
    text = json.dumps({"message_type": message_type, "data": data}, ensure_ascii=False)
    return wire.ENVELOPE_VERSION + text.encode("utf-8", "surrogatepass")


def test_whatever_an_endpoint_says_the_collector_goes_on(quiet_loop: Loop, filed: list[Letter]) -> None:
    loop = quiet_loop
    endpoint_id = loop.add_endpoint(accepts=["task_batch"])
    receipt = loop.submit(endpoint_id, 500)
    unused = iter(receipt.tasks[FUNCTION])
    known = st.builds(lambda: next(unused, receipt.tasks[FUNCTION][0]))
    task_id = known | st.just(receipt.tasks[FUNCTION][0]) | TEXT | st.just(str(uuid.uuid4()))
    result = st.fixed_dictionaries(
        {"task_id": task_id, "data": TEXT | ANYTHING},
        optional={
            "details": OBJECT,
            "error_details": st.fixed_dictionaries({"code": TEXT, "user_message": TEXT}),
            "task_statuses": st.lists(TRANSITION, max_size=3),
            "exception_object": TEXT,
        },
    )
    piece = st.fixed_dictionaries(
        {"task_id": task_id, "stream": st.sampled_from(wire.STREAMS), "start": st.integers(0), "text": TEXT}
    )
    state = st.fixed_dictionaries(
        {},
        optional={"heartbeat_period": ANYTHING, "active": ANYTHING, "error": ANYTHING, "outstanding_tasks": ANYTHING},
    )
    said = st.one_of(
        result.map(lambda data: envelope("result", data)),
        st.lists(result, max_size=3).map(lambda some: envelope("result_batch", {"results": some})),
        st.lists(piece, max_size=3).map(lambda some: envelope("output_batch", {"pieces": some})),
        st.fixed_dictionaries(
            {
                "endpoint_id": st.just(endpoint_id),
                "global_state": st.one_of(OBJECT, state),
                "task_statuses": st.dictionaries(task_id, st.lists(TRANSITION, max_size=3), max_size=3),
            },
            optional={"holds": st.lists(task_id, max_size=3)},
        ).map(lambda data: envelope("ep_status_report", data)),
    )

    @examples(150)
    @given(st.lists(said, min_size=1, max_size=3))
    def check(bodies: list[bytes]) -> None:
        messages: list[Any] = [Said(endpoint_id, "results", body) for body in bodies]
        loop.collector._record(messages)

    check()
    assert all(letter.reason for letter in filed)
    last = receipt.tasks[FUNCTION][-1]
    good: list[Any] = [Said(endpoint_id, "results", wire.encode(wire.Result(last, "value")))]
    loop.collector._record(good)
    assert loop.ledger.tasks([last])[0].completed_at is not None
