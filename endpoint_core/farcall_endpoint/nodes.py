"""The nodes of one block, lent to the MPI tasks that run on it."""

from __future__ import annotations

import os
import subprocess
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: A launcher knows this name for the machine it runs on, whatever the machine calls itself.
THIS_MACHINE = "localhost"


class Nodes:
    """Which nodes are free, and which task has the others. Not for several threads at a time."""

    def __init__(self, names: list[str]) -> None:
        self.count = len(names)
        self._free = deque(names)
        self._lent: dict[Any, list[str]] = {}

    def wanted(self, task: Mapping[str, Any]) -> int:
        """How many nodes a task of Parsl's asks for."""
        return int((task.get("context") or {}).get("resource_spec", {}).get("num_nodes", 0))

    def lend(self, task: Mapping[str, Any]) -> bool:
        """Give a task the nodes it wants, under the name by which Parsl's worker knows them. False if they are busy."""
        wanted = self.wanted(task)
        if wanted > len(self._free):
            return False
        if wanted:
            names = [self._free.popleft() for _ in range(wanted)]
            self._lent[task["task_id"]] = names
            task["context"]["resource_spec"]["MPI_NODELIST"] = ",".join(names)
        return True

    def take_back(self, task: Mapping[str, Any]) -> None:
        self._free.extend(self._lent.pop(task["task_id"], ()))


def names_of_nodes(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The nodes of the batch job that this process is part of; without one, this machine."""
    slurm = environment.get("SLURM_JOB_NODELIST") or environment.get("SLURM_NODELIST")
    if slurm:
        return subprocess.run(
            ["scontrol", "show", "hostnames", slurm], check=True, capture_output=True, text=True
        ).stdout.split()
    pbs = environment.get("PBS_NODEFILE")
    if pbs:
        # A node stands there once for each of its chunks.
        return list(dict.fromkeys(Path(pbs).read_text().split()))
    return [THIS_MACHINE]
