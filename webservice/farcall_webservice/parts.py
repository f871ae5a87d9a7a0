"""The parts that a process of the service is made of, started and stopped together."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator

from flask import Flask

from farcall_webservice import accounts, queues
from farcall_webservice.app import create_app
from farcall_webservice.collector import Collector
from farcall_webservice.config import ServiceConfig
from farcall_webservice.database import Database
from farcall_webservice.dispatch import Dispatcher
from farcall_webservice.ledger import Ledger
from farcall_webservice.notices import Listener
from farcall_webservice.sweeping import Sweeper
from farcall_webservice.waiting import Waiting


class _Parts:
    """What every process has, and what only some of them run."""

    def __init__(self, config: ServiceConfig, database: Database, waiting: Waiting, *, alone: bool) -> None:
        assert config.broker_url is not None
        queues.use_queue_type(config.queue_type)
        self._config = config
        self._broker_url = config.broker_url
        self._database = database
        self._waiting = waiting
        self._ledger = Ledger(database, max_log_characters=config.max_log_characters)
        self._accounts = accounts.make(config, database)
        self.dispatcher = Dispatcher(
            self._broker_url, database, self._ledger, alone=alone, accounts=self._accounts, tell=waiting.wake
        )

    def collector(self) -> Collector:
        return Collector(self._broker_url, self._database, self._ledger, self.dispatcher, self._waiting)

    def sweeper(self) -> Sweeper:
        def tell(task_group_ids: Collection[str]) -> None:
            self._waiting.wake(task_group_ids)
            self.dispatcher.forward(task_group_ids)

        return Sweeper(self._config, self._ledger, tell=tell, command=self.dispatcher.command)

    def news(self, *, hears: bool = True) -> contextlib.AbstractContextManager[None]:
        """Let others see that this process lives, and hear of what they record. SQLite has no others."""
        if self._database.is_sqlite:
            return contextlib.nullcontext()
        return _running(Listener(self._database, self._waiting if hears else None, self._ledger.claimant))

    def app(self) -> Flask:
        return create_app(
            self._config, self._database, self._ledger, self.dispatcher, self._waiting, accounts=self._accounts
        )


@contextlib.contextmanager
def everything(config: ServiceConfig, database: Database, waiting: Waiting) -> Iterator[Flask]:
    """What one process needs to be the whole service."""
    made = _Parts(config, database, waiting, alone=True)
    with made.news(), _running(made.dispatcher), _running(made.collector()), _running(made.sweeper()):
        yield made.app()


@contextlib.contextmanager
def web(config: ServiceConfig, waiting: Waiting) -> Iterator[Flask]:
    """What answers requests, beside other processes that do."""
    with contextlib.closing(Database(config.database_url)) as database:
        made = _Parts(config, database, waiting, alone=False)
        with made.news(), _running(made.dispatcher):
            yield made.app()


@contextlib.contextmanager
def collecting(config: ServiceConfig) -> Iterator[None]:
    """What brings results in, beside other processes that do. Nobody waits for them in this one."""
    with contextlib.closing(Database(config.database_url)) as database:
        made = _Parts(config, database, Waiting(max_waiters=0), alone=False)
        with made.news(hears=False), _running(made.dispatcher), _running(made.collector()), _running(made.sweeper()):
            yield


@contextlib.contextmanager
def _running(part: Dispatcher | Collector | Sweeper | Listener) -> Iterator[None]:
    part.start()
    try:
        yield
    finally:
        part.stop()
