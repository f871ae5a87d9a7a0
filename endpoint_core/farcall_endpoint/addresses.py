"""Where on the broker an endpoint finds its tasks and leaves its results: part of the answer to its registration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Address:
    """Where something is published: the ``queue_publish_kwargs`` of a registration, and the queue behind it."""

    connection_url: str
    exchange: str
    queue: str
    routing_key: str
    mandatory: bool = False
    properties: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> Address:
        publish = info["queue_publish_kwargs"]
        return cls(
            info["connection_url"],
            publish.get("exchange", info["exchange"]),
            info["queue"],
            publish["routing_key"],
            bool(publish.get("mandatory")),
            publish.get("properties"),
        )


@dataclass(frozen=True)
class Addresses:
    """What a registration tells an agent of the broker."""

    inbox_url: str
    task_queue: str
    command_queue: str
    results: Address
    heartbeats: Address

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Addresses:
        """Out of the service's answer. Raises KeyError or TypeError if it is not one."""
        tasks = answer["task_queue_info"]
        return cls(
            tasks["connection_url"],
            tasks["queue"],
            answer["command_queue_info"]["queue"],
            Address.of(answer["result_queue_info"]),
            Address.of(answer["heartbeat_queue_info"]),
        )
