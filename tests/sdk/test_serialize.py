"""Values, functions and exceptions as text, and back; also in another process, and as Globus Compute writes them."""

from __future__ import annotations

import datetime
import functools
import importlib
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from farcall import serialize as strategies
from farcall.errors import DeserializationError, SerializationError
from farcall.serialize import (
    Serializer,
    deserialize,
    deserialize_exception,
    deserialize_function,
    serialize,
    serialize_exception,
)
from farcall.wire import unpack_buffers

#: What globus_compute_sdk 4.19 wrote for `def triple(x): return x*3`.
TRIPLE_AS_GLOBUS_WRITES_IT = {
    "03": "03\ngASVLQAAAAAAAACMBnRyaXBsZZSMHmRlZiB0cmlwbGUoeCk6CiAgICByZXR1cm4geCozCpSGlC4=\n",
    "04": "04\ngASVLQAAAAAAAACMBnRyaXBsZZSMHmRlZiB0cmlwbGUoeCk6CiAgICByZXR1cm4geCozCpSGlC4=\n",
    "st": "st\ntriple:def triple(x):\n    return x*3\n",
    "sd": "sd\ntriple:def triple(x):\n    return x*3\n",
    "10": "10\n04\n:gASVLQAAAAAAAACMBnRyaXBsZZSMHmRlZiB0cmlwbGUoeCk6CiAgICByZXR1cm4geCozCpSGlC4=\n"
    ":01\n:bm90IGEgcGlja2xl\n:sd\n:triple:def triple(x):\n    return x*3\n"
    ":st\n:triple:def triple(x):\n    return x*3\n",
    "12": "12\n40\nst\ntriple:def triple(x):\n    return x*3\n40\nsd\ntriple:def triple(x):\n    return x*3\n",
}


@pytest.mark.parametrize(
    "value",
    [
        42,
        (1, "a", b"b", None, True, 1.5, float("inf")),
        {"a": [1, {2}, frozenset({3})], "s": "\ud800 \N{SNOWMAN}"},
        datetime.date(2024, 2, 29),
        Path("x"),
        [],
    ],
)
def test_a_value_comes_back(value: Any) -> None:
    assert deserialize(serialize(value)) == value


def test_plain_data_is_written_as_globus_compute_writes_it() -> None:
    assert serialize((1,)) == "00\ngASVBQAAAAAAAABLAYWULg==\n"
    assert serialize(42) == "00\ngARLKi4=\n"


@pytest.mark.parametrize(("text", "value"), [("11\n[1]", [1]), ("00\ngAR9lC4=\n", {}), ("13\n6\n11\n[1]", [1])])
def test_data_that_others_wrote_is_read(text: str, value: Any) -> None:
    assert deserialize(text) == value


@pytest.mark.parametrize("identifier", sorted(TRIPLE_AS_GLOBUS_WRITES_IT))
def test_code_that_globus_compute_wrote_is_read(identifier: str) -> None:
    text = TRIPLE_AS_GLOBUS_WRITES_IT[identifier]

    assert deserialize(text)(4) == 12
    assert deserialize_function(text, "3.9.1")(4) == 12


def test_pickled_code_of_long_ago_is_read_and_no_longer_written() -> None:
    assert deserialize("02\ngASVFAAAAAAAAACMCGJ1aWx0aW5zlIwDbGVulJOULg==\n") is len
    with pytest.raises(SerializationError, match="only read"):
        Serializer(strategies.PickleCode).serialize(len)


@pytest.mark.parametrize("strategy", [each for each in strategies.STRATEGIES if each is not strategies.PickleCode])
def test_each_way_reads_what_it_writes(strategy: type[strategies.Strategy]) -> None:
    text = strategy().serialize(source_only if strategy.for_code else {"a": [1]})

    assert text.startswith(strategy.identifier)
    back = deserialize(text)
    assert (back(4) if strategy.for_code else back) == (9 if strategy.for_code else {"a": [1]})


def source_only(x: int) -> int:
    return 2 * x + 1


def uses_a_global(x: int) -> int:
    return source_only(x)


def annotated(x: Callable[..., Path], y: int = 2) -> Any:
    return (x, y)


def test_a_function_that_is_its_text_travels_both_ways() -> None:
    text = serialize(source_only)

    assert text.startswith("12\n")
    assert [part[:2] for part in unpack_buffers(text[3:])] == ["st", "01"]


def test_annotations_that_only_the_module_knows_do_not_matter() -> None:
    (source, _) = unpack_buffers(serialize(annotated)[3:])

    assert deserialize(source)(1) == (1, 2)


def with_default(path: Path = Path()) -> Path:
    return path


def test_a_function_that_is_more_than_its_text_travels_pickled() -> None:
    n = 3

    def closes_over() -> int:
        return n

    decorated = functools.lru_cache(source_only)
    for function in (uses_a_global, lambda: 1, closes_over, decorated, with_default, len):
        assert serialize(function).startswith("01\n")


def packing(x: int) -> str:
    import json

    return json.dumps(x)


def test_a_function_whose_own_import_hides_the_modules_keeps_its_source() -> None:
    assert "json" in globals()

    (source, _) = unpack_buffers(serialize(packing)[3:])

    assert deserialize(source)(1) == json.dumps(1)


def looking_around():
    from pathlib import Path

    return str(Path.cwd())


def test_a_function_whose_own_import_hides_a_class_of_the_modules_keeps_its_source() -> None:
    assert "Path" in globals()

    (source, _) = unpack_buffers(serialize(looking_around)[3:])

    assert deserialize(source)() == str(Path.cwd())


def test_the_source_is_used_where_the_module_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_on_my_laptop.py").write_text("def f(x):\n    return x + 1\n")
    with monkeypatch.context() as on_the_laptop:
        on_the_laptop.syspath_prepend(tmp_path)
        text = serialize(importlib.import_module("only_on_my_laptop").f)
        on_the_laptop.delitem(sys.modules, "only_on_my_laptop")

    assert deserialize_function(text)(1) == 2


def test_if_no_way_works_the_error_names_each() -> None:
    text = "12\n" + Serializer.pack_buffers(["st\nf:def f(:\n", "01\nbm90IGEgcGlja2xl\n"])

    with pytest.raises(DeserializationError, match=r"DillCode: .*PureSourceTextInspect: SyntaxError") as here:
        deserialize_function(text, sys.version.split()[0])
    with pytest.raises(DeserializationError, match=r"PureSourceTextInspect: .*DillCode: .*written by Python 3\.2\.1"):
        deserialize_function(text, "3.2.1")
    assert "written by" not in str(here.value)


def test_another_python_takes_the_source_first_and_the_same_the_pickle() -> None:
    pickled = strategies.DillCode().serialize(max)
    text = "12\n" + Serializer.pack_buffers(["st\nf:def f(*a):\n    return 'source'\n", pickled])

    assert deserialize_function(text, "3.2.1")(1, 2) == "source"
    assert deserialize_function(text, sys.version.split()[0])(1, 2) == 2
    assert deserialize_function(text)(1, 2) == 2


SCRIPT = """
import json, math, sys
from farcall.serialize import deserialize, deserialize_exception, serialize

FACTOR = 3
class Point:
    def __init__(self, x): self.x = x
    def twice(self): return self.x * 2
class Sub(Point):
    def twice(self): return super().twice() + 1
class Trouble(Exception): pass

def helper(n): return n * FACTOR
def uses_helper(n): return helper(n) + math.floor(2.5)
def factorial(n): return 1 if n < 2 else n * factorial(n - 1)
def even(n): return n == 0 or odd(n - 1)
def odd(n): return n != 0 and even(n - 1)
def uses_class(n): return Sub(n).twice()
def nested(n):
    def inner(m): return helper(m)
    return [inner(each) for each in range(n)]
def closure(n):
    def count(m): return 0 if m == 0 else 1 + count(m - 1)
    return lambda m: count(m) + n
def mutual():
    def a(n): return n == 0 or b(n - 1)
    def b(n): return n != 0 and a(n - 1)
    return a
def with_default(n, by=FACTOR): return n * by

cases = [(uses_helper, 2), (factorial, 5), (even, 4), (uses_class, 4), (nested, 3), (closure(2), 3), (mutual(), 6),
         (Point(4).twice, None), (lambda n: n + FACTOR, 1), (with_default, 2)]
if len(sys.argv) == 1:
    rows = [[serialize(f), serialize(() if a is None else (a,)), f() if a is None else f(a)] for f, a in cases]
    print(json.dumps([rows, serialize([Point(1), Sub(2)]), serialize(Trouble("x")), serialize({"f": helper})]))
else:
    value, error = json.loads(sys.argv[1])
    print(isinstance(deserialize(value), Point), type(deserialize_exception(error)) is Trouble)
"""


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., Any]:
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(SCRIPT))

    def run(*arguments: str) -> str:
        return subprocess.run([sys.executable, path, *arguments], check=True, capture_output=True, text=True).stdout

    return run


def test_bytecode_of_another_python_is_never_run() -> None:
    factor = 2
    written = serialize(lambda x: factor * x)

    with pytest.raises(DeserializationError, match=r"written by Python 2\.7\.18.*plain def"):
        deserialize_function(written, "2.7.18")
    assert deserialize_function(written)(4) == 8
    assert deserialize_function(serialize(len), "2.7.18")([1]) == 1


def test_what_a_script_defines_works_where_the_script_is_not(script: Callable[..., str]) -> None:
    functions, points, trouble, holder = json.loads(script())

    for code, arguments, expected in functions:
        assert deserialize_function(code)(*deserialize(arguments)) == expected
    assert [point.twice() for point in deserialize(points)] == [2, 5]
    assert type(deserialize(trouble)).__name__ == "Trouble"
    assert deserialize(holder)["f"](2) == 6


def test_an_object_that_comes_back_to_its_script_is_of_the_scripts_own_class(script: Callable[..., str]) -> None:
    _, points, trouble, _ = json.loads(script())
    sent_back = [serialize(deserialize(points)[0]), serialize_exception(deserialize(trouble))]

    assert script(json.dumps(sent_back)).strip() == "True True"


def test_what_cannot_be_sent_is_named_with_the_reason() -> None:
    with pytest.raises(SerializationError, match="'generator' cannot be sent"):
        serialize(each for each in "")


@pytest.mark.parametrize("text", ["", "zz\nabc", "00\n!!", "00\nAAAA", "11\n{", "12\n9\nst\n", "st\nf:x = 1\n", "01\n"])
def test_a_text_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(DeserializationError):
        deserialize(text)


def test_only_the_allowed_ways_are_read() -> None:
    careful = Serializer(allowed_deserializer_types=["farcall.serialize.JSONData", "globus_compute_sdk.*Code"])

    assert careful.deserialize("11\n[1]") == [1]
    with pytest.raises(DeserializationError, match="DillDataBase64 is not allowed here"):
        careful.deserialize(serialize(1))
    with pytest.raises(SerializationError, match="one way for code and one for data"):
        Serializer(allowed_deserializer_types=[strategies.JSONData])


def test_a_serialiser_is_found_by_the_names_that_globus_computes_users_write() -> None:
    for name in (
        "globus_compute_sdk.serialize.JSONData",
        "globus_compute_sdk.serialize.concretes.JSONData",
        "JSONData",
    ):
        assert Serializer.serialize_from_list([1], [name]) == "11\n[1]"


def test_the_first_way_that_can_is_taken() -> None:
    json_first = [strategies.JSONData, strategies.DillDataBase64]

    assert Serializer.serialize_from_list({1}, json_first).startswith("00\n")
    with pytest.raises(SerializationError, match="JSONData"):
        Serializer.serialize_from_list({1}, [strategies.JSONData])


def test_a_way_for_code_is_not_taken_for_data() -> None:
    with pytest.raises(SerializationError, match="DillCode is for code, one for data is needed"):
        Serializer(strategy_data=strategies.DillCode)
    with pytest.raises(SerializationError, match=r"no serialiser 'os\.path'"):
        Serializer(strategy_data="os.path")


def test_a_call_can_be_tried_without_being_sent() -> None:
    function, args, kwargs = Serializer().check_strategies(source_only, 3, y=4)

    assert (function(*args), kwargs) == (7, {"y": 4})


class NeedsTwo(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(a)


def test_an_exception_comes_back_with_its_class_and_arguments() -> None:
    text = serialize_exception(KeyError("a", 1))

    assert text is not None
    back = deserialize_exception(text)
    assert isinstance(back, KeyError)
    assert back.args == ("a", 1)


def test_an_exception_that_would_not_come_back_is_not_sent() -> None:
    assert serialize_exception(NeedsTwo(1, 2)) is None
    assert serialize_exception(ValueError(each for each in "")) is None


def test_no_exception_from_afar_ends_this_program_or_breaks_it() -> None:
    leaving = serialize_exception(SystemExit(3))

    assert leaving is not None
    assert deserialize_exception(leaving) is None
    assert deserialize_exception("00\nAAAA") is None
    assert deserialize_exception(serialize("no exception")) is None
