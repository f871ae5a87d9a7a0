"""A PBS for the tests: the fake one, or with ``real`` the one whose commands are in PATH."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

import pytest
from servers import needs

from farcall_endpoint.testing import FakePbs


def missing_pbs() -> str | None:
    """Why there is no real PBS for the tests; None if there is one."""
    if shutil.which("qsub") is None:
        return "there is no qsub in PATH"
    said = subprocess.run(["qsub", "--version"], capture_output=True, text=True, check=False, timeout=30)
    return None if "pbs_version" in said.stdout + said.stderr else "qsub in PATH is not PBS's"


@pytest.fixture
def pbs(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakePbs]:
    """The fake one, first in PATH."""
    with FakePbs(tmp_path_factory.mktemp("pbs")) as pbs:
        monkeypatch.setenv("PATH", pbs.path)
        yield pbs


@pytest.fixture
def real_pbs() -> None:
    needs("pbs", missing_pbs)
