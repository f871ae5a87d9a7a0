"""An Executor with other options for some of its calls, and the iterator that ``map`` returns."""

from __future__ import annotations

import concurrent.futures
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from farcall.futures import FarcallFuture, cancel_all
from farcall.ids import UUIDLike, as_id
from farcall.options import checked_dictionary, checked_max_retries, checked_timeout_s, import_paths
from farcall.registry import RegisteredFunction

if TYPE_CHECKING:
    from farcall.executor import Executor

_CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "endpoint_id": lambda value: as_id(value, "endpoint_id"),
    "resource_specification": lambda value: checked_dictionary(value, "resource_specification"),
    "user_endpoint_config": lambda value: checked_dictionary(value, "user_endpoint_config"),
    "result_serializers": import_paths,
    "max_retries": checked_max_retries,
    "timeout_s": checked_timeout_s,
}


class Variant(concurrent.futures.Executor):
    """What :meth:`farcall.Executor.with_options` returns. It ends with its executor; shutting it down does nothing."""

    def __init__(self, executor: Executor, options: Mapping[str, Any]) -> None:
        unknown = options.keys() - _CHECKS.keys()
        if unknown:
            raise TypeError(
                f"there is no option {', '.join(sorted(map(repr, unknown)))}; there are {', '.join(_CHECKS)}"
            )
        self._executor = executor
        self._others = {name: _CHECKS[name](value) for name, value in options.items()}

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> FarcallFuture:
        """As :meth:`farcall.Executor.submit`."""
        own = self._executor
        return own._submit(own._function(fn), args, kwargs, own._options_with(self._others))

    def map(
        self, fn: Callable[..., Any], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[Any]:
        """As :meth:`farcall.Executor.map`."""
        return results_of(self._executor, self.submit, fn, iterables, timeout)

    def submit_to_registered_function(
        self, function_id: UUIDLike, args: tuple[Any, ...] | None = None, kwargs: dict[str, Any] | None = None
    ) -> FarcallFuture:
        """As :meth:`farcall.Executor.submit_to_registered_function`."""
        own = self._executor
        own._check_open()
        function = RegisteredFunction(function_id=as_id(function_id, "function_id"))
        return own._submit(function, tuple(args or ()), dict(kwargs or {}), own._options_with(self._others))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        pass


def results_of(
    executor: Executor,
    submit: Callable[..., FarcallFuture],
    fn: Callable[..., Any],
    iterables: tuple[Iterable[Any], ...],
    timeout: float | None,
) -> Iterator[Any]:
    """Submit a call for each of the arguments now, and hand out the results in their order."""
    deadline = None if timeout is None else time.monotonic() + timeout
    futures = deque(submit(fn, *args) for args in zip(*iterables, strict=False))

    def results() -> Iterator[Any]:
        try:
            while futures:
                left = None if deadline is None else deadline - time.monotonic()
                yield _first(futures, left)
        finally:
            cancel_all(futures, executor.client.transport, wait=False)

    return results()


def _first(futures: deque[FarcallFuture], timeout: float | None) -> Any:
    """The first one's result. It leaves the row only then, and is not held by whoever waits for the next."""
    result = futures[0].result(timeout)
    futures.popleft()
    return result
