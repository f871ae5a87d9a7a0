"""The ways in which a value or a function becomes text, with the identifiers that Globus Compute gave them.

A serialised value is its way's identifier (two characters and a newline) followed by the body. :mod:`farcall.serialize`
chooses between the ways.
"""

from __future__ import annotations

import binascii
import importlib
import json
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from farcall import pickling
from farcall.errors import DeserializationError, SerializationError, WireError, described
from farcall.source import function_from_source, self_contained_source
from farcall.wire import pack_buffers, unpack_buffers

IDENTIFIER_LENGTH = 3

#: Loading runs the user's code, which may raise anything, and may mean to end the program. Ctrl-C is not its doing.
RAISED_BY_LOADING = (Exception, SystemExit, GeneratorExit)


class Strategy:
    """One way. ``serialize`` gives the text with the identifier, ``deserialize`` takes it so."""

    identifier: ClassVar[str]
    for_code: ClassVar[bool]

    def serialize(self, value: Any) -> str:
        return self.identifier + self._write(value)

    def deserialize(self, text: str) -> Any:
        if not text.startswith(self.identifier):
            raise DeserializationError(f"{text[:IDENTIFIER_LENGTH]!r} is not the beginning of {type(self).__name__}")
        return self._read(text[IDENTIFIER_LENGTH:])

    def _write(self, value: Any) -> str:
        raise SerializationError(f"{type(self).__name__} is only read, for functions of long ago")

    def _read(self, body: str) -> Any:
        raise NotImplementedError


class DillDataBase64(Strategy):
    """Any value that dill can pickle. The default."""

    identifier = "00\n"
    for_code = False

    def _write(self, value: Any) -> str:
        return _base64(pickling.dump(value))

    def _read(self, body: str) -> Any:
        return pickling.load(_bytes(body))


class JSONData(Strategy):
    """Values that JSON knows, readable by programs that are not Python."""

    identifier = "11\n"
    for_code = False

    def _write(self, value: Any) -> str:
        return json.dumps(value)

    def _read(self, body: str) -> Any:
        return json.loads(body)


class DillCode(Strategy):
    """A function as dill pickles it, with the globals it uses. Works with the same minor version of Python."""

    identifier = "01\n"
    for_code = True

    def _write(self, function: Any) -> str:
        return _base64(pickling.dump_whole(function))

    def _read(self, body: str) -> Any:
        return pickling.load(_bytes(body))


class PickleCode(DillCode):
    """A function as ``pickle`` pickles it: only its name. Read, no longer written."""

    identifier = "02\n"

    def _write(self, function: Any) -> str:
        return Strategy._write(self, function)


class PureSourceTextInspect(Strategy):
    """A function's text as :func:`inspect.getsource` finds it."""

    identifier = "st\n"
    for_code = True

    def _write(self, function: Any) -> str:
        return f"{function.__name__}:{self._text_of(function)}"

    def _read(self, body: str) -> Any:
        name, _, source = body.partition(":")
        return function_from_source(name, source)

    def _text_of(self, function: Any) -> str:
        import inspect

        return inspect.getsource(function)


class PureSourceDill(PureSourceTextInspect):
    """A function's text as dill finds it: dedented, and also what was typed at the interpreter's prompt."""

    identifier = "sd\n"

    def _text_of(self, function: Any) -> str:
        return _dill_source(function)


class DillCodeTextInspect(PureSourceTextInspect):
    """Name and text (by inspect), pickled. Older clients wrote it."""

    identifier = "03\n"

    def _write(self, function: Any) -> str:
        return _base64(pickling.dump((function.__name__, self._text_of(function))))

    def _read(self, body: str) -> Any:
        name, source = pickling.load(_bytes(body))
        return function_from_source(name, source)


class DillCodeSource(DillCodeTextInspect):
    """Name and text (by dill), pickled. Older clients wrote it."""

    identifier = "04\n"

    def _text_of(self, function: Any) -> str:
        return _dill_source(function)


class _Several(Strategy):
    """The same thing in several ways; the reader takes the first that works for it."""

    ways: ClassVar[tuple[type[Strategy], ...]]

    def _write(self, value: Any) -> str:
        return self._join(_each_that_works(self.ways, value))

    def _read(self, body: str) -> Any:
        return first_that_loads(self._split(body))

    def _join(self, parts: list[str]) -> str:
        return pack_buffers(parts)

    def _split(self, body: str) -> list[str]:
        try:
            return unpack_buffers(body)
        except WireError as error:
            raise DeserializationError(f"{type(self).__name__}: {error}") from error


class AllDataStrategies(_Several):
    """JSON where the value allows it, and dill."""

    identifier = "13\n"
    for_code = False
    ways = (JSONData, DillDataBase64)


class AllCodeStrategies(_Several):
    """The function's text and its pickled code, for a worker whose Python is another."""

    identifier = "12\n"
    for_code = True
    ways = (PureSourceTextInspect, PureSourceDill, DillCode)


class CombinedCode(_Several):
    """What older clients wrote for the same purpose."""

    identifier = "10\n"
    for_code = True
    ways = (DillCodeSource, DillCode, DillCodeTextInspect, PureSourceDill, PureSourceTextInspect)

    def _join(self, parts: list[str]) -> str:
        return ":".join(f"{part[:IDENTIFIER_LENGTH]}:{part[IDENTIFIER_LENGTH:]}" for part in parts)

    def _split(self, body: str) -> list[str]:
        # The separator also stands in every source, so the bodies of the source forms, which come last, are cut at
        # the identifiers rather than at each colon.
        identifiers = [way.identifier for way in self.ways]
        starts = sorted({place for identifier in identifiers for place in _occurrences(body, f"{identifier}:")})
        ends = [start - 1 for start in starts[1:]] + [len(body)] * bool(starts)
        return [
            body[start : start + IDENTIFIER_LENGTH] + body[start + IDENTIFIER_LENGTH + 1 : end]
            for start, end in zip(starts, ends, strict=True)
        ]


class DefaultCode(_Several):
    """How functions travel when nobody chose a way: pickled, and also as text where the text is the whole function.

    It is read as ``12`` (or ``01`` where there is no such text), so older workers read it too.
    """

    identifier = "12\n"
    for_code = True

    def serialize(self, value: Any) -> str:
        pickled = DillCode().serialize(value)
        source = self_contained_source(value)
        if source is None:
            return pickled
        text = f"{PureSourceTextInspect.identifier}{value.__name__}:{source}"
        return self.identifier + pack_buffers([text, pickled])


STRATEGIES: tuple[type[Strategy], ...] = (
    DillDataBase64,
    JSONData,
    AllDataStrategies,
    DillCode,
    PickleCode,
    DillCodeTextInspect,
    DillCodeSource,
    PureSourceTextInspect,
    PureSourceDill,
    CombinedCode,
    AllCodeStrategies,
)
_BY_IDENTIFIER = {strategy.identifier: strategy() for strategy in STRATEGIES}


def strategy_of(text: str) -> Strategy:
    """The way that wrote this text."""
    strategy = _BY_IDENTIFIER.get(text[:IDENTIFIER_LENGTH])
    if strategy is None:
        raise DeserializationError(f"no serialised value begins with {text[:IDENTIFIER_LENGTH]!r}")
    return strategy


def parts_of(text: str) -> list[str]:
    """The single ways in a text; a text of one way is its own only part."""
    strategy = strategy_of(text)
    if isinstance(strategy, _Several):
        return strategy._split(text[IDENTIFIER_LENGTH:])
    return [text]


def first_that_loads(parts: Iterable[str]) -> Any:
    """The value of the first part that can be loaded here. If none can, the error names every attempt."""
    failures: list[str] = []
    for part in parts:
        try:
            return strategy_of(part).deserialize(part)
        except RAISED_BY_LOADING as error:
            name = type(_BY_IDENTIFIER.get(part[:IDENTIFIER_LENGTH])).__name__
            failures.append(f"{name}: {described(error)}")
    raise DeserializationError("; ".join(failures) or "nothing is there to be loaded")


def _dill_source(function: Any) -> str:
    source = importlib.import_module("dill.source")
    text: str = source.getsource(function, lstrip=True)
    return text


def _each_that_works(ways: Iterable[type[Strategy]], value: Any) -> list[str]:
    parts, failures = [], []
    for way in ways:
        try:
            parts.append(way().serialize(value))
        except Exception as error:  # each way has its own reasons; one that works is enough
            failures.append(f"{way.__name__}: {described(error)}")
    if not parts:
        raise SerializationError("; ".join(failures))
    return parts


def _occurrences(text: str, wanted: str) -> Iterator[int]:
    place = text.find(wanted)
    while place >= 0:
        # A part begins at the start or after the separator.
        if place == 0 or text[place - 1] == ":":
            yield place
        place = text.find(wanted, place + 1)


def _base64(raw: bytes) -> str:
    return binascii.b2a_base64(raw).decode("ascii")


def _bytes(body: str) -> bytes:
    try:
        return binascii.a2b_base64(body)
    except ValueError as error:
        raise DeserializationError(f"not base64: {error}") from error


#: What a strategy may be named by: the class, an instance, or an import path as Globus Compute's users write it.
Strategylike = Strategy | type[Strategy] | str


def resolve_strategy(named: Strategylike, *, for_code: bool | None = None) -> Strategy:
    """The strategy that was meant. Only known ones are found: a name from a request never makes us import anything."""
    if isinstance(named, str):
        package, _, name = named.rpartition(".")
        known = {strategy.__name__: strategy for strategy in STRATEGIES}
        if package.split(".")[0] not in ("farcall", "globus_compute_sdk", "") or name not in known:
            raise SerializationError(f"there is no serialiser {named!r}; there are {', '.join(known)}")
        named = known[name]
    strategy = named() if isinstance(named, type) else named
    if not isinstance(strategy, Strategy):
        raise SerializationError(f"{named!r} is not a serialiser of farcall.serialize")
    if for_code is not None and strategy.for_code != for_code:
        kind, wanted = ("code", "data") if strategy.for_code else ("data", "code")
        raise SerializationError(f"{type(strategy).__name__} is for {kind}, one for {wanted} is needed here")
    return strategy
