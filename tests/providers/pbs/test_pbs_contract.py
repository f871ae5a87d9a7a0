"""What every provider can do, on the fake PBS in each of its dialects."""

from __future__ import annotations

import pytest

from farcall_endpoint.provider import Provider
from farcall_endpoint.testing import FakePbs, ProviderContract
from farcall_provider_pbs import PbsConfig, PbsProvider


@pytest.fixture(params=["", "old", "torque"])
def pbs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    with FakePbs(tmp_path_factory.mktemp("pbs"), dialect=request.param) as pbs:
        monkeypatch.setenv("PATH", pbs.path)
        yield pbs


@pytest.mark.usefixtures("pbs")
class TestPbsProvider(ProviderContract):
    def make_provider(self) -> Provider:
        return PbsProvider(PbsConfig())
