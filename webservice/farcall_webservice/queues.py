"""The queues and exchanges of the broker: their names, how to reach them, and what an agent is told of them."""

from __future__ import annotations

import logging
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from amqp.exceptions import PreconditionFailed
from kombu import Connection, Exchange, Queue
from kombu.exceptions import OperationalError

from farcall_webservice import strays
from farcall_webservice.config import QueueType

log = logging.getLogger(__name__)

RESULTS = Queue(
    "results", exchange=Exchange("results", type="topic", durable=True), routing_key="*.results", durable=True
)
HEARTBEATS = Queue(
    "heartbeats", exchange=Exchange("heartbeats", type="topic", durable=True), routing_key="*.heartbeats", durable=True
)

#: What every message of ours carries beside its body.
MESSAGE_PROPERTIES = {"content_type": "application/json", "content_encoding": "utf-8", "delivery_mode": 2}

#: A heartbeat that no collector has taken for so long says how things were. In milliseconds, as AMQP has it.
HEARTBEAT_EXPIRES_MS = "60000"

#: The broker forgets the queue of a group that nobody has consumed from, or had results on, for two weeks.
GROUP_QUEUE_EXPIRES_S = 14 * 24 * 3600
#: How often both sides of a connection that is kept say that they are there.
HEARTBEAT_S = 60
#: A broker that reads nothing for so long is one that is not there.
WRITTEN_WITHIN_S = 30

#: What a queue is declared with that holds what nobody can make again at once: tasks and results.
_KEEPING: dict[str, str] = {}


def use_queue_type(queue_type: QueueType) -> None:
    """Say once, when the process starts, of which type such queues are on its RabbitMQ.

    Every declaration of a queue has to say the same, wherever in the process it is made.
    """
    _KEEPING.clear()
    if queue_type != "classic":
        # A classic queue is what RabbitMQ makes unasked, so that older ones stay what they are.
        _KEEPING["x-queue-type"] = queue_type
    RESULTS.queue_arguments = dict(_KEEPING)


def tasks_queue(endpoint_id: str) -> Queue:
    """Where an endpoint's tasks wait for its agent."""
    return Queue(f"{endpoint_id}.tasks", durable=True, queue_arguments=dict(_KEEPING))


def commands_queue(endpoint_id: str) -> Queue:
    """Where an agent is told to stop, or to ask what was cancelled."""
    return Queue(f"{endpoint_id}.commands", durable=True)


def group_queue(owner_id: str, task_group_id: str) -> Queue:
    """Where the results of a group wait for Globus Compute's Executor."""
    name = f"{group_queue_prefix(owner_id)}{task_group_id}"
    return Queue(name, durable=True, expires=GROUP_QUEUE_EXPIRES_S)


def group_queue_prefix(owner_id: str) -> str:
    """What the names of all of a user's groups begin with, so that a broker can allow them one by one."""
    return f"tg.{owner_id}."


def speaks_amqp(broker_url: str) -> bool:
    """Whether Globus Compute's programs, which speak nothing else, can talk with this broker."""
    return broker_url.startswith("amqp")


def connect(broker_url: str, *, confirm_each: bool = True, heartbeat_s: int = 0) -> Connection:
    """A connection that is opened at its first use. Each thread needs its own.

    ``confirm_each`` lets every publish wait until RabbitMQ has the message. With ``heartbeat_s`` a lost broker is
    noticed without using it, and :func:`show_life` has to be called at least twice in that time.
    """
    transport = None
    if broker_url.startswith("redis"):
        transport = strays.Transport
        # A message is acknowledged within milliseconds; what a killed consumer left behind comes back after a minute.
        options: dict[str, Any] = {
            "visibility_timeout": 60,
            "socket_keepalive": True,
            "socket_connect_timeout": 5,
            # A broker that is there but does not answer is one that is not there.
            "socket_timeout": 15,
            "health_check_interval": 10,
        }
    else:
        # A RabbitMQ that is short of memory or disk reads nothing from those who publish.
        options = {"confirm_publish": confirm_each, "write_timeout": WRITTEN_WITHIN_S}
    return Connection(
        broker_url, transport=transport, transport_options=options, connect_timeout=5, heartbeat=heartbeat_s
    )


def errors_of(broker_url: str) -> tuple[type[Exception], ...]:
    """What is raised where a broker is away, breaks down or refuses something."""
    connection = Connection(broker_url)
    return (*connection.connection_errors, *connection.channel_errors, OperationalError, OSError)


def show_life(connection: Connection) -> None:
    """Send a heartbeat if one is due. Raises the transport's error if the broker has sent none for too long."""
    if connection.supports_heartbeats and connection.heartbeat:
        connection.heartbeat_check()


def declare(broker_url: str, *queues: Queue) -> None:
    """Make sure that these queues exist, with their exchanges and bindings."""
    with connect(broker_url) as connection:
        for queue in queues:
            if queue.exchange.name:
                with connection.channel() as channel:
                    queue(channel).declare()
            else:
                look_at(connection, queue)


def look_at(connection: Connection, queue: Queue) -> Any:
    """``message_count`` and ``consumer_count`` of a queue, which is made if it is not there."""
    try:
        with connection.channel() as channel:
            return queue(channel).queue_declare()
    except PreconditionFailed as error:
        # It was made when FARCALL_QUEUE_TYPE was another. It serves as it is, and may hold something.
        log.warning("the queue %s is kept as it is: %s", queue.name, error.message)
        with connection.channel() as channel:
            return queue(channel).queue_declare(passive=True)


def delete(broker_url: str, *queues: Queue) -> None:
    """Remove queues and what is on them. Whoever consumes one is told by the broker that it has gone."""
    with connect(broker_url) as connection, connection.channel() as channel:
        for queue in queues:
            queue(channel).delete()


def consumers(broker_url: str, queue: Queue) -> int:
    """How many consume a queue, which is declared for that."""
    with connect(broker_url) as connection:
        return int(look_at(connection, queue).consumer_count)


def endpoint_id_of(routing_key: str) -> str:
    """Who sent a message: ``<endpoint id>.results`` or ``<endpoint id>.heartbeats``."""
    return routing_key.rpartition(".")[0]


def reachable_url(broker_url: str, host: str | None) -> str:
    """The broker's URL for somebody who reached the service as ``host``.

    A broker that listens on every address has none of its own to hand out.

    >>> reachable_url("redis://:secret@0.0.0.0:6379/0", "gateway.example.org")
    'redis://:secret@gateway.example.org:6379/0'
    >>> reachable_url("redis://:secret@127.0.0.1:6379/0", "gateway.example.org")
    'redis://:secret@127.0.0.1:6379/0'
    >>> reachable_url("amqp://me:secret@broker.example.org//", "gateway.example.org")
    'amqp://me:secret@broker.example.org/%2F'
    """
    if speaks_amqp(broker_url) and broker_url.endswith("//"):
        # For Kombu this is the virtual host "/", for Pika one without a name.
        broker_url = f"{broker_url[:-1]}%2F"
    parts = urlsplit(broker_url)
    if host is None or parts.hostname not in ("0.0.0.0", "::"):
        return broker_url
    user, at, _ = parts.netloc.rpartition("@")
    address = f"[{host}]" if ":" in host else host
    port = f":{parts.port}" if parts.port else ""
    return urlunsplit(parts._replace(netloc=f"{user}{at}{address}{port}"))


def queue_infos(endpoint_id: str, connection_url: str) -> dict[str, Any]:
    """The four ``..._queue_info`` objects of a registration's answer."""
    return {
        "task_queue_info": {
            "connection_url": connection_url,
            "queue": tasks_queue(endpoint_id).name,
            # Endpoints of version 2 ask whether it is there, which the default exchange does not bear, and that is all.
            "exchange": RESULTS.exchange.name,
        },
        "command_queue_info": {"connection_url": connection_url, "queue": commands_queue(endpoint_id).name},
        "result_queue_info": _publishing(RESULTS, endpoint_id, connection_url),
        "heartbeat_queue_info": _publishing(
            HEARTBEATS, endpoint_id, connection_url, {"expiration": HEARTBEAT_EXPIRES_MS}
        ),
    }


def _publishing(
    queue: Queue, endpoint_id: str, connection_url: str, more: dict[str, str] | None = None
) -> dict[str, Any]:
    return {
        "connection_url": connection_url,
        "exchange": queue.exchange.name,
        "queue": queue.name,
        "queue_publish_kwargs": {
            "exchange": queue.exchange.name,
            "routing_key": f"{endpoint_id}.{queue.name}",
            "mandatory": True,
            "properties": {**MESSAGE_PROPERTIES, **(more or {})},
        },
    }
