"""What the views use, kept with the application: settings, database, ledger, dispatcher, waiting."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Protocol, cast

from flask import current_app

from farcall.wire import Command
from farcall_webservice.config import ServiceConfig
from farcall_webservice.database import Database
from farcall_webservice.ledger import Ledger, Outgoing
from farcall_webservice.result_queues import ResultQueues
from farcall_webservice.waiting import Waiting

KEY = "farcall"


class Outbox(Protocol):
    """The side of the dispatcher that the views see."""

    def send(self, outgoing: Iterable[Outgoing]) -> None: ...

    def heed(self, runner_id: str, *, held: bool) -> None: ...

    def forward(self, task_group_ids: Iterable[str]) -> None: ...

    def command(self, endpoint_id: str, command: Command) -> None: ...


@dataclass(frozen=True)
class Services:
    """One of each for an application."""

    config: ServiceConfig
    database: Database
    ledger: Ledger
    dispatcher: Outbox
    waiting: Waiting
    result_queues: ResultQueues

    def tell(self, task_group_ids: Collection[str]) -> None:
        """These groups have news: wake whoever waits for it, here or at the broker."""
        self.waiting.wake(task_group_ids)
        self.dispatcher.forward(task_group_ids)


def services() -> Services:
    """Those of the application that answers the current request."""
    return cast(Services, current_app.extensions[KEY])
