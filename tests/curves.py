"""How blocks follow the load: moments of an endpoint's own account of itself, as text or as an SVG picture."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

PATIENCE_S = 120
LOOK_PERIOD_S = 0.1


@dataclass(frozen=True)
class Moment:
    at_s: float
    blocks: int
    tasks: int


@dataclass
class Curve:
    """What was seen, the oldest first; each change once."""

    moments: list[Moment] = field(default_factory=list)
    news: threading.Condition = field(default_factory=threading.Condition, repr=False)

    def wait_for(self, what: Callable[[Moment], bool]) -> Moment:
        """The latest moment, once it is as wanted."""
        with self.news:
            is_there = self.news.wait_for(lambda: bool(self.moments) and what(self.moments[-1]), timeout=PATIENCE_S)
            assert is_there, f"in vain; the last that was seen: {self.moments[-5:]}"
            return self.moments[-1]

    @property
    def most_blocks(self) -> int:
        return max(moment.blocks for moment in self.moments)


@contextmanager
def watched(directory: Path) -> Iterator[Curve]:
    """Look at the file that the agent keeps, in a thread."""
    curve, began, is_over = Curve(), time.monotonic(), threading.Event()

    def look() -> None:
        while not is_over.wait(LOOK_PERIOD_S):
            try:
                now = json.loads((directory / "now.json").read_text())
            except (OSError, ValueError):
                continue
            blocks = sum(block["state"] in ("pending", "running") for block in now["blocks"])
            moment = Moment(time.monotonic() - began, blocks, now["waiting_tasks"] + now["handed_over_tasks"])
            with curve.news:
                if not curve.moments or curve.moments[-1].blocks != blocks or curve.moments[-1].tasks != moment.tasks:
                    curve.moments.append(moment)
                    curve.news.notify_all()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield curve
    finally:
        is_over.set()
        thread.join()


def text(moments: Sequence[Moment], *, width: int = 60) -> str:
    """A line for each change: when, how many blocks, and a bar for the tasks."""
    most = max([1, *(moment.tasks for moment in moments)])
    lines = [
        f"{moment.at_s:7.1f} s  blocks {moment.blocks:3}  tasks {moment.tasks:6}  "
        f"{'#' * (width * moment.tasks // most)}"
        for moment in moments
    ]
    return "\n".join(lines) + "\n"


def svg(moments: Sequence[Moment], *, title: str, width: int = 800, height: int = 240) -> str:
    """Blocks and tasks over time, each to its own height; a line of steps, as both change at once."""
    end = max([1.0, *(moment.at_s for moment in moments)])

    def steps(values: Sequence[int]) -> str:
        most, points, earlier = max([1, *values]), [], 0.0
        for moment, value in zip(moments, values, strict=True):
            x = moment.at_s / end * width
            points += [f"{x:.1f},{height - earlier:.1f}", f"{x:.1f},{height - value / most * height:.1f}"]
            earlier = value / most * height
        return " ".join([*points, f"{width},{height - earlier:.1f}"])

    blocks, tasks = [moment.blocks for moment in moments], [moment.tasks for moment in moments]
    scales = f"blocks (blue, to {max([1, *blocks])}) and unfinished tasks (grey, to {max([1, *tasks])})"
    legend = f"{title}: {scales}, {end:.0f} s"
    box = f"-10 -30 {width + 20} {height + 40}"
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" font-family="sans-serif" font-size="14">
<text x="0" y="-10">{escape(legend)}</text>
<rect width="{width}" height="{height}" fill="none" stroke="lightgrey"/>
<polyline points="{steps(tasks)}" fill="none" stroke="grey"/>
<polyline points="{steps(blocks)}" fill="none" stroke="blue" stroke-width="2"/>
</svg>
"""
