"""Values of all kinds come back as they were, and no text does harm but a DeserializationError."""

from __future__ import annotations

import base64
import collections
import dataclasses
import datetime
import enum
import math
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

import pytest
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st

from farcall import serialize as ways
from farcall.errors import DeserializationError
from farcall.serialize import (
    Serializer,
    deserialize,
    deserialize_exception,
    deserialize_function,
    serialize,
    serialize_exception,
)


class Colour(enum.Enum):
    RED = 1
    BLUE = "blue"


@dataclasses.dataclass(frozen=True)
class Point:
    x: object
    y: object


Pair = collections.namedtuple("Pair", ["left", "right"])

TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=20)
HASHABLE = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.complex_numbers(allow_nan=False),
        TEXT,
        st.binary(max_size=20),
        st.datetimes(timezones=st.none() | st.just(datetime.UTC)),
        st.dates(),
        st.timedeltas(),
        st.decimals(allow_nan=False),
        st.fractions(),
        st.uuids(),
        st.sampled_from(Colour),
        st.builds(range, st.integers(-9, 9), st.integers(-9, 9)),
        st.builds(PurePosixPath, st.text("ab/.", max_size=8)),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple),
        st.frozensets(inner, max_size=3),
        st.builds(Point, inner, inner),
        st.builds(Pair, inner, inner),
    ),
    max_leaves=6,
)
VALUE = st.recursive(
    HASHABLE | st.binary(max_size=20).map(bytearray),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(HASHABLE, inner, max_size=3),
        st.sets(HASHABLE, max_size=3),
        st.lists(inner, max_size=3).map(collections.deque),
        st.builds(Point, inner, inner),
    ),
    max_leaves=8,
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=8,
)


@examples(200)
@given(VALUE)
def test_any_value_comes_back_as_it_was(value: Any) -> None:
    back = deserialize(serialize(value))

    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize("way", [ways.JSONData, ways.AllDataStrategies, ways.DillDataBase64])
def test_what_json_knows_comes_back_by_each_way(way: type[ways.Strategy]) -> None:
    @examples(100)
    @given(JSON)
    def check(value: Any) -> None:
        back = deserialize(Serializer(strategy_data=way).serialize(value))

        # 1 is not True here.
        assert repr(back) == repr(value)

    check()


@examples(100)
@given(st.lists(VALUE, max_size=3), st.dictionaries(st.from_regex(r"\A[a-z]{1,5}\Z"), VALUE, max_size=3))
def test_any_arguments_of_a_call_come_back(args: list[Any], kwargs: dict[str, Any]) -> None:
    _, back_args, back_kwargs = Serializer().check_strategies(len, *args, **kwargs)

    assert back_args == tuple(args)
    assert back_kwargs == kwargs


@examples(100)
@given(VALUE)
def test_any_value_that_a_function_brings_along_comes_back(value: Any) -> None:
    def closes_over() -> Any:
        return value

    def has_default(it: Any = value) -> Any:
        return it

    assert deserialize_function(serialize(closes_over))() == value
    assert deserialize_function(serialize(has_default))() == value
    assert deserialize_function(serialize(lambda: value))() == value


@examples(100)
@given(st.sampled_from([ValueError, KeyError, OSError, ZeroDivisionError]), st.lists(VALUE, max_size=3))
def test_any_exception_comes_back_with_what_it_says(kind: type[Exception], arguments: list[Any]) -> None:
    error = kind(*arguments)
    text = serialize_exception(error)
    back = deserialize_exception(text or "")

    assert type(back) is type(error)
    assert back.args == error.args


def test_numbers_that_are_none_come_back_too() -> None:
    assert math.isnan(deserialize(serialize(math.nan)))
    assert math.isnan(deserialize(Serializer(strategy_data=ways.JSONData).serialize([math.nan]))[0])


def load_or_refuse(load: Callable[[str], Any], text: str) -> None:
    """Anything but DeserializationError is an error."""
    try:
        load(text)
    except DeserializationError as error:
        assert str(error)


IDENTIFIERS = st.sampled_from(sorted(way.identifier for way in ways.STRATEGIES))


def load_of_another_python(text: str) -> object:
    return deserialize_function(text, "3.2.1")


@pytest.mark.parametrize("load", [deserialize, deserialize_function, load_of_another_python, deserialize_exception])
def test_of_arbitrary_texts_none_does_harm(load: Callable[[str], Any]) -> None:
    @examples(150)
    @given(IDENTIFIERS | TEXT, TEXT | st.binary(max_size=40).map(lambda raw: base64.b64encode(raw).decode()))
    def check(identifier: str, body: str) -> None:
        load_or_refuse(load, identifier + body)

    check()


def source_only(x: int) -> int:
    return 2 * x + 1


@examples(200)
@given(st.sampled_from([each for each in ways.STRATEGIES if each is not ways.PickleCode]), st.data())
def test_of_texts_that_were_cut_or_changed_none_does_harm(way: type[ways.Strategy], data: st.DataObject) -> None:
    text = way().serialize(source_only if way.for_code else {"a": [1, "b"]})
    place = data.draw(st.integers(min_value=0, max_value=len(text) - 1))
    by = data.draw(st.text(max_size=2))
    rest = text[place + 1 :] if data.draw(st.booleans()) else ""

    load_or_refuse(deserialize, text[:place] + by + rest)
    load_or_refuse(deserialize_function, text[:place] + by + rest)


@pytest.mark.parametrize(
    "text",
    [
        "st\nf:raise SystemExit(3)",
        "st\nf:import sys; sys.exit()",
        "st\nf:raise GeneratorExit",
        "12\n24\nst\nf:raise SystemExit(3)",
        "st\n" + "f" * 100 + ":" + "(" * 10_000,
        "st\nf:def f(): pass\0",
        "st\nf:\ud800",
        "st\n\ud800:f = 1",
        "11\n" + "[" * 100_000,
        "11\n" + "9" * 10_000,
        "13\n" + "9" * 5000 + "\n",
        "00\n" + base64.b64encode(b"cos\n_exit2\n.").decode(),
        "00\n" + base64.b64encode(b"cbuiltins\nexit\n(tR.").decode(),
        "00\n\ud800",
        "01\n" + base64.b64encode(b"\x80\x04\x95").decode(),
        "01\nA",
        "10\n01\n:\ud800:",
    ],
)
def test_what_might_end_the_program_or_be_read_in_the_wrong_way_is_refused(text: str) -> None:
    with pytest.raises(DeserializationError):
        deserialize(text)
    with pytest.raises(DeserializationError):
        deserialize_function(text)
    with pytest.raises(DeserializationError):
        deserialize_function(text, "3.2.1")
