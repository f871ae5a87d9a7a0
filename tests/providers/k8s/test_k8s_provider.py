"""Blocks as pods of a real API server, with exactly the rights of role.yaml."""

from __future__ import annotations

from typing import Any

import pytest

from farcall_endpoint.provider import Provider
from farcall_endpoint.testing import ProviderContract


class TestK8sProvider(ProviderContract):
    @pytest.fixture(autouse=True)
    def _account(self, account: Any) -> None:
        self.account = account

    def make_provider(self) -> Provider:
        return self.account.provider()
