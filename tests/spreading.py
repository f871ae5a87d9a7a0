"""What runs beside what when several workers share the tests (`pytest -n 4`), and what comes first.

Each worker starts servers of its own, so tests that share one stay together. What a test uses is nobody else's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import pytest

#: The groups that take longest, so that none of them begins when everything else is done.
LONG = (
    "globus with their endpoint",
    "tests/flow/test_kills_larger.py",
    "globus with our endpoint",
    "tests/globus/test_larger.py",
    "flow on a larger service",
    "flow on an embedded service",
)
#: Every test there has everything to itself.
APART = ("tests/flow/test_kills.py", "tests/storm/test_storm.py")


def group(node_id: str) -> str:
    """The name of a test's group: by default its file."""
    path, _, test = node_id.partition("::")
    parameters = re.findall(r"[\w.]+", test.partition("[")[2])
    if path in APART:
        return node_id
    if path.startswith("tests/globus/") and path not in LONG:
        theirs = path.endswith("test_their_endpoint.py") or "theirs" in parameters
        return f"globus with {'their' if theirs else 'our'} endpoint"
    if path.startswith("tests/providers/k8s/"):
        return "a Kubernetes cluster"
    if path.startswith("tests/flow/") and "larger" in parameters:
        return "flow on a larger service"
    if (path.startswith("tests/flow/") and "embedded" in parameters) or path == "tests/test_documentation.py":
        return "flow on an embedded service"
    return path


def longest_first(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """The tests with those of the long groups first; otherwise in their order."""
    ranks = {name: rank for rank, name in enumerate(LONG)}
    return sorted(items, key=lambda item: ranks.get(group(item.nodeid), len(LONG)))


def scheduling(config: pytest.Config, log: Any) -> Any:
    """What gives each worker one group after the other, as pytest-xdist wants it."""
    # Without the option -n nothing needs it.
    from xdist.scheduler import LoadScopeScheduling

    # Not the groups with most tests first.
    config.option.loadscopereorder = False
    made = LoadScopeScheduling(config, log)
    made._split_scope = group
    return made
