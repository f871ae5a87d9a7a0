"""Blocks that nobody knows any more: of an earlier agent, or of an answer that got lost. They are found and ended."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection

from .breaker import Breaker
from .provider import BlockState, Provider, ProviderError
from .roster import Roster

log = logging.getLogger(__name__)

#: How often the system is asked for blocks of ours that are not known, without a reason to think that there are any.
PERIOD_S = 300.0

#: After that time we look again at those that were told to end.
RETRY_S = 30.0

#: Pauses while the system cannot be asked; doubled each time.
FIRST_PAUSE_S = 3.0


class Custody:
    """Sees to it that no block of this endpoint outlives the interest in it.

    Only the thread that asks for blocks uses it. Where no block outlives its agent there is nothing to do.
    """

    def __init__(self, provider: Provider, roster: Roster, breaker: Breaker, *, owner: str) -> None:
        self._provider = provider
        self._roster = roster
        self._breaker = breaker
        self._owner = owner
        self._due = 0.0
        self._pause_s = FIRST_PAUSE_S
        self._is_first = True
        #: Why it is not known whether there are any.
        self._blind = ""
        if not outlives_agent(provider):
            roster.ended(list(roster.entries))

    @property
    def troubles(self) -> list[str]:
        """Sentences about blocks of which nobody knows whether they are there, and those that could not be ended."""
        blind = f"No block is asked for until it is known whether some are left from earlier: {self._blind}"
        left = [
            f"Block {block_id} could not be ended, which is tried again: {entry.trouble}"
            for block_id, entry in self._roster.entries.items()
            if entry.trouble
        ]
        return [blind, *left] if self._blind else left

    def look_soon(self) -> None:
        """There is a reason to think that a block is not known: before the next one is asked for, look."""
        self._due = 0.0

    def look(self, living: Collection[str]) -> bool:
        """If it is time, end what is not among those known to live. Whether a block may be asked for now."""
        if not outlives_agent(self._provider) or time.monotonic() < self._due:
            return not self._blind
        try:
            self._find(set(living))
        # A stranger's code, or a system that cannot be asked.
        except Exception as error:
            log.warning("whether blocks are left from earlier is not known: %s; asking again", error)
            self._blind = str(error)
            self._due = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, PERIOD_S)
            return False
        self._blind, self._pause_s, self._is_first = "", FIRST_PAUSE_S, False
        return True

    def _find(self, living: set[str]) -> None:
        owned = set(self._provider.owned(self._owner))
        strays = sorted((owned | self._roster.entries.keys()) - living)
        states = self._provider.states(strays) if strays else {}
        # What the system does not list as ours, and knows nothing of, has ended.
        gone = [
            key for key in strays if states[key].has_ended or (states[key] is BlockState.UNKNOWN and key not in owned)
        ]
        for block_id in strays:
            self._count(block_id, states[block_id])
        self._roster.ended(gone)
        self._due = time.monotonic() + PERIOD_S
        self._end([block_id for block_id in strays if block_id not in gone])

    def _count(self, block_id: str, state: BlockState) -> None:
        """An agent that dies before its blocks have worked, again and again, must not ask for new ones for ever."""
        entry = self._roster.entries.get(block_id)
        if not self._is_first or entry is None or entry.has_connected or entry.is_ending or entry.trouble:
            return
        if state in (BlockState.UNKNOWN, BlockState.CANCELLED):
            return
        said = f"it is {state.value}" if not state.has_ended else f"it has {state.value}: {self._said(block_id)}"
        self._breaker.failed(
            f"The agent that had asked for block {block_id} ended before a worker of it had connected; now {said}"
        )

    def _said(self, block_id: str) -> str:
        try:
            return self._provider.output(block_id)
        except ProviderError as error:
            return f"[what it printed cannot be read: {error}]"

    def _end(self, block_ids: list[str]) -> None:
        if not block_ids:
            return
        log.info("blocks %s are left from earlier; they are ended", ", ".join(block_ids))
        try:
            self._provider.cancel(block_ids)
        # As above.
        except Exception as error:
            log.warning("blocks %s cannot be ended: %s", ", ".join(block_ids), error)
            self._roster.cannot_end(block_ids, str(error))
        else:
            self._roster.ending(block_ids)
        # Then it is seen whether they have ended.
        self._due = time.monotonic() + RETRY_S


def outlives_agent(provider: Provider) -> bool:
    """Whether its blocks may go on without their agent."""
    return type(provider).owned is not Provider.owned
