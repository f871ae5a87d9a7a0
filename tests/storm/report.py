"""Figures of a storm: what came of the tasks, what was done to the parts, how long it took them to recover."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tests.storm.client import Seen
from tests.storm.marks import Marks
from tests.storm.schedule import Strike


@dataclass(frozen=True)
class Struck:
    """A fault that came: when it began and when it was over, and what it was done to."""

    planned: Strike
    victim: str | None
    began_at: float
    over_at: float


@dataclass(frozen=True)
class Recovery:
    """Seconds until a task had come back that was submitted after the fault had begun."""

    since_it_began: float
    since_it_was_over: float


def recoveries(struck: Iterable[Struck], seen: Sequence[Seen]) -> Iterator[tuple[Struck, Recovery]]:
    """For each fault that hit somebody and after which a task came back."""
    for fault in struck:
        ends = [each.ended_at for each in seen if each.ended_at is not None and each.submitted_at > fault.began_at]
        if fault.victim is not None and ends:
            first = min(ends)
            yield fault, Recovery(first - fault.began_at, max(0.0, first - fault.over_at))


def lines(
    *, seed: int, setting: str, duration_s: float, seen: Sequence[Seen], struck: Sequence[Struck], marks: Marks
) -> Iterator[str]:
    """The report, to be printed."""
    starts = marks.counts()
    yield f"setting {setting}, seed {seed}: {len(seen)} tasks, {len(struck)} faults, {duration_s:.0f} s"
    yield ""
    yield f"{'kind of task':<16}{'tasks':>8}{'right':>8}{'wrong':>8}{'no end':>8}{'starts':>8}"
    for kind in dict.fromkeys(each.task.kind.name for each in seen):
        of_kind = [each for each in seen if each.task.kind.name == kind]
        right = sum(each.fault == "" for each in of_kind)
        endless = sum(each.fault is None for each in of_kind)
        began = sum(starts[each.task.key] for each in of_kind)
        wrong = len(of_kind) - right - endless
        yield f"{kind:<16}{len(of_kind):>8}{right:>8}{wrong:>8}{endless:>8}{began:>8}"
    yield ""
    yield "how often tasks were started: " + ", ".join(
        f"{times} x {count}" for count, times in sorted(Counter(starts[each.task.key] for each in seen).items())
    )
    yield from _losses(seen, marks)
    yield ""
    yield from _faults(struck, seen)


def _losses(seen: Sequence[Seen], marks: Marks) -> Iterator[str]:
    once = [each for each in seen if each.task.kind.options.get("max_retries") == 0]
    lost = [each.task.key for each in once if each.ended_at is not None and not each.has_value]
    never, computed = sum(key not in marks.starts for key in lost), sum(key in marks.ends for key in lost)
    yield f"of {len(once)} tasks that must not start twice {len(lost)} failed: {never} not started, {computed} computed"
    cancelled = [each for each in seen if each.was_cancelled]
    late = sum(
        each.cancelled_at is not None and any(at > each.cancelled_at for at in marks.starts.get(each.task.key, ()))
        for each in cancelled
    )
    yield f"of {len(cancelled)} cancelled tasks {late} were started before their agent had heard of it"


def _faults(struck: Sequence[Struck], seen: Sequence[Seen]) -> Iterator[str]:
    found: dict[str, list[Recovery]] = defaultdict(list)
    for fault, recovery in recoveries(struck, seen):
        found[fault.planned.fault].append(recovery)
    times = Counter(fault.planned.fault for fault in struck)
    yield "seconds until a task came back that was submitted after the fault began:"
    yield f"{'fault':<28}{'times':>6}{'median':>9}{'worst':>9}    since it was over:{'median':>9}{'worst':>9}"
    for name, count in sorted(times.items()):
        each = found[name]
        if not each:
            yield f"{name:<28}{count:>6}        -        -"
            continue
        began, over = [e.since_it_began for e in each], [e.since_it_was_over for e in each]
        yield (
            f"{name:<28}{count:>6}{statistics.median(began):>9.1f}{max(began):>9.1f}"
            f"    {'':<18}{statistics.median(over):>9.1f}{max(over):>9.1f}"
        )
