"""Ids as users write them and as the service knows them."""

from __future__ import annotations

import uuid

#: What an id may be given as.
UUIDLike = uuid.UUID | str


def as_id(value: UUIDLike, name: str) -> str:
    """The id in lower case with hyphens. Raises ValueError for what is none; ``name`` says which argument it was."""
    try:
        return str(value if isinstance(value, uuid.UUID) else uuid.UUID(value))
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{name} {value!r} is not a UUID such as 4b116d3c-1703-4f8f-9f6f-39921e5864df") from error


def as_optional_id(value: UUIDLike | None, name: str) -> str | None:
    return None if value is None else as_id(value, name)
