"""The parts that a process of the service is made of, started and stopped together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from flask import Flask

from farcall_webservice import accounts, queues
from farcall_webservice.app import create_app
from farcall_webservice.collector import Collector
from farcall_webservice.config import ServiceConfig
from farcall_webservice.database import Database
from farcall_webservice.dispatch import Dispatcher
from farcall_webservice.ledger import Ledger
from farcall_webservice.notices import Listener
from farcall_webservice.waiting import Waiting


@contextlib.contextmanager
def everything(config: ServiceConfig, database: Database, waiting: Waiting) -> Iterator[Flask]:
    """What one process needs to be the whole service."""
    queues.use_queue_type(config.queue_type)
    ledger = Ledger(database)
    dispatcher = Dispatcher(
        _broker_url(config), database, ledger, alone=True, accounts=accounts.make(config, database), tell=waiting.wake
    )
    collector = Collector(_broker_url(config), database, ledger, dispatcher, waiting)
    with _news(database, waiting), _running(dispatcher), _running(collector):
        yield create_app(config, database, ledger, dispatcher, waiting)


@contextlib.contextmanager
def web(config: ServiceConfig, waiting: Waiting) -> Iterator[Flask]:
    """What answers requests, beside other processes that do."""
    queues.use_queue_type(config.queue_type)
    with contextlib.closing(Database(config.database_url)) as database:
        ledger = Ledger(database)
        dispatcher = Dispatcher(
            _broker_url(config),
            database,
            ledger,
            alone=False,
            accounts=accounts.make(config, database),
            tell=waiting.wake,
        )
        with _news(database, waiting), _running(dispatcher):
            yield create_app(config, database, ledger, dispatcher, waiting)


@contextlib.contextmanager
def collecting(config: ServiceConfig) -> Iterator[None]:
    """What brings results in, beside other processes that do. Nobody waits for them in this one."""
    queues.use_queue_type(config.queue_type)
    with contextlib.closing(Database(config.database_url)) as database:
        ledger = Ledger(database)
        dispatcher = Dispatcher(
            _broker_url(config), database, ledger, alone=False, accounts=accounts.make(config, database)
        )
        collector = Collector(_broker_url(config), database, ledger, dispatcher, Waiting(max_waiters=0))
        with _running(dispatcher), _running(collector):
            yield


def _broker_url(config: ServiceConfig) -> str:
    assert config.broker_url is not None
    return config.broker_url


@contextlib.contextmanager
def _news(database: Database, waiting: Waiting) -> Iterator[None]:
    """Hear of results that other processes have recorded. SQLite has no others."""
    if database.is_sqlite:
        yield
    else:
        with _running(Listener(database, waiting)):
            yield


@contextlib.contextmanager
def _running(part: Dispatcher | Collector | Listener) -> Iterator[None]:
    part.start()
    try:
        yield
    finally:
        part.stop()
