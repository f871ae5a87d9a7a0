"""Turn what stands in a configuration into dataclass fields, or say exactly where it is wrong."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from farcall.errors import ConfigurationError


@dataclasses.dataclass(frozen=True)
class Place:
    """Where in a configuration we are, so that a mistake can be pointed at."""

    source: str
    #: The keys that lead here, such as ``("engine", "provider")``.
    path: tuple[str, ...] = ()
    #: The line of each key in the file, where that is known.
    lines: Mapping[tuple[str, ...], int] = dataclasses.field(default_factory=dict)

    def at(self, key: str) -> Place:
        return dataclasses.replace(self, path=(*self.path, key))

    def error(self, message: str) -> ConfigurationError:
        line = self.lines.get(self.path)
        where = self.source if line is None else f"{self.source}, line {line}"
        return ConfigurationError(f"{where}: {'.'.join(self.path)}: {message}" if self.path else f"{where}: {message}")


def mapping_at(value: Any, place: Place) -> dict[str, Any]:
    """The value as a mapping; nothing at all counts as an empty one."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise place.error(f"expected keys with values, got {_name(value)}")
    return {str(key): item for key, item in value.items()}


def refuse_unknown_keys(mapping: Mapping[str, Any], known: Iterable[str], place: Place, elsewhere: str = "") -> None:
    """Raise for a key that means nothing here, and name the nearest that does. ``elsewhere`` is a hint."""
    names = sorted(known)
    for key in mapping:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            advice = f"did you mean {near[0]!r}?" if near else elsewhere or f"the keys here are {', '.join(names)}"
            raise place.at(key).error(f"there is no such key; {advice}")


def key_of(field: dataclasses.Field[Any]) -> str:
    """What an administrator calls a field."""
    return str(field.metadata.get("key") or field.name)


def read_fields(
    owner: type, fields: Iterable[dataclasses.Field[Any]], mapping: Mapping[str, Any], place: Place
) -> dict[str, Any]:
    """The values of those of ``fields`` that are set in ``mapping``, by field name."""
    hints = typing.get_type_hints(owner)
    values = {}
    for field in fields:
        key = key_of(field)
        if key in mapping:
            values[field.name] = _read(field, hints[field.name], mapping[key], place.at(key))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise place.error(f"{key!r} is missing: {field.metadata.get('help', 'it has no default')}")
    return values


def _read(field: dataclasses.Field[Any], hint: Any, raw: Any, place: Place) -> Any:
    parse = field.metadata.get("parse")
    inner = next((choice for choice in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(choice)), None)
    if parse is None and inner is not None and raw is not None:
        return _read_dataclass(inner, raw, place)
    try:
        value = parse(raw) if parse and raw is not None else convert(hint, raw)
    except ValueError as error:
        raise place.error(str(error)) from error
    minimum = field.metadata.get("minimum")
    if minimum is not None and value is not None and value < minimum:
        raise place.error(f"must be at least {minimum:g}, got {raw!r}")
    return value


def _read_dataclass(owner: Any, raw: Any, place: Place) -> Any:
    """Keys under a key."""
    fields = dataclasses.fields(owner)
    mapping = mapping_at(raw, place)
    refuse_unknown_keys(mapping, map(key_of, fields), place)
    return owner(**read_fields(owner, fields, mapping, place))


def convert(hint: Any, raw: Any) -> Any:
    """The value as the type that a field asks for. Raises ValueError with a sentence.

    >>> convert(float, 3), convert(int | None, None), convert(tuple[str, ...], ["a", "b"])
    (3.0, None, ('a', 'b'))
    """
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(typing.get_args(hint), raw)
    if origin is tuple:
        return _convert_tuple(typing.get_args(hint), raw)
    if hint is Any or (isinstance(hint, type) and type(raw) is hint and not _is_odd_number(raw)):
        return raw
    if hint is float and type(raw) is int:
        return float(raw)
    raise ValueError(f"expected {_WANTED.get(hint, getattr(hint, '__name__', hint))}, got {_name(raw)}")


def _convert_union(choices: tuple[Any, ...], raw: Any) -> Any:
    if raw is None and type(None) in choices:
        return None
    real = [choice for choice in choices if choice is not type(None)]
    complaints = []
    for choice in real:
        try:
            return convert(choice, raw)
        except ValueError as error:
            complaints.append(str(error))
    raise ValueError("; or ".join(complaints))


def _convert_tuple(items: tuple[Any, ...], raw: Any) -> tuple[Any, ...]:
    if not isinstance(raw, list | tuple):
        raise ValueError(f"expected a list, got {_name(raw)}")
    if items[-1] is Ellipsis:
        return tuple(convert(items[0], item) for item in raw)
    if len(raw) != len(items):
        raise ValueError(f"expected a list of {len(items)}, got {len(raw)}")
    return tuple(convert(hint, item) for hint, item in zip(items, raw, strict=True))


def _is_odd_number(raw: Any) -> bool:
    return isinstance(raw, float) and not math.isfinite(raw)


_WANTED: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    dict: "keys with values",
}


def _name(raw: Any) -> str:
    return "nothing" if raw is None else f"{type(raw).__name__} {raw!r}"
