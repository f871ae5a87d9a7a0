"""The larger setting needs a PostgreSQL and a broker that are ready: what is checked before anything starts."""

from __future__ import annotations

import contextlib
import logging
import sys

from amqp.exceptions import PreconditionFailed

from farcall.errors import ConfigurationError
from farcall_webservice import accounts, queues
from farcall_webservice.config import QueueType, ServiceConfig
from farcall_webservice.database import UNAVAILABLE, Database, cause_of


def check(config: ServiceConfig, command: str) -> None:
    """Raise :class:`ConfigurationError`, which says what to do, unless ``command`` can start."""
    if config.database_url.startswith("sqlite"):
        raise ConfigurationError(
            f"`farcall-webservice {command}` needs a PostgreSQL database, which many processes can share: name it with "
            "--database-url postgresql://user:password@host/name or in FARCALL_DATABASE_URL. "
            "Without one, `farcall-webservice serve` is the whole service in one process"
        )
    if config.broker_url is None:
        raise ConfigurationError(
            f"`farcall-webservice {command}` needs a broker: name it with "
            "--broker-url amqp://user:password@host:5672/vhost or in FARCALL_BROKER_URL"
        )
    _check_database(config)
    check_broker(config.broker_url, config.queue_type)


def check_broker(broker_url: str, queue_type: QueueType) -> None:
    """Raise :class:`ConfigurationError` unless the broker can be used, with queues of this type."""
    queues.use_queue_type(queue_type)
    with queues.connect(broker_url) as connection:
        name = f"{connection.hostname}:{connection.port or ''}/{connection.virtual_host or ''}"
        try:
            queues.declare(broker_url, queues.RESULTS, queues.HEARTBEATS)
        except PreconditionFailed as error:
            raise ConfigurationError(
                f"a queue of the broker {name} is not what FARCALL_QUEUE_TYPE says: {error.message}. Let that be the "
                "type that the queue has, or remove the queue while no endpoint runs (rabbitmqctl delete_queue results)"
            ) from error
        except (*connection.connection_errors, *connection.channel_errors, OSError) as error:
            raise ConfigurationError(f"the broker {name} cannot be used: {error}") from error


def _check_database(config: ServiceConfig) -> None:
    with contextlib.closing(Database(config.database_url)) as database:
        accounts.make(config, database)
        try:
            database.require_current()
        except UNAVAILABLE as error:
            raise ConfigurationError(f"the database {database.name} cannot be used: {cause_of(error)}") from error


def log_to_standard_error() -> None:
    """Where systemd and containers expect it."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s"
    )
