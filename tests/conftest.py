"""Servers, a service and an endpoint for all the tests that do no harm to them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import leftovers
import pytest
import spreading
from running import RunningEndpoint, RunningService, running_endpoint, running_larger_service, running_service
from servers import PrivatePostgres, PrivateRabbitMQ, needs, private_postgres, private_rabbitmq


def pytest_configure(config: pytest.Config) -> None:
    if not _is_worker(config):
        leftovers.begin()
    if config.getoption("numprocesses", None):
        # A run that is cancelled ends as after a Ctrl-C.
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_unconfigure(config: pytest.Config) -> None:
    if not _is_worker(config):
        leftovers.end()


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n` and no other wish, workers share the tests as :mod:`spreading` says."""
    return spreading.scheduling(config, log) if config.getvalue("dist") == "load" else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """For workers, the longest groups come first."""
    if _is_worker(config):
        items[:] = spreading.longest_first(items)


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


def embedded(home: Path, _request: pytest.FixtureRequest) -> AbstractContextManager[RunningService]:
    """One process, with SQLite and a Valkey of its own."""
    return running_service(home)


def larger(home: Path, request: pytest.FixtureRequest) -> AbstractContextManager[RunningService]:
    """Several processes on PostgreSQL and RabbitMQ."""
    rabbitmq: PrivateRabbitMQ = request.getfixturevalue("rabbitmq")
    postgres: PrivatePostgres = request.getfixturevalue("postgres")
    return running_larger_service(home, database_url=postgres.database(), broker_url=rabbitmq.vhost(home.name))


#: How a service can be set up: what starts one on a home, by name.
SETTINGS = {"embedded": embedded, "larger": larger}


@pytest.fixture(scope="session")
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """One service for all tests that do no harm to it: in the setting that is its parameter, else the embedded one."""
    setting = SETTINGS[getattr(request, "param", "embedded")]
    with setting(tmp_path_factory.mktemp("home"), request) as running:
        yield running


@pytest.fixture(scope="session")
def endpoint(service: RunningService) -> Iterator[RunningEndpoint]:
    """One endpoint with two workers for all tests that do no harm to it."""
    with running_endpoint(service) as running:
        yield running
