"""The kinds of values in requests that marshmallow does not know, each with what the OpenAPI document says of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
from marshmallow import ValidationError, fields

#: Other spellings (no hyphens, braces) are refused: answers repeat an id as the text that was sent.
UUID_PATTERN = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)

#: Objects that the service only keeps, such as an endpoint's metadata, may take this much as JSON.
MAX_OBJECT_BYTES = 1024 * 1024


def uuid_text(value: object) -> str | None:
    """A UUID in lower case, or None for anything else."""
    return value.lower() if isinstance(value, str) and UUID_PATTERN.fullmatch(value) else None


class Id(fields.String):
    """A UUID as text."""

    def __init__(self, **kwargs: Any) -> None:
        metadata = {"format": "uuid", **kwargs.pop("metadata", {})}
        super().__init__(metadata=metadata, **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> str:
        text = uuid_text(value)
        if text is None:
            raise ValidationError(f"{_shown(value)} is not a UUID such as 0b2d9a3e-5c1f-4f6e-9d0a-7d1c1e2f3a4b")
        return text


class Text(fields.String):
    """Text without the character NUL, which PostgreSQL cannot keep."""

    def __init__(self, **kwargs: Any) -> None:
        metadata = {"pattern": "^[^\\u0000]*$", **kwargs.pop("metadata", {})}
        super().__init__(metadata=metadata, **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> str:
        text = super()._deserialize(value, attr, data, **kwargs)
        if "\0" in text:
            raise ValidationError("the character NUL is not allowed in text")
        return text


class Flag(fields.Field[bool]):
    """true or false, and nothing that merely looks like it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(metadata={"type": "boolean", **kwargs.pop("metadata", {})}, **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> bool:
        if not isinstance(value, bool):
            raise ValidationError(f"{_shown(value)} is neither true nor false")
        return value


class JsonObject(fields.Field[dict[str, Any]]):
    """Any JSON object that the service keeps as it is."""

    def __init__(self, **kwargs: Any) -> None:
        described = {"type": "object", "additionalProperties": True, **kwargs.pop("metadata", {})}
        super().__init__(metadata=described, **kwargs)

    def _deserialize(
        self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any
    ) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValidationError(f"{_shown(value)} is not an object")
        try:
            size = len(orjson.dumps(value))
        except (TypeError, ValueError) as error:
            # It can be read deeper than it can be written.
            raise ValidationError("the object is nested too deeply") from error
        if size > MAX_OBJECT_BYTES:
            raise ValidationError(f"the object takes {size} bytes; the limit is {MAX_OBJECT_BYTES}")
        return value


class Payloads(fields.Field[dict[str, list[str]]]):
    """Function id -> packed arguments, a text a task. The lists are checked whole: a field a task would be slow."""

    def __init__(self, **kwargs: Any) -> None:
        described = {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": {
                "type": "array",
                "minItems": 1,
                "items": {"type": "string", "pattern": "^[^\\u0000]*$"},
            },
            **kwargs.pop("metadata", {}),
        }
        super().__init__(metadata=described, **kwargs)

    def _deserialize(
        self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any
    ) -> dict[str, list[str]]:
        if not isinstance(value, dict) or not value:
            raise ValidationError("an object is needed: function id -> list of packed arguments")
        checked: dict[str, list[str]] = {}
        for key, payloads in value.items():
            function_id = uuid_text(key)
            if function_id is None:
                raise ValidationError({key: [f"{_shown(key)} is not a function's id (a UUID)"]})
            if function_id in checked:
                raise ValidationError({key: ["the function is named twice"]})
            wrong = _wrong_payload(payloads)
            if wrong is not None:
                raise ValidationError({key: [wrong]})
            checked[function_id] = payloads
        return checked


def _wrong_payload(payloads: Any) -> str | None:
    if not isinstance(payloads, list) or not payloads:
        return "a list of packed arguments is needed, one text a task"
    if set(map(type, payloads)) != {str}:
        number = next(number for number, payload in enumerate(payloads) if not isinstance(payload, str))
        return f"number {number} is {_shown(payloads[number])}, not a text"
    if any("\0" in payload for payload in payloads):
        return "the character NUL is not allowed in packed arguments"
    return None


class Moment(fields.Field[float]):
    """A time as ISO 8601; without a zone it is UTC. Loaded as seconds since 1970."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(metadata={"type": "string", "format": "date-time", **kwargs.pop("metadata", {})}, **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> float:
        try:
            # An unescaped plus sign of a zone arrives as a space.
            moment = datetime.fromisoformat(str(value).replace(" ", "+") if "T" in str(value) else str(value))
            return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
        except (ValueError, OverflowError) as error:
            raise ValidationError(f"{_shown(value)} is not a time such as 2026-01-31T12:00:00Z") from error


def iso(seconds: float) -> str:
    """Seconds since 1970 as answers write them: 2021-05-05T15:00:00.000000+00:00."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
