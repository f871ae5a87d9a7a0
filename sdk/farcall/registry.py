"""Functions on their way to the service: what is said of one, and which are there already."""

from __future__ import annotations

import hashlib
import platform
import threading
import weakref
from collections.abc import Callable, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

from farcall import __version__
from farcall.serialize import Serializer
from farcall.wire import pack_buffers


def registration(
    function: Callable[..., Any],
    serializer: Serializer,
    *,
    name: str | None = None,
    description: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    public: bool = False,
    group: object = None,
) -> dict[str, Any]:
    """The body that registers a function. Its docstring is its description unless another is given."""
    code = serializer.serialize(function)
    body = {
        "function_name": name or getattr(function, "__name__", None) or type(function).__name__,
        "function_code": pack_buffers([code]),
        "serialized": True,
        "meta": {**runtime(), "serde_identifier": code[:2], **(metadata or {})},
        **sharing(public, group),
    }
    description = description or _docstring(function)
    if description:
        body["description"] = description
    return body


def runtime() -> dict[str, str]:
    return {"python_version": platform.python_version(), "sdk_version": __version__}


def sharing(public: bool, group: object) -> dict[str, Any]:
    return {**({"public": True} if public else {}), **({"group": str(group)} if group else {})}


def _docstring(function: Callable[..., Any]) -> str | None:
    # An instance that can be called has its class's docstring, which says nothing of this one.
    return function.__doc__ if isinstance(function, FunctionType | BuiltinFunctionType | MethodType) else None


class RegisteredFunction:
    """A function of one Executor. ``function_id`` is None until the service has it; ``body`` is what registers it."""

    __slots__ = ("body", "function_id")

    def __init__(self, body: dict[str, Any] | None = None, function_id: str | None = None) -> None:
        self.body = body
        self.function_id = function_id


class FunctionRegistry:
    """Each function object is serialised once, and functions that serialise alike are registered once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By identity, as not every callable can be hashed. The object's end removes its entry, so that its id may be
        # another's.
        self._by_id: dict[int, tuple[object, RegisteredFunction]] = {}
        self._by_code: dict[bytes, RegisteredFunction] = {}

    def find(self, function: Callable[..., Any]) -> RegisteredFunction | None:
        entry = self._by_id.get(id(function))
        return entry[1] if entry else None

    def get(self, function: Callable[..., Any], serializer: Serializer) -> RegisteredFunction:
        entry = self._by_id.get(id(function))
        if entry is not None:
            return entry[1]
        body = registration(function, serializer)
        digest = hashlib.sha256(f"{body['function_name']}:{body['function_code']}".encode("utf-8", "surrogatepass"))
        with self._lock:
            registered = self._by_code.setdefault(digest.digest(), RegisteredFunction(body))
        self._remember(function, registered)
        return registered

    def add(self, function: Callable[..., Any], function_id: str) -> None:
        self._remember(function, RegisteredFunction(function_id=function_id))

    def _remember(self, function: Callable[..., Any], registered: RegisteredFunction) -> None:
        key, by_id = id(function), self._by_id
        try:
            holder: object = weakref.ref(function, lambda _: by_id.pop(key, None))
        except TypeError:
            holder = function
        by_id[key] = (holder, registered)

    def after_fork(self) -> None:
        self._lock = threading.Lock()
