"""What tasks note of themselves in the file of marks: when they started, and some of them when they had their result.

All of it runs on one machine, so that the clock that counts from its start is the same for workers and client; the
clocks that the storm lets jump are others.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

#: As the functions of `tasks` write them, which import nothing.
START, END = "start", "end"


@dataclass(frozen=True)
class Marks:
    """By the key of the task, in order; a task without a mark has no moments."""

    starts: Mapping[int, Sequence[float]]
    ends: Mapping[int, Sequence[float]]

    def counts(self) -> Counter[int]:
        """How often each task started."""
        return Counter({key: len(moments) for key, moments in self.starts.items()})


def read(path: Path) -> Marks:
    found: dict[str, dict[int, list[float]]] = {START: defaultdict(list), END: defaultdict(list)}
    for line in path.read_text().splitlines():
        key, what, at = line.split()
        found[what][int(key)].append(float(at))
    return Marks(found[START], found[END])
