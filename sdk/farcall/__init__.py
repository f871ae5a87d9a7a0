"""Run Python functions on machines that are not the one in front of you.

>>> from farcall import Executor
>>> with Executor(endpoint_id="4b116d3c-1703-4f8f-9f6f-39921e5864df") as executor:  # doctest: +SKIP
...     print(executor.submit(pow, 2, 5).result())
32
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from farcall.client import Client
    from farcall.client import Client as FuncXClient
    from farcall.errors import (
        BadRequest,
        ConfigurationError,
        Conflict,
        DeserializationError,
        FarcallError,
        Forbidden,
        MaxResultSizeExceeded,
        NotFound,
        PayloadTooLarge,
        SerializationError,
        ServiceError,
        ServiceUnavailable,
        TaskCancelled,
        TaskExecutionFailed,
        TaskPending,
        Unauthenticated,
        VersionMismatch,
        WireError,
    )
    from farcall.executor import Executor
    from farcall.executor import Executor as FuncXExecutor
    from farcall.futures import FarcallFuture
    from farcall.mpi import MPIFunction
    from farcall.serialize import Serializer
    from farcall.shell import ShellFunction, ShellResult

__all__ = [
    "Client",
    "Executor",
    "FuncXClient",
    "FuncXExecutor",
    "FarcallFuture",
    "MPIFunction",
    "ShellFunction",
    "ShellResult",
    "Serializer",
    "FarcallError",
    "WireError",
    "SerializationError",
    "DeserializationError",
    "ConfigurationError",
    "TaskPending",
    "TaskExecutionFailed",
    "TaskCancelled",
    "MaxResultSizeExceeded",
    "VersionMismatch",
    "ServiceError",
    "ServiceUnavailable",
    "Unauthenticated",
    "Forbidden",
    "NotFound",
    "Conflict",
    "PayloadTooLarge",
    "BadRequest",
    "__version__",
]

_HOMES = {
    "Client": "client.Client",
    "FuncXClient": "client.Client",
    "Executor": "executor.Executor",
    "FuncXExecutor": "executor.Executor",
    "FarcallFuture": "futures.FarcallFuture",
    "MPIFunction": "mpi.MPIFunction",
    "ShellFunction": "shell.ShellFunction",
    "ShellResult": "shell.ShellResult",
    "Serializer": "serialize.Serializer",
}


def __getattr__(name: str) -> Any:
    # Each name is loaded when it is first used: a worker or the service that wants one module pays for one module.
    if name not in __all__:
        raise AttributeError(f"module 'farcall' has no attribute {name!r}")
    module, _, attribute = _HOMES.get(name, f"errors.{name}").rpartition(".")
    value = getattr(importlib.import_module(f"farcall.{module}"), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
