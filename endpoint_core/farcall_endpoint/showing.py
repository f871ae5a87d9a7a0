"""What the commands show of endpoints: the same facts as a table for people or as JSON for programs."""

from __future__ import annotations

import datetime
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from . import directories, nowfile, pidfile
from .pidfile import State

#: What is not for a table.
_OF_NOW = ("blocks", "troubles")


def show_json(document: Any) -> None:
    typer.echo(json.dumps(document, indent=2))


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table with headings; where the output is no terminal, nothing of it is cut off."""
    from rich.console import Console  # late: most commands draw no table
    from rich.table import Table

    table = Table()
    for column in columns:
        # An id that is cut in two cannot be copied.
        table.add_column(column, overflow="fold", no_wrap=column == "Endpoint ID")
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, markup=False)
    console.print(table, width=None if console.is_terminal else 200)


def listed(directory: Path) -> dict[str, Any]:
    """A line of ``farcall-endpoint list``."""
    return {
        "name": directory.name,
        "status": pidfile.state_of(directory).value,
        "endpoint_id": directories.read_endpoint_id(directory),
    }


def local_facts(directory: Path) -> dict[str, Any]:
    """What can be known of an endpoint without asking the service."""
    facts = {**listed(directory), "directory": str(directory), "log": str(directory / directories.LOG_NAME)}
    holder = pidfile.read_holder(directory)
    if holder is not None:
        running = facts["status"] == State.RUNNING.value
        facts |= {"pid": holder.pid, "hostname": holder.hostname} if running else {"last_hostname": holder.hostname}
        facts["started"] = _moment(holder.started)
        now = nowfile.read_now(directory) if running else None
        facts |= {key: now[key] for key in _OF_NOW if key in now} if now else {}
    return facts


def service_facts(status: Mapping[str, Any]) -> dict[str, Any]:
    """What the service knows of an endpoint, out of its status document."""
    logs = status.get("logs") or [{}]
    latest = {**(status.get("details") or {}), **logs[0]}
    wanted = (
        "total_workers",
        "idle_workers",
        "managers",
        "outstanding_tasks",
        "pending_tasks",
        *(_OF_NOW if status.get("status") == "online" else ()),
    )
    facts = {"service_status": status.get("status"), "last_report": latest.get("timestamp")}
    return facts | {key: latest[key] for key in wanted if key in latest}


def show_facts(facts: Mapping[str, Any]) -> None:
    plain = {key: value for key, value in facts.items() if key not in _OF_NOW}
    rows = [[key.replace("_", " "), "-" if value is None else str(value)] for key, value in plain.items()]
    show_table(("", facts["name"]), rows[1:])
    for block in facts.get("blocks") or ():
        said = textwrap.indent(str(block.get("message") or "").strip(), "    ")
        typer.echo(f"Block {block.get('id')} is {block.get('state')}{f':{chr(10)}{said}' if said else '.'}")
    for trouble in facts.get("troubles") or ():
        typer.echo(f"Trouble: {trouble}")


def _moment(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")
