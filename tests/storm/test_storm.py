"""The short form of the storm, in both settings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from islands import missing_for_islands
from servers import needs

ROOT = Path(__file__).parents[2]
TASKS, SEED = 1500, 4
#: Of every sort of fault one that hits, in one setting or the other. `make storm` has all of them in both.
EMBEDDED = (
    "kill service", "kill valkey", "kill agent", "kill interchange", "kill worker", "stop manager",
    "unplug agent", "fill disk of service", "jump clock of agent", "empty the broker", "kill client",
)  # fmt: skip
LARGER = (
    "kill web worker", "kill collector", "kill postmaster", "kill rabbitmq", "power off agent", "kill worker",
    "mute service", "fill disk of agent", "jump clock of service", "empty the broker",
)  # fmt: skip


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("setting", "faults"), [("embedded", EMBEDDED), ("larger", LARGER)])
def test_whatever_breaks_every_task_ends_once_and_rightly(setting: str, faults: tuple[str, ...]) -> None:
    needs("netns", lambda: missing_for_islands("nft"))
    if setting == "larger":
        needs("rabbitmq")
        needs("postgres")
    only = [f"--only={fault}" for fault in faults]
    arguments = [f"--setting={setting}", f"--tasks={TASKS}", f"--seed={SEED}", "--longest=2", *only]

    done = subprocess.run(
        [sys.executable, "-m", "tests.storm", *arguments], cwd=ROOT, check=False, capture_output=True, text=True
    )

    assert done.returncode == 0, f"{done.stderr[-6000:]}\n{done.stdout}"
