"""Values, functions and exceptions as text, and back.

The text is Globus Compute's, so that either side may be its SDK or its endpoint; :mod:`farcall.strategies` has the
ways. Loading runs code that the text brings along: only load what your own tasks sent or returned.
"""

from __future__ import annotations

import base64
import binascii
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

from farcall import wire
from farcall.errors import DeserializationError, SerializationError, described
from farcall.strategies import (
    IDENTIFIER_LENGTH,
    RAISED_BY_LOADING,
    STRATEGIES,
    AllCodeStrategies,
    AllDataStrategies,
    CombinedCode,
    DefaultCode,
    DillCode,
    DillCodeSource,
    DillCodeTextInspect,
    DillDataBase64,
    JSONData,
    PickleCode,
    PureSourceDill,
    PureSourceTextInspect,
    Strategy,
    Strategylike,
    first_that_loads,
    parts_of,
    resolve_strategy,
    strategy_of,
)

__all__ = [
    "serialize",
    "deserialize",
    "deserialize_function",
    "serialize_exception",
    "deserialize_exception",
    "Serializer",
    "ComputeSerializer",
    "Strategy",
    "STRATEGIES",
    "AllCodeStrategies",
    "AllDataStrategies",
    "CombinedCode",
    "DefaultCode",
    "DillCode",
    "DillCodeSource",
    "DillCodeTextInspect",
    "DillDataBase64",
    "JSONData",
    "PickleCode",
    "PureSourceDill",
    "PureSourceTextInspect",
]

_DILL_DATA = DillDataBase64()
_DEFAULT_CODE = DefaultCode()
#: Identifiers whose body is pickled and so tied to the minor version of Python that wrote it.
_PICKLED_CODE = (DillCode.identifier, PickleCode.identifier)
_ONLY_BYTECODE = (
    "Its bytecode means nothing to another version, and its source does not stand by itself: it is a lambda, is "
    "decorated, was typed at a prompt, or uses names from outside. Use that version of Python on both sides, or put it "
    "into a file as a plain def that imports and defines all it needs."
)


class Serializer:
    """A choice of ways: how functions and values are written, and which ways are read.

    ``strategy_code`` and ``strategy_data`` are classes of this module, instances of them, or import paths.
    ``allowed_deserializer_types`` names the only ways to be read; ``globus_compute_sdk.*Code`` and
    ``globus_compute_sdk.*Data`` stand for all of a kind. Without it, all are.
    """

    def __init__(
        self,
        strategy_code: Strategylike | None = None,
        strategy_data: Strategylike | None = None,
        *,
        allowed_deserializer_types: Iterable[Strategylike] | None = None,
    ) -> None:
        self.code_serializer = (
            _DEFAULT_CODE if strategy_code is None else resolve_strategy(strategy_code, for_code=True)
        )
        self.data_serializer = _DILL_DATA if strategy_data is None else resolve_strategy(strategy_data, for_code=False)
        self.allowed_deserializer_types = _allowed(allowed_deserializer_types)

    def serialize(self, value: Any) -> str:
        """A function by the way for code, anything else by the way for data."""
        if callable(value):
            return _write(self.code_serializer, value)
        return _write(self.data_serializer, value)

    def serialize_data(self, value: Any) -> str:
        """By the way for data, whatever it is."""
        return _write(self.data_serializer, value)

    def deserialize(self, text: str) -> Any:
        """The value, if the way that wrote it is allowed."""
        strategy = strategy_of(text)
        allowed = self.allowed_deserializer_types
        if allowed and type(strategy) not in allowed:
            names = ", ".join(sorted(each.__name__ for each in allowed))
            raise DeserializationError(f"{type(strategy).__name__} is not allowed here; allowed are {names}")
        return deserialize(text)

    def unpack_and_deserialize(self, packed: str) -> list[Any]:
        """The three values of a task buffer: function, positional and keyword arguments."""
        buffers = wire.unpack_buffers(packed)
        if len(buffers) != 3:
            raise DeserializationError(f"a task has three buffers, this one {len(buffers)}")
        return [self.deserialize(buffer) for buffer in buffers]

    def check_strategies(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """Send a call there and back without sending it: the function, its arguments and keyword arguments."""
        return self.unpack_and_deserialize(
            self.pack_buffers([self.serialize(part) for part in (function, args, kwargs)])
        )

    @staticmethod
    def serialize_from_list(value: Any, strategies: Iterable[Strategylike]) -> str:
        """By the first of these ways that can; by the default where none is named."""
        failures = []
        for named in strategies:
            try:
                return _write(resolve_strategy(named, for_code=callable(value)), value)
            except SerializationError as error:
                failures.append(f"{named}: {error}")
        if failures:
            raise SerializationError(f"no way could write the {type(value).__name__}: {'; '.join(failures)}")
        return serialize(value)

    @staticmethod
    def pack_buffers(buffers: list[str]) -> str:
        return wire.pack_buffers(buffers)

    @staticmethod
    def unpack_buffers(packed: str) -> list[str]:
        return wire.unpack_buffers(packed)


#: The name that Globus Compute's users know.
ComputeSerializer = Serializer


def serialize(value: Any) -> str:
    """The text of a value or function, written the default way."""
    return _write(_DEFAULT_CODE if callable(value) else _DILL_DATA, value)


def deserialize(text: str) -> Any:
    """The value or function of a text, whichever way wrote it. Raises :class:`DeserializationError`."""
    strategy = strategy_of(text)
    try:
        return strategy.deserialize(text)
    except DeserializationError:
        raise
    except RAISED_BY_LOADING as error:
        raise DeserializationError(
            f"{type(strategy).__name__} text cannot be loaded here: {described(error)}"
        ) from error


def deserialize_function(code: str, python_version: str | None = None) -> Callable[..., Any]:
    """The function of one code buffer, by the way most likely to work here.

    ``python_version`` is the writer's, such as ``3.11.7``. Pickled code comes first where the minor version is the same
    or not known, because it alone is the whole function; otherwise the source comes first, and bytecode is refused: an
    interpreter that runs another version's may crash, or worse, compute something. What fails gives way to the next; if
    all fail the error names every attempt.
    """
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    other_version = python_version is not None and _minor(python_version) != here
    parts = sorted(parts_of(code), key=lambda part: part.startswith(_PICKLED_CODE) == other_version)
    versions = f"It was written by Python {python_version}, this is {sys.version.split()[0]}."
    if other_version:
        parts = [part for part in parts if not _holds_bytecode(part)]
        if not parts:
            raise DeserializationError(f"the function cannot be loaded here. {versions} {_ONLY_BYTECODE}")
    try:
        return cast("Callable[..., Any]", first_that_loads(parts))
    except DeserializationError as error:
        hint = f" {versions}" if other_version else ""
        raise DeserializationError(f"the function cannot be loaded here: {error}.{hint}") from error


def serialize_exception(error: BaseException) -> str | None:
    """The text of an exception without its traceback; None where it cannot be written or would not come back."""
    try:
        text = _DILL_DATA.serialize(error)
        return text if isinstance(_DILL_DATA.deserialize(text), BaseException) else None
    except Exception:  # the exception's own class decides what may happen here
        return None


def deserialize_exception(text: str, load: Callable[[str], Any] = deserialize) -> Exception | None:
    """The exception of a text, read by ``load``; None where it cannot be rebuilt here or ``load`` does not allow it.

    What would end the program, such as SystemExit, is not brought back either: that was the worker's end, not ours.
    """
    try:
        error = load(text)
    except RAISED_BY_LOADING:  # the exception's own class decides what may happen here
        return None
    return error if isinstance(error, Exception) else None


def _write(strategy: Strategy, value: Any) -> str:
    try:
        return strategy.serialize(value)
    except SerializationError:
        raise
    except Exception as error:  # pickling asks the value's own methods, which may raise anything
        name = (callable(value) and getattr(value, "__name__", None)) or type(value).__name__
        raise SerializationError(f"{name!r} cannot be sent ({type(strategy).__name__}): {described(error)}") from error


def _allowed(named: Iterable[Strategylike] | None) -> frozenset[type[Strategy]]:
    kinds = frozenset(kind for name in named or () for kind in _meant(name))
    if kinds and len({kind.for_code for kind in kinds}) != 2:
        raise SerializationError("allow at least one way for code and one for data, or name none at all")
    return kinds


def _meant(name: Strategylike) -> Iterator[type[Strategy]]:
    wildcards = {"*Code": True, "*Data": False}
    for_code = wildcards.get(name.rpartition(".")[2]) if isinstance(name, str) else None
    if for_code is None:
        yield type(resolve_strategy(name))
    else:
        yield from (strategy for strategy in STRATEGIES if strategy.for_code == for_code)


def _holds_bytecode(part: str) -> bool:
    # dill rebuilds a code object by its function of this name; what is pickled by name alone has none.
    if not part.startswith(_PICKLED_CODE):
        return False
    try:
        return b"_create_code" in base64.b64decode(part[IDENTIFIER_LENGTH:].encode("ascii", "replace"))
    except binascii.Error:
        # Whoever tries to load it says what is wrong.
        return False


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
