"""Servers, a service and an endpoint for all the tests that do no harm to them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from running import RunningEndpoint, RunningService, running_endpoint, running_service
from servers import PrivatePostgres, PrivateRabbitMQ, needs, private_postgres, private_rabbitmq


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRabbitMQ]:
    """One RabbitMQ for all tests that do no harm to it; each takes a virtual host of its own."""
    needs("rabbitmq")
    with private_rabbitmq(tmp_path_factory.mktemp("rabbitmq")) as server:
        yield server


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivatePostgres]:
    """One PostgreSQL for all tests that do no harm to it; each takes a database of its own."""
    needs("postgres")
    with private_postgres(tmp_path_factory.mktemp("postgres")) as server:
        yield server


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
