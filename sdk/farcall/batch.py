"""Tasks collected to be submitted in one request, and what the service answered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from farcall.ids import UUIDLike, as_id, as_optional_id
from farcall.options import checked_max_retries, checked_timeout_s, stated
from farcall.serialize import Serializer
from farcall.wire import pack_buffers


@dataclass(frozen=True, slots=True)
class BatchedCall:
    """One call; ``endpoint_id`` is None where the whole batch goes to one endpoint, named when it is run."""

    endpoint_id: str | None
    function_id: str
    payload: str


class Batch:
    """Calls to be submitted together with :meth:`farcall.Client.batch_run`."""

    def __init__(
        self,
        task_group_id: UUIDLike | None = None,
        resource_specification: dict[str, Any] | None = None,
        user_endpoint_config: dict[str, Any] | None = None,
        request_queue: bool = False,
        serializer: Serializer | None = None,
        result_serializers: list[str] | None = None,
        max_retries: int | None = None,
        timeout_s: float | None = None,
    ) -> None:
        self.task_group_id = as_optional_id(task_group_id, "task_group_id")
        self.resource_specification = resource_specification
        self.user_endpoint_config = user_endpoint_config
        self.request_queue = request_queue
        self.result_serializers = result_serializers
        self.max_retries = checked_max_retries(max_retries)
        self.timeout_s = checked_timeout_s(timeout_s)
        self.calls: list[BatchedCall] = []
        self._serializer = serializer or Serializer()

    def __len__(self) -> int:
        return len(self.calls)

    def add(
        self, *args: Any, function_id: UUIDLike | None = None, endpoint_id: UUIDLike | None = None, **kwargs: Any
    ) -> None:
        """Add a call, in either of the two ways that are known.

        ``batch.add(function_id, args, kwargs)`` takes the arguments as a tuple and a dictionary;
        ``batch.add(x, y=1, endpoint_id=..., function_id=...)`` takes them as the function does.
        """
        as_function_does = endpoint_id is not None or (
            function_id is not None and (args or kwargs.keys() - {"args", "kwargs"})
        )
        if not as_function_does:
            if function_id is not None:
                args = (function_id, *args)
            function_id, args, kwargs = _tuple_and_dictionary(*args, **kwargs)
        if function_id is None:
            raise TypeError("function_id is missing")
        payload = pack_buffers([self._serializer.serialize_data(part) for part in (args, kwargs)])
        self.calls.append(
            BatchedCall(as_optional_id(endpoint_id, "endpoint_id"), as_id(function_id, "function_id"), payload)
        )

    def by_endpoint(self, endpoint_id: UUIDLike | None = None) -> dict[str, list[BatchedCall]]:
        """The calls of each endpoint; ``endpoint_id`` is for those that name none."""
        default = as_optional_id(endpoint_id, "endpoint_id")
        sorted_out: dict[str, list[BatchedCall]] = {}
        for call in self.calls:
            target = call.endpoint_id or default
            if target is None:
                raise ValueError("say which endpoint: batch_run(endpoint_id, batch), or endpoint_id with each add()")
            sorted_out.setdefault(target, []).append(call)
        return sorted_out

    def body(self, calls: Iterable[BatchedCall]) -> dict[str, Any]:
        """The request that submits these calls."""
        tasks: dict[str, list[str]] = {}
        for call in calls:
            tasks.setdefault(call.function_id, []).append(call.payload)
        given = stated(
            task_group_id=self.task_group_id,
            resource_specification=self.resource_specification,
            user_endpoint_config=self.user_endpoint_config,
            result_serializers=self.result_serializers,
            max_retries=self.max_retries,
            timeout_s=self.timeout_s,
        )
        return {"create_queue": self.request_queue, "tasks": tasks, **given}

    def prepare(self) -> dict[str, Any]:
        """The request that submits all calls to one endpoint."""
        return self.body(self.calls)


class BatchRun(dict[str, Any]):
    """What the service answered: ``tasks`` (ids by function), ``task_group_id``, ``endpoint_id`` and ``request_id``.

    Of a batch for several endpoints, ``tasks`` has them all, and the rest is of the first request. ``task_ids`` lists
    the ids in the order in which the calls were added.
    """

    def __init__(self, batch: Batch, answers: Mapping[str, Mapping[str, Any]], endpoint_id: str | None) -> None:
        super().__init__(next(iter(answers.values())))
        remaining = {
            (endpoint, function_id): iter(ids)
            for endpoint, answer in answers.items()
            for function_id, ids in answer["tasks"].items()
        }
        tasks: dict[str, list[str]] = {}
        self.task_ids: list[str] = []
        for call in batch.calls:
            task_id = next(remaining[call.endpoint_id or endpoint_id or "", call.function_id])
            tasks.setdefault(call.function_id, []).append(task_id)
            self.task_ids.append(task_id)
        self["tasks"] = tasks


def _tuple_and_dictionary(
    function_id: UUIDLike | None = None, args: Any = None, kwargs: Any = None
) -> tuple[UUIDLike | None, tuple[Any, ...], dict[str, Any]]:
    args = () if args is None else args
    kwargs = {} if kwargs is None else kwargs
    if not isinstance(args, tuple | list):
        raise TypeError(f"args is a tuple, not {type(args).__name__}: batch.add(function_id, args=(x,))")
    if not isinstance(kwargs, dict) or not all(isinstance(name, str) for name in kwargs):
        raise TypeError("kwargs is a dictionary whose keys are texts")
    return function_id, tuple(args), kwargs
