"""Which block a lost node was of, and how that block ended: for the tasks that were lost with it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import TypeVar

from parsl.executors.high_throughput.errors import ManagerLost

from .blocks import Ended
from .failures import NodesLost
from .sightings import Node

_T = TypeVar("_T")

#: Managers and blocks that are remembered.
_MOST_REMEMBERED = 1000

#: Of what a block said: the end, where its system says how it ended.
MOST_CHARACTERS = 300


class Endings:
    """Remembers for a while who was where. May be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: By the manager's name for itself.
        self._hosts: OrderedDict[str, str] = OrderedDict()
        self._blocks: OrderedDict[str, str] = OrderedDict()
        self._ended: OrderedDict[str, Ended] = OrderedDict()

    def nodes_changed(self, nodes: Iterable[Node]) -> None:
        with self._lock:
            _put(self._hosts, {node.uid: node.hostname for node in nodes})

    def seen(self, blocks: Mapping[str, str]) -> None:
        """Of which block each manager is."""
        with self._lock:
            _put(self._blocks, blocks)

    def ended(self, blocks: Iterable[Ended]) -> None:
        with self._lock:
            _put(self._ended, {block.block_id: block for block in blocks})

    def explained(self, error: Exception) -> Exception:
        """The same loss, with what is known of the block; other errors as they are."""
        if not isinstance(error, ManagerLost):
            return error
        hostname = str(error.hostname)
        with self._lock:
            block_id = self._blocks.get(bytes(error.manager_id).decode(errors="replace"))
            ended = self._ended.get(block_id or "")
        if ended is not None:
            return NodesLost(sentence(ended, hostname))
        whose = f", of block {block_id}" if block_id else ""
        return NodesLost(f"nothing was heard any more of node {hostname}{whose}, which is not known to have ended")

    def of(self, managers: Iterable[str]) -> str:
        """How their blocks ended, without a full stop; empty where nothing is known."""
        with self._lock:
            hosts: dict[str, set[str]] = {}
            for manager in managers:
                hosts.setdefault(self._blocks.get(manager, ""), set()).add(self._hosts.get(manager, ""))
            found = [
                (self._ended[block_id], ", ".join(sorted(names - {""})))
                for block_id, names in hosts.items()
                if block_id in self._ended
            ]
        return "; ".join(sentence(*each) for each in found)


def sentence(ended: Ended, hostname: str) -> str:
    """How a block ended, without a full stop."""
    where = f" on {hostname}" if hostname else ""
    how = " as it was cancelled" if ended.is_cancelled else ""
    said = " ".join(ended.said.split())
    said = f"...{said[-MOST_CHARACTERS:]}" if len(said) > MOST_CHARACTERS else said
    return f"block {ended.block_id}{where} ended{how}{f': {said}' if said else ''}"


def _put(memory: OrderedDict[str, _T], new: Mapping[str, _T]) -> None:
    for key, value in new.items():
        memory[key] = value
        memory.move_to_end(key)
    while len(memory) > _MOST_REMEMBERED:
        memory.popitem(last=False)
