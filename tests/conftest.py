"""One service and one endpoint for all the tests that tell whole stories and do no harm to them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from running import RunningEndpoint, RunningService, running_endpoint, running_service


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """One service for all tests that do no harm to it."""
    with running_service(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture(scope="session")
def endpoint(service: RunningService) -> Iterator[RunningEndpoint]:
    """One endpoint with two workers for all tests that do no harm to it."""
    with running_endpoint(service) as running:
        yield running
