"""What an MPI task asks for: its ``resource_specification``, checked and completed.

The keys are Globus Compute's: ``num_nodes``, ``ranks_per_node``, ``num_ranks`` and ``launcher_options``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: What starts ranks on the nodes of a block.
LAUNCHERS = ("mpiexec", "srun", "aprun")

_NUMBERS = ("num_nodes", "ranks_per_node", "num_ranks")
_KEYS = (*_NUMBERS, "launcher_options")


def specification_of(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a task asks for, unchecked; empty if it asks for nothing."""
    raw = options.get("resource_specification")
    return raw if isinstance(raw, Mapping) else {}


def completed(raw: Mapping[str, Any], *, most_nodes: int) -> dict[str, Any]:
    """The specification with all its numbers. Raises ValueError with a sentence for whoever wrote it.

    >>> completed({"num_nodes": 2, "ranks_per_node": 4}, most_nodes=2)
    {'num_nodes': 2, 'ranks_per_node': 4, 'num_ranks': 8}
    >>> completed({"num_ranks": 3}, most_nodes=1)
    {'num_nodes': 1, 'ranks_per_node': 3, 'num_ranks': 3}
    """
    if not raw:
        raise ValueError(
            "this endpoint runs MPI: say how much of it the task needs, for example "
            'executor.resource_specification = {"num_nodes": 1, "ranks_per_node": 2}'
        )
    unknown = sorted(str(key) for key in raw.keys() - set(_KEYS))
    if unknown:
        raise ValueError(f"resource_specification does not know {', '.join(unknown)}; it knows {', '.join(_KEYS)}")
    numbers = {key: _number(key, raw[key]) for key in _NUMBERS if raw.get(key) is not None}
    nodes = numbers.get("num_nodes", 1)
    if nodes > most_nodes:
        raise ValueError(
            f"resource_specification asks for {nodes} nodes, and a block of this endpoint has {most_nodes}: ask for "
            "fewer, or have nodes_per_block raised in its configuration"
        )
    ranks = numbers.get("num_ranks", nodes * numbers.get("ranks_per_node", 1))
    per_node = numbers.get("ranks_per_node", -(-ranks // nodes))
    if ranks > nodes * per_node or ranks < nodes:
        raise ValueError(
            f"resource_specification asks for {ranks} ranks, which is not possible with {nodes} nodes and "
            f"{per_node} ranks_per_node: leave num_ranks out, or let it be from {nodes} to {nodes * per_node}"
        )
    return {"num_nodes": nodes, "ranks_per_node": per_node, "num_ranks": ranks, **_launcher_options(raw)}


def refusal(raw: Mapping[str, Any], *, launcher: str | None, most_nodes: int) -> str | None:
    """Why an endpoint cannot do what a task asks for; None if it can. Without MPI there is no ``launcher``."""
    if launcher is None:
        if not raw:
            return None
        return (
            f"this endpoint runs no MPI, so it cannot honour resource_specification={dict(raw)!r}: leave it out, use "
            "an endpoint that does, or set engine.type to GlobusMPIEngine in this endpoint's configuration"
        )
    try:
        completed(raw, most_nodes=most_nodes)
    except ValueError as error:
        return str(error)
    return None


def _number(key: str, raw: Any) -> int:
    # Parsl takes text, and so do those who wrote for it.
    text = str(raw)
    if not isinstance(raw, bool) and text.isascii() and text.isdecimal() and 0 < len(text) < 10 and int(text) > 0:
        return int(text)
    raise ValueError(f"{key} in resource_specification must be a whole number above 0, not {raw!r}")


def _launcher_options(raw: Mapping[str, Any]) -> dict[str, str]:
    options = raw.get("launcher_options")
    if options is None:
        return {}
    if not isinstance(options, str):
        raise ValueError(f"launcher_options in resource_specification must be text, not {options!r}")
    return {"launcher_options": options}
