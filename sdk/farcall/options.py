"""Where tasks go and how they are run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from farcall.strategies import Strategylike


class Options:
    """What a request says of all its tasks. Tasks whose options are equal travel together."""

    def __init__(
        self,
        endpoint_id: str,
        resource_specification: dict[str, Any] | None = None,
        user_endpoint_config: dict[str, Any] | None = None,
        result_serializers: list[str] | None = None,
        max_retries: int | None = None,
        timeout_s: float | None = None,
    ) -> None:
        self.endpoint_id = endpoint_id
        self.body = stated(
            resource_specification=resource_specification,
            user_endpoint_config=user_endpoint_config,
            result_serializers=result_serializers,
            max_retries=max_retries,
            timeout_s=timeout_s,
        )

    @cached_property
    def _key(self) -> tuple[str, str]:
        return self.endpoint_id, json.dumps(self.body, sort_keys=True, default=repr)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Options) and self._key == other._key)

    def __hash__(self) -> int:
        return hash(self._key)


def stated(**options: Any) -> dict[str, Any]:
    """Those that say something: neither None nor empty. 0 says something."""
    return {name: value for name, value in options.items() if value not in (None, {}, [])}


def checked_dictionary(value: dict[str, Any] | None, name: str) -> dict[str, Any] | None:
    if value is not None and not isinstance(value, dict):
        raise TypeError(f"{name} is a dictionary or None, not {type(value).__name__}")
    return None if value is None else dict(value)


def checked_max_retries(value: int | None) -> int | None:
    """How often a task is run again whose worker or node was lost; None leaves it to the endpoint."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"max_retries is a whole number or None, not {value!r}")
    if value < 0:
        raise ValueError(f"max_retries is {value}: write 0 for a task that must never be started twice, or more")
    return value


def checked_timeout_s(value: float | None) -> float | None:
    """After how many seconds a running task is stopped; None leaves it to the endpoint."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"timeout_s is a number of seconds or None, not {value!r}")
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"timeout_s is {value}: write how many seconds the task may run, more than 0")
    return float(value)


def import_paths(strategies: Iterable[Strategylike] | None) -> list[str] | None:
    """As text for the worker, which may be Globus Compute's: its names are the ones that both know."""
    if strategies is None:
        return None
    kinds = ((each if isinstance(each, type | str) else type(each)) for each in strategies)
    return [kind if isinstance(kind, str) else f"globus_compute_sdk.serialize.{kind.__name__}" for kind in kinds]
