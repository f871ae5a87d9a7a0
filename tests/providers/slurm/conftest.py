"""One real Slurm for the tests of a file, healed after each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from servers import needs
from slurm import PrivateSlurm, missing_accounting, missing_slurm, private_slurm


@pytest.fixture(scope="session")
def plain_slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateSlurm]:
    """Without accounting."""
    needs("slurm", missing_slurm)
    with private_slurm(tmp_path_factory.mktemp("slurm"), gpus=2) as slurm:
        yield slurm


@pytest.fixture(scope="session")
def accounted_slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateSlurm]:
    needs("slurmdbd", missing_accounting)
    with private_slurm(tmp_path_factory.mktemp("slurm"), nodes=2, accounting=True) as slurm:
        yield slurm


def _used(slurm: PrivateSlurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[PrivateSlurm]:
    """What commands of this process talk to."""
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    yield slurm
    slurm.heal()


@pytest.fixture
def slurm(plain_slurm: PrivateSlurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[PrivateSlurm]:
    yield from _used(plain_slurm, monkeypatch)


@pytest.fixture
def accounted(accounted_slurm: PrivateSlurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[PrivateSlurm]:
    yield from _used(accounted_slurm, monkeypatch)
