"""Who is there to work, as it was when last looked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Fleet:
    """Managers, blocks, and what keeps workers from coming."""

    managers: Sequence[Mapping[str, Any]] = ()
    #: As in ``Blocks.shown``.
    blocks: Sequence[Mapping[str, str]] = ()
    #: Sentences about what keeps workers from coming.
    troubles: Sequence[str] = ()

    @property
    def active(self) -> list[Mapping[str, Any]]:
        return [manager for manager in self.managers if manager["active"]]

    @property
    def workers(self) -> int:
        return sum(manager["worker_count"] for manager in self.active)
