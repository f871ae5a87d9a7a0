"""What every provider is tested for is inherited; what is this one's own follows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from farcall_provider_detached import DetachedConfig, DetachedProvider

from farcall_endpoint.plugins import load_provider
from farcall_endpoint.provider import BlockSpec, Provider, ProviderError
from farcall_endpoint.testing import ProviderContract


class TestDetachedProvider(ProviderContract):
    def make_provider(self) -> Provider:
        return DetachedProvider(DetachedConfig())

    def impossible_spec(self, run_dir: Path) -> BlockSpec:
        return dataclasses.replace(self.spec(run_dir, "exit 0"), nodes=2)


def test_the_endpoint_finds_it_by_name() -> None:
    assert load_provider("detached") is DetachedProvider


def test_two_nodes_are_refused_with_what_to_set(tmp_path: Path) -> None:
    provider = DetachedProvider(DetachedConfig())

    with pytest.raises(ProviderError, match="nodes_per_block"):
        provider.submit(BlockSpec(command="exit 0", name="block", run_dir=tmp_path, nodes=2))
