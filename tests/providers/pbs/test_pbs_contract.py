"""What every provider can do: on the fake PBS in each of its dialects, and on a real one where there is one."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from farcall_endpoint.plugins import load_provider
from farcall_endpoint.provider import BlockSpec, Provider
from farcall_endpoint.testing import FakePbs, ProviderContract
from farcall_provider_pbs import PbsConfig, PbsProvider


class TestPbsProvider(ProviderContract):
    dialect = ""

    @pytest.fixture(autouse=True)
    def begin(self, pbs: FakePbs) -> None:
        self.pbs = pbs
        pbs.speak(self.dialect)

    def make_provider(self) -> Provider:
        return PbsProvider(PbsConfig())

    def held(self) -> AbstractContextManager[object]:
        return self.pbs.holding()

    def away(self) -> AbstractContextManager[object]:
        return self.pbs.away()

    def impossible_spec(self, run_dir: Path) -> BlockSpec:
        # PBS says so of a walltime of nothing at all.
        self.pbs.refuse("qsub", "qsub: Unknown queue", 170)
        return self.spec(run_dir, "exit 0")


class TestPbsProWithoutJson(TestPbsProvider):
    dialect = "old"


class TestTorque(TestPbsProvider):
    dialect = "torque"


class TestPbsWithoutHistory(TestPbsProvider):
    """How a job ended is known by the exit code that it leaves."""

    @pytest.fixture(autouse=True)
    def forget(self, pbs: FakePbs) -> None:
        pbs.forget_ended_jobs()


@pytest.mark.usefixtures("real_pbs")
class TestRealPbs(ProviderContract):
    patience_s = 120

    def make_provider(self) -> Provider:
        return PbsProvider(PbsConfig())

    def impossible_spec(self, run_dir: Path) -> BlockSpec:
        return dataclasses.replace(self.spec(run_dir, "exit 0"), worker_init="", walltime_s=10**12)


def test_the_endpoint_finds_it_by_name() -> None:
    assert load_provider("pbs") is PbsProvider
