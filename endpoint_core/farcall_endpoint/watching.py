"""Passes on what the nodes say: to the engine what runs where, to the store what was printed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from farcall.wire import Output

from .endings import Endings
from .engine import Engine
from .output import OutputStore
from .sightings import Node, Started


class Watching:
    """The watcher that an executor is given. ``on_output`` is called when there is output to be sent."""

    def __init__(self, engine: Engine, output: OutputStore, endings: Endings, *, on_output: Callable[[], None]) -> None:
        self._engine = engine
        self._output = output
        self._endings = endings
        self._on_output = on_output

    def nodes_changed(self, nodes: Sequence[Node]) -> None:
        self._endings.nodes_changed(nodes)
        self._engine.nodes_changed(nodes)

    def started(self, sightings: Sequence[Started]) -> None:
        self._engine.started(sightings)

    def printed(self, pieces: Sequence[Output]) -> None:
        self._output.add(pieces)
        self._on_output()
