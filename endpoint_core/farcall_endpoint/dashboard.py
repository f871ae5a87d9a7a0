"""``farcall-endpoint status --watch``: blocks, workers and tasks of an endpoint on this machine, as they change."""

from __future__ import annotations

import datetime
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from . import pidfile
from .nowfile import read_now
from .pidfile import State

#: How often the file is looked at; what is shown changes no more often.
PERIOD_S = 1.0

#: Moments in the line that shows how the number of blocks has changed.
MOST_MOMENTS = 60

_BARS = " ▁▂▃▄▅▆▇█"


def watch(directory: Path, *, moments: Iterator[None] | None = None) -> None:
    """Show it until interrupted: in place on a terminal, else as a line for each change."""
    ticks = moments if moments is not None else _seconds()
    if sys.stdout.isatty():
        _live(directory, ticks)
    else:
        _lines(directory, ticks, typer.echo)


def _lines(directory: Path, moments: Iterator[None], tell: Callable[[str], None]) -> None:
    shown = ""
    for _ in moments:
        line = summary(_now(directory))
        if line != shown:
            shown = line
            tell(f"{datetime.datetime.now():%H:%M:%S} {line}")


def _live(directory: Path, moments: Iterator[None]) -> None:
    from rich.live import Live  # late: most commands draw nothing

    history: deque[int] = deque(maxlen=MOST_MOMENTS)
    with Live(auto_refresh=False) as live:
        for _ in moments:
            now = _now(directory)
            history.append(_running(now))
            live.update(_panel(directory.name, now, history), refresh=True)


def _panel(name: str, now: Mapping[str, Any] | None, history: deque[int]) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"The endpoint {name!r} at {datetime.datetime.now():%H:%M:%S}", title_justify="left")
    for column in ("Block", "State", "What its system says"):
        table.add_column(column, overflow="fold")
    for block in (now or {}).get("blocks", ()):
        lines = str(block.get("message") or "").strip().splitlines()
        table.add_row(str(block.get("id")), str(block.get("state")), lines[-1] if lines else "")
    most = max(int((now or {}).get("max_blocks") or 1), *history, 1)
    parts: list[Any] = [table, Text(summary(now)), Text(f"running blocks, to {most}: {sparkline(history, most)}")]
    return Group(*parts, *(Text(str(trouble), style="bold red") for trouble in (now or {}).get("troubles", ())))


def summary(now: Mapping[str, Any] | None) -> str:
    """One line."""
    if now is None:
        return "the endpoint is not running"
    states = Counter(str(block.get("state")) for block in now["blocks"])
    blocks = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none"
    line = (
        f"blocks: {blocks} ({now['min_blocks']} to {now['max_blocks']}); "
        f"workers: {now['workers']}, {now['busy_workers']} busy; "
        f"tasks: {now['waiting_tasks']} waiting, {now['handed_over_tasks']} with workers, {now['finished_tasks']} ended"
    )
    return f"{line}; {' '.join(str(now['troubles'][0]).split())}" if now["troubles"] else line


def sparkline(numbers: deque[int], most: int) -> str:
    """Numbers from 0 to ``most`` as a line of bars.

    >>> sparkline(deque([0, 1, 2, 4]), 4)
    ' ▂▄█'
    """
    return "".join(_BARS[round(min(number, most) * (len(_BARS) - 1) / most)] for number in numbers)


def _running(now: Mapping[str, Any] | None) -> int:
    return sum(block.get("state") == "running" for block in (now or {}).get("blocks", ()))


def _now(directory: Path) -> dict[str, Any] | None:
    return read_now(directory) if pidfile.state_of(directory) is State.RUNNING else None


def _seconds() -> Iterator[None]:
    while True:
        yield
        time.sleep(PERIOD_S)
