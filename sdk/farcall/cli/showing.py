"""What the commands print: the same facts as lines for people or as JSON for programs."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import typer


def show_json(document: Any) -> None:
    """What JSON cannot hold is shown as Python would show it."""
    typer.echo(json.dumps(document, indent=2, default=repr))


def show_facts(facts: Mapping[str, Any]) -> None:
    """A line for each, with the names in one column; what is not known is left out."""
    known = {name: value for name, value in facts.items() if value not in (None, "")}
    width = max(map(len, known), default=0)
    for name, value in known.items():
        first, *more = str(value).splitlines() or [""]
        typer.echo(f"{name:<{width}}  {first}")
        for line in more:
            typer.echo(f"{'':<{width}}  {line}")


def show_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns as wide as they must be; nothing is cut off."""
    lines = [tuple(headings), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        typer.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())


def moment(seconds: float) -> str:
    """A time in the time zone of who reads it."""
    return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(" ", timespec="milliseconds")


def local(iso: str | None) -> str:
    """A time as the service writes it, in the time zone of who reads it."""
    if not iso:
        return ""
    return datetime.datetime.fromisoformat(iso).astimezone().isoformat(" ", timespec="seconds")
