"""What agent and managers say to each other beside Parsl, each as one JSON text.

A manager says who it is (again and again, so that its silence means something), what runs and what was printed; the
agent says which calls it no longer wants. Unknown keys are ignored, so that either side may be the newer one.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from farcall.wire import Output

from .sightings import Node, Started


@dataclass(frozen=True, slots=True)
class News:
    """What a manager says. Without a node it is on its way out."""

    node: Node | None
    started: Sequence[Started] = ()
    printed: Sequence[Output] = ()


@dataclass(frozen=True, slots=True)
class Unwanted:
    """What the agent says: these calls are to end, with ``grace_s`` seconds between being asked to and being killed."""

    call_ids: Sequence[int]
    grace_s: float


def write_news(news: News) -> bytes:
    return _text(
        {
            "node": None if news.node is None else dataclasses.asdict(news.node),
            "started": _rows(news.started),
            "printed": _rows(news.printed),
        }
    )


def read_news(message: bytes) -> News:
    """Raises ValueError for what is none."""
    data = _read(message)
    try:
        node = data["node"]
        return News(
            None if node is None else Node(**{key: node.get(key) for key in Node.__slots__}),
            [Started(*row[: len(Started.__slots__)]) for row in data.get("started", ())],
            [Output(*row[: len(Output.__slots__)]) for row in data.get("printed", ())],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not what a manager says: {type(error).__name__}: {error}") from error


def write_unwanted(unwanted: Unwanted) -> bytes:
    return _text({"unwanted": list(unwanted.call_ids), "grace_s": unwanted.grace_s})


def read_unwanted(message: bytes) -> Unwanted:
    """Raises ValueError for what is none."""
    data = _read(message)
    try:
        return Unwanted([int(call_id) for call_id in data["unwanted"]], float(data["grace_s"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"not what an agent says: {type(error).__name__}: {error}") from error


def _rows(values: Iterable[Any]) -> list[list[Any]]:
    return [[getattr(value, name) for name in value.__slots__] for value in values]


def _text(data: Any) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode()


def _read(message: bytes) -> dict[str, Any]:
    data = json.loads(message)
    if not isinstance(data, dict):
        raise ValueError(f"expected an object, got {type(data).__name__}")
    return data
