"""Messages come back as they were sent, and nothing that is none is taken for one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st

from farcall import wire
from farcall.errors import WireError

#: Any text that Python can hold, lone surrogates and NUL included.
TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=20)
NUMBER = st.one_of(st.integers(), st.floats(allow_nan=False))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBER, TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=8,
)
OBJECT = st.dictionaries(TEXT, JSON, max_size=3)
TRANSITION = st.builds(wire.Transition, st.integers(), TEXT, TEXT, TEXT)
RESULT = st.builds(
    wire.Result,
    TEXT,
    TEXT,
    st.none() | OBJECT,
    st.none() | st.builds(wire.ErrorDetails, TEXT, TEXT),
    st.lists(TRANSITION, max_size=3),
    st.none() | TEXT,
)
OUTPUT = st.builds(wire.Output, TEXT, st.sampled_from(wire.STREAMS), st.integers(min_value=0), TEXT)


@st.composite
def task_batches(draw: st.DrawFn) -> wire.TaskBatch:
    code = st.builds(wire.FunctionCode, TEXT, st.none() | TEXT)
    functions = draw(st.dictionaries(TEXT, code, min_size=1, max_size=3))
    task = st.builds(wire.BatchedTask, TEXT, st.sampled_from(sorted(functions)), TEXT, OBJECT, st.booleans())
    return wire.TaskBatch(functions, draw(st.lists(task, max_size=3)))


@st.composite
def dead_letters(draw: st.DrawFn) -> wire.DeadLetter:
    body = draw(st.binary(max_size=50))
    return wire.DeadLetter(draw(TEXT), draw(TEXT), body, len(body) + draw(st.integers(min_value=0)))


MESSAGES: dict[type, st.SearchStrategy[Any]] = {
    wire.Task: st.builds(wire.Task, TEXT, TEXT),
    wire.TaskBatch: task_batches(),
    wire.Result: RESULT,
    wire.ResultBatch: st.builds(wire.ResultBatch, st.lists(RESULT, max_size=3)),
    wire.OutputBatch: st.builds(wire.OutputBatch, st.lists(OUTPUT, max_size=3)),
    wire.DeadLetter: dead_letters(),
    wire.StatusReport: st.builds(
        wire.StatusReport,
        TEXT,
        OBJECT,
        st.dictionaries(TEXT, st.lists(TRANSITION, max_size=3), max_size=3),
        st.none() | st.lists(TEXT, max_size=3),
    ),
    wire.Command: st.builds(wire.Command, TEXT, TEXT),
}
MESSAGE = st.one_of(*MESSAGES.values())


def test_every_type_of_message_is_tried_here() -> None:
    assert set(MESSAGES) == set(wire.Message.__args__)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: str(kind.__name__))
def test_a_message_comes_back_as_it_was(kind: type) -> None:
    @examples(100)
    @given(MESSAGES[kind])
    def check(message: wire.Message) -> None:
        assert wire.decode(wire.encode(message)) == message

    check()


def decode_or_refuse(body: bytes) -> None:
    """Anything but WireError is an error."""
    try:
        wire.decode(body)
    except WireError as error:
        assert str(error)


@examples(300)
@given(st.binary(max_size=200))
def test_of_arbitrary_bytes_none_does_harm(body: bytes) -> None:
    decode_or_refuse(body)
    decode_or_refuse(wire.ENVELOPE_VERSION + body)


#: What json.loads alone can give: also numbers that are none.
_ANY_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=5,
)
FIELDS = (
    ("functions", "tasks", "results", "pieces", "task_id", "data", "details", "error_details", "task_statuses"),
    ("exception_object", "endpoint_id", "global_state", "holds", "body", "size", "queue", "reason", "command"),
    ("stream", "start", "text", "payload", "options", "ep_status_report"),
)
TYPES = ("task", "task_batch", "result", "result_batch", "output_batch", "dead_letter", "ep_status_report", "command")


@examples(150)
@given(st.data())
def test_of_arbitrary_documents_none_does_harm(data: st.DataObject) -> None:
    fields = st.sampled_from([name for names in FIELDS for name in names])
    inner = data.draw(st.dictionaries(fields, _ANY_JSON, max_size=6))
    document = data.draw(
        st.one_of(_ANY_JSON, st.builds(lambda kind: {"message_type": kind, "data": inner}, st.sampled_from(TYPES)))
    )

    decode_or_refuse(wire.ENVELOPE_VERSION + json.dumps(document).encode())


def _replace(document: Any, number: int, by: Any) -> Any:
    """The document with the value replaced that comes as the ``number``-th, counted from its outside."""
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, each in inner:
            places.append((value, key))
            walk(each)

    walk(document)
    container, key = places[number % len(places)]
    container[key] = by
    return document


@examples(200)
@given(MESSAGE, st.integers(min_value=0, max_value=100), _ANY_JSON)
def test_a_message_with_a_wrong_value_in_it_does_no_harm(message: wire.Message, number: int, value: Any) -> None:
    document = json.loads(wire.encode(message)[1:].decode("utf-8", "surrogatepass"))

    decode_or_refuse(wire.ENVELOPE_VERSION + json.dumps(_replace(document, number, value)).encode())


@examples(200)
@given(MESSAGE, st.data())
def test_a_message_that_was_cut_off_is_refused(message: wire.Message, data: st.DataObject) -> None:
    body = wire.encode(message)
    length = data.draw(st.integers(min_value=0, max_value=len(body) - 1))

    with pytest.raises(WireError):
        wire.decode(body[:length])


@examples(200)
@given(MESSAGE, st.data())
def test_a_message_with_other_bytes_in_it_does_no_harm(message: wire.Message, data: st.DataObject) -> None:
    body = bytearray(wire.encode(message))
    for _ in range(data.draw(st.integers(min_value=1, max_value=5))):
        body[data.draw(st.integers(min_value=0, max_value=len(body) - 1))] = data.draw(st.integers(0, 255))

    decode_or_refuse(bytes(body))


@pytest.mark.parametrize(
    "text",
    [
        '{"message_type": "command", "data": {"command": "' + "9" * 10_000 + '"}}',
        '{"message_type": "output_batch", "data": {"pieces": [{"task_id": "a", "stream": ["stdout"]}]}}',
        '{"message_type": "output_batch", "data": {"pieces": 5}}',
        '{"message_type": "result", "data": {"task_id": "a", "data": "b", "task_statuses": [{"timestamp": Infinity}]}}',
        '{"message_type": "result", "data": {"task_id": "a", "data": "b", "task_statuses": [{"timestamp": NaN}]}}',
        '{"message_type": "dead_letter", "data": {"queue": "a", "reason": "b", "body": "é", "size": 1}}',
        '{"message_type": ["result"], "data": {}}',
        "[" * 100_000,
        '{"message_type": "result", "data": ' + '{"details": ' * 100_000,
        "9" * 10_000,
    ],
)
def test_what_might_be_read_in_the_wrong_way_does_no_harm(text: str) -> None:
    decode_or_refuse(wire.ENVELOPE_VERSION + text.encode())


@examples(200)
@given(st.lists(TEXT, max_size=5))
def test_packed_texts_come_apart_as_they_were(texts: list[str]) -> None:
    assert wire.unpack_buffers(wire.pack_buffers(texts)) == texts


@examples(300)
@given(st.text(st.sampled_from("0123456789\n+-_ x\u0663"), max_size=30) | TEXT)
def test_a_text_that_is_not_packed_is_refused_or_packs_to_itself(text: str) -> None:
    try:
        buffers = wire.unpack_buffers(text)
    except WireError:
        return
    # Up to zeros in front of lengths.
    assert wire.unpack_buffers(wire.pack_buffers(buffers)) == buffers
