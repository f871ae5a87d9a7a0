"""Which tasks and which faults there are, and in which order: the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.storm.tasks import KINDS, Task


@dataclass(frozen=True)
class Strike:
    """A fault that is to come."""

    number: int
    fault: str
    #: Tasks come so long before it, so that it finds work under way.
    lead_s: float
    #: Until the next one.
    pause_s: float
    #: How long what is broken stays broken.
    hold_s: float
    #: Which of several victims: from 0 to 1.
    pick: float
    #: Whether the next one does not wait until this one is over.
    overlaps: bool


def tasks(seed: int, count: int) -> Iterator[Task]:
    """So many tasks of all kinds."""
    chance = random.Random(f"tasks {seed}")
    kinds = list(KINDS.values())
    weights = [kind.per_mille for kind in kinds]
    # One of each that has a share, however few tasks there are.
    first = [kind for kind in kinds if kind.per_mille]
    for key in range(count):
        kind = first[key] if key < len(first) else chance.choices(kinds, weights)[0]
        within_s = kind.cancelled_within_s
        yield Task(key, kind, kind.arguments(key, chance), within_s and round(chance.uniform(0, within_s), 2))


def strikes(seed: int, count: int, faults: Mapping[str, float], *, longest_s: float) -> Sequence[Strike]:
    """So many faults: each one once, in any order, and then at random by weight; none is held longer than so."""
    chance = random.Random(f"faults {seed}")
    order = list(faults)
    chance.shuffle(order)
    more = max(0, count - len(order))
    order += chance.choices(list(faults), list(faults.values()), k=more)
    return [
        Strike(
            number,
            fault,
            lead_s=round(chance.uniform(0, 1.5), 2),
            pause_s=round(chance.uniform(0.5, 0.4 * longest_s), 2),
            hold_s=round(chance.uniform(0.5, longest_s), 2),
            pick=round(chance.random(), 3),
            overlaps=chance.random() < 0.25,
        )
        for number, fault in enumerate(order[: max(count, 0)] if count else order)
    ]
