"""An Executor in the manner of :mod:`concurrent.futures` whose functions run on an endpoint."""

from __future__ import annotations

import concurrent.futures
import os
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from farcall.cancelling import canceller_for
from farcall.client import Client
from farcall.errors import SerializationError
from farcall.futures import FarcallFuture, abandon_in_child, cancel_all
from farcall.hardware import hardware_report
from farcall.ids import UUIDLike, as_id, as_optional_id
from farcall.options import Options, checked_dictionary, checked_max_retries, checked_timeout_s, import_paths
from farcall.outcomes import Outcome
from farcall.registry import FunctionRegistry, RegisteredFunction
from farcall.serialize import Serializer
from farcall.strategies import Strategylike
from farcall.submitter import MOST_TASKS, Submission, Submitter, TaskGroup
from farcall.variants import Variant, results_of
from farcall.watcher import watcher_for
from farcall.wire import pack_buffers

#: Settings of Globus Compute's and funcX's executors that mean nothing here, because results come by HTTP and batches
#: form by themselves.
_WITHOUT_MEANING = frozenset({"container_id", "batch_enabled", "batch_interval", "container_uuid"})

#: How long a shutdown waits for the service to have heard of what was cancelled while it was being sent.
_CANCEL_WAIT_S = 30.0

_executors: weakref.WeakSet[Executor] = weakref.WeakSet()


class Executor(concurrent.futures.Executor):
    """Submit functions to an endpoint; their results come back as futures.

    What is submitted while a request is under way travels together in the next one, up to ``batch_size`` tasks.
    ``task_group_id`` names an earlier group to go on with; without it the executors of a process share one.
    ``max_retries`` says how often a task is run again whose worker or node was lost (0: it is never started twice), and
    ``timeout_s`` after how many seconds a running task is stopped; None leaves both to the endpoint. These, the
    endpoint, ``resource_specification``, ``user_endpoint_config`` and ``result_serializers`` may be set again at any
    time and hold for what is submitted from then on; :meth:`with_options` has others for some calls. ``amqp_port``,
    ``api_burst_limit`` and ``api_burst_window_s`` are accepted for Globus Compute's sake and do nothing.

    After a fork the child may go on using it, with connections, threads and a task group of its own; the futures of
    its parent fail there.
    """

    def __init__(
        self,
        endpoint_id: UUIDLike | None = None,
        client: Client | None = None,
        task_group_id: UUIDLike | None = None,
        resource_specification: dict[str, Any] | None = None,
        user_endpoint_config: dict[str, Any] | None = None,
        label: str = "",
        batch_size: int = MOST_TASKS,
        amqp_port: int | None = None,
        api_burst_limit: int = 4,
        api_burst_window_s: int = 16,
        serializer: Serializer | None = None,
        result_serializers: Iterable[Strategylike] | None = None,
        *,
        max_retries: int | None = None,
        timeout_s: float | None = None,
        **kwargs: Any,
    ) -> None:
        client = client or kwargs.pop("funcx_client", None)
        unknown = kwargs.keys() - _WITHOUT_MEANING
        if unknown:
            raise TypeError(f"Executor has no setting {', '.join(sorted(map(repr, unknown)))}")
        self.client = client or Client()
        self.label = label
        self.amqp_port = amqp_port
        self.batch_size = batch_size
        self._endpoint_id = as_optional_id(endpoint_id, "endpoint_id")
        self._resource_specification = checked_dictionary(resource_specification, "resource_specification")
        self._user_endpoint_config = checked_dictionary(user_endpoint_config, "user_endpoint_config")
        self._result_serializers = import_paths(result_serializers)
        self._max_retries = self.client.max_retries if max_retries is None else checked_max_retries(max_retries)
        self._timeout_s = self.client.timeout_s if timeout_s is None else checked_timeout_s(timeout_s)
        self._options: Options | None = None
        self._group = TaskGroup(self.client.transport, as_optional_id(task_group_id, "task_group_id"))
        self._shut_down = False
        #: Futures that have not ended.
        self._open: set[FarcallFuture] = set()
        self.serializer = serializer or self.client.serializer
        self._submitter = Submitter(self.client.transport, self._group, batch_size)
        weakref.finalize(self, self._submitter.close).atexit = False
        _executors.add(self)

    def __repr__(self) -> str:
        label = f"{self.label}; " if self.label else ""
        return f"Executor<{label}endpoint {self._endpoint_id}; task group {self._group.get()}>"

    # -- submitting --

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> FarcallFuture:
        """Run ``fn(*args, **kwargs)`` on the endpoint. The function is registered the first time it is seen.

        What cannot be serialised fails its future, not this call.
        """
        return self._submit(self._function(fn), args, kwargs, self._current_options())

    def map(
        self, fn: Callable[..., Any], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[Any]:
        """As the built-in map, with all calls submitted at once. ``chunksize`` does nothing, as batches form anyway.

        Whoever leaves the iterator before its end, by an exception for example, cancels the rest.
        """
        return results_of(self, self.submit, fn, iterables, timeout)

    def submit_to_registered_function(
        self, function_id: UUIDLike, args: tuple[Any, ...] | None = None, kwargs: dict[str, Any] | None = None
    ) -> FarcallFuture:
        """Run a function that the service has already, by its id."""
        self._check_open()
        function = RegisteredFunction(function_id=as_id(function_id, "function_id"))
        return self._submit(function, tuple(args or ()), dict(kwargs or {}), self._current_options())

    def with_options(self, **options: Any) -> Variant:
        """This executor with other options: ``executor.with_options(max_retries=0, timeout_s=60).submit(fn, x)``.

        Takes ``endpoint_id``, ``resource_specification``, ``user_endpoint_config``, ``result_serializers``,
        ``max_retries`` and ``timeout_s``. What has equal options still travels together.
        """
        return Variant(self, options)

    def register_function(
        self, fn: Callable[..., Any], function_id: UUIDLike | None = None, **func_register_kwargs: Any
    ) -> str:
        """Register a function before it is first submitted, or say under which id it is registered already.

        The other arguments are those of :meth:`Client.register_function`.
        """
        self._check_open()
        known = self._functions.find(fn)
        if known is not None and known.function_id is not None:
            if function_id is not None and as_id(function_id, "function_id") == known.function_id:
                return known.function_id
            raise ValueError(f"this executor has registered {fn!r} already, as {known.function_id}")
        if function_id is None:
            func_register_kwargs.setdefault("serializer", self._serializer)
            function_id = self.client.register_function(fn, **func_register_kwargs)
        registered_id = as_id(function_id, "function_id")
        self._functions.add(fn, registered_id)
        return registered_id

    def register_source_code(self, source: str, function_name: str, **registration_kwargs: Any) -> str:
        """As :meth:`Client.register_source_code`; run it with :meth:`submit_to_registered_function`."""
        self._check_open()
        return self.client.register_source_code(source, function_name, **registration_kwargs)

    def get_worker_hardware_details(self) -> str:
        """Ask a worker of the endpoint what machine it runs on, and wait for the answer."""
        return str(self.submit(hardware_report).result())

    def reload_tasks(self, task_group_id: UUIDLike | None = None) -> Iterable[FarcallFuture]:
        """A future for every task of a group, such as one that an earlier program submitted."""
        if task_group_id is not None:
            self.task_group_id = task_group_id
        group_id = self._group.get()
        if group_id is None:
            raise ValueError("there is no task group yet: say which one as task_group_id")
        listed = self.client.get_task_group(group_id)["tasks"]
        futures = [FarcallFuture(task["id"], self.client.transport) for task in listed]
        watcher = watcher_for(self.client.transport, group_id)
        watcher.reload({str(future.task_id): (future, self._serializer.deserialize) for future in futures})
        for future in futures:
            self._keep(future)
        return futures

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take nothing more; what was submitted is still sent.

        ``cancel_futures`` cancels all that has not ended, running tasks too. With ``wait`` the service is waited for
        and says which had ended otherwise; without it the futures are cancelled at once, and the service is told in the
        background.
        """
        self._shut_down = True
        try:
            if cancel_futures:
                cancel_all(list(self._open), self.client.transport, wait=wait)
        finally:
            self._submitter.close()
        if wait and cancel_futures:
            # What was under way is known to the service by now, or soon.
            deadline = time.monotonic() + _CANCEL_WAIT_S
            self._submitter.drain(deadline)
            canceller_for(self.client.transport).drain(deadline)
        if wait:
            concurrent.futures.wait(list(self._open))

    # -- settings --

    @property
    def endpoint_id(self) -> uuid.UUID | None:
        return _as_uuid(self._endpoint_id)

    @endpoint_id.setter
    def endpoint_id(self, value: UUIDLike | None) -> None:
        self._endpoint_id = as_optional_id(value, "endpoint_id")
        self._options = None

    @property
    def task_group_id(self) -> uuid.UUID | None:
        """Where the next tasks go; None until the service has made a group for the first ones."""
        return _as_uuid(self._group.get())

    @task_group_id.setter
    def task_group_id(self, value: UUIDLike | None) -> None:
        self._group.chosen = as_optional_id(value, "task_group_id")

    @property
    def resource_specification(self) -> dict[str, Any] | None:
        return self._resource_specification

    @resource_specification.setter
    def resource_specification(self, value: dict[str, Any] | None) -> None:
        self._resource_specification = checked_dictionary(value, "resource_specification")
        self._options = None

    @property
    def user_endpoint_config(self) -> dict[str, Any] | None:
        return self._user_endpoint_config

    @user_endpoint_config.setter
    def user_endpoint_config(self, value: dict[str, Any] | None) -> None:
        self._user_endpoint_config = checked_dictionary(value, "user_endpoint_config")
        self._options = None

    @property
    def result_serializers(self) -> list[str] | None:
        return self._result_serializers

    @result_serializers.setter
    def result_serializers(self, value: Iterable[Strategylike] | None) -> None:
        self._result_serializers = import_paths(value)
        self._options = None

    @property
    def max_retries(self) -> int | None:
        return self._max_retries

    @max_retries.setter
    def max_retries(self, value: int | None) -> None:
        self._max_retries = checked_max_retries(value)
        self._options = None

    @property
    def timeout_s(self) -> float | None:
        return self._timeout_s

    @timeout_s.setter
    def timeout_s(self, value: float | None) -> None:
        self._timeout_s = checked_timeout_s(value)
        self._options = None

    @property
    def serializer(self) -> Serializer:
        return self._serializer

    @serializer.setter
    def serializer(self, value: Serializer) -> None:
        self._serializer = value
        # Most calls have no keyword arguments: written once.
        self._no_keywords = value.serialize_data({})
        # What was serialised another way does not count as registered.
        self._functions = FunctionRegistry()

    # -- inside --

    def _function(self, fn: Callable[..., Any]) -> RegisteredFunction | SerializationError:
        self._check_open()
        try:
            return self._functions.get(fn, self._serializer)
        except SerializationError as error:
            return error

    def _submit(
        self,
        function: RegisteredFunction | SerializationError,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: Options,
    ) -> FarcallFuture:
        if isinstance(function, SerializationError):
            return _failed(function)
        write = self._serializer.serialize_data
        try:
            payload = pack_buffers((write(args), write(kwargs) if kwargs else self._no_keywords))
        except SerializationError as error:
            return _failed(error)
        future = FarcallFuture(None, self.client.transport)
        self._keep(future)
        self._submitter.put(Submission(future, function, payload, options, self._serializer.deserialize))
        return future

    def _keep(self, future: FarcallFuture) -> None:
        self._open.add(future)
        future.add_done_callback(self._open.discard)

    def _current_options(self) -> Options:
        options = self._options
        if options is None:
            options = self._options = self._options_with({})
        return options

    def _options_with(self, others: Mapping[str, Any]) -> Options:
        """The options of this executor, but for those that are given here, checked already."""
        endpoint_id = others.get("endpoint_id", self._endpoint_id)
        if endpoint_id is None:
            raise ValueError("this executor has no endpoint_id: pass it to Executor, or set it, before submitting")
        own = {
            "resource_specification": self._resource_specification,
            "user_endpoint_config": self._user_endpoint_config,
            "result_serializers": self._result_serializers,
            "max_retries": self._max_retries,
            "timeout_s": self._timeout_s,
        }
        return Options(**{**own, **others, "endpoint_id": endpoint_id})

    def _check_open(self) -> None:
        if self._shut_down:
            raise RuntimeError("cannot submit to an executor that is shut down")

    def _after_fork_in_child(self) -> None:
        futures, self._open = self._open, set()
        abandon_in_child(futures)
        self._group.chosen = None
        self._functions.after_fork()
        self._submitter.after_fork()


def _failed(error: Exception) -> FarcallFuture:
    future = FarcallFuture()
    future.settle(Outcome(error=error))
    return future


def _as_uuid(text: str | None) -> uuid.UUID | None:
    return None if text is None else uuid.UUID(text)


def _after_fork() -> None:
    for executor in list(_executors):
        executor._after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork)
