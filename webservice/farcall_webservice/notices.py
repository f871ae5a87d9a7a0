"""News of results between the processes of a service, and of the processes, on a connection that each keeps for that.

Who records results announces their groups within the same transaction, so that the news comes with the commit and never
without it (PostgreSQL's NOTIFY and LISTEN). Each process that holds long-polls listens, and wakes those that wait for
these groups. That its connection is there shows the others that it lives.
"""

from __future__ import annotations

import logging
import os
import selectors
import threading
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, text

from farcall_webservice import presence
from farcall_webservice.database import Database, cause_of
from farcall_webservice.surviving import keep_at
from farcall_webservice.waiting import Waiting

log = logging.getLogger(__name__)

CHANNEL = "farcall_results"
#: A notice takes less than 8000 bytes; an id and the space after it take 37.
IDS_PER_NOTICE = 200

_ANNOUNCE = text("SELECT pg_notify(:channel, :ids)")


def announce(connection: Connection, ids: Iterable[str]) -> None:
    """Tell every process that these groups or tasks have news, once this transaction is committed. PostgreSQL only."""
    named = list(ids)
    for start in range(0, len(named), IDS_PER_NOTICE):
        some = " ".join(named[start : start + IDS_PER_NOTICE])
        connection.execute(_ANNOUNCE, {"channel": CHANNEL, "ids": some})


class Listener:
    """Wakes those who wait in this process for what any process has announced, in one thread.

    Without ``waiting`` it only shows that who claims as ``claimant`` lives.
    """

    def __init__(self, database: Database, waiting: Waiting | None, claimant: str) -> None:
        self._database = database
        self._waiting = waiting
        self._claimant = claimant
        self._stopping = threading.Event()
        self._told_to_stop, self._tell_to_stop = os.pipe()
        self._thread = threading.Thread(target=self._run, name="notices", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        os.write(self._tell_to_stop, b"\0")
        self._thread.join(timeout=10)
        os.close(self._told_to_stop)
        os.close(self._tell_to_stop)

    def _run(self) -> None:
        keep_at(self._listen, explain=_explain, wait=lambda pause: not self._stopping.wait(pause))

    def _listen(self) -> None:
        with self._database.engine.connect() as connection:
            driver: Any = connection.connection.driver_connection
            # It is kept for good, so it is none of the pool's.
            connection.detach()
            driver.autocommit = True
            presence.show(driver, self._claimant)
            if self._waiting is not None:
                driver.execute(f"LISTEN {CHANNEL}")
                # What was announced while nobody listened.
                self._waiting.wake_all()
            self._wake_until_stopped(driver.pgconn)

    def _wake_until_stopped(self, connection: Any) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(connection.socket, selectors.EVENT_READ)
            selector.register(self._told_to_stop, selectors.EVENT_READ)
            while not self._stopping.is_set():
                selector.select()
                if self._stopping.is_set():
                    return
                connection.consume_input()
                while (notice := connection.notifies()) is not None:
                    if self._waiting is not None:
                        self._waiting.wake(notice.extra.decode().split())


def _explain(error: Exception) -> str:
    return f"lost the news of results ({cause_of(error)})"
