"""Everything that the service offers, a method for each."""

from __future__ import annotations

import copy
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias, overload

from farcall import __version__, config
from farcall.auth import AuthorizerCredentials, Credentials, FixedToken
from farcall.batch import Batch, BatchRun
from farcall.cancelling import cancel_group, canceller_for, is_cancelled
from farcall.errors import TaskPending, VersionMismatch
from farcall.futures import FarcallFuture, cancel_all
from farcall.hardware import hardware_report
from farcall.ids import UUIDLike, as_id
from farcall.login import StoredLogin
from farcall.options import checked_max_retries, checked_timeout_s
from farcall.outcomes import described_task, is_done, outcome_of, readable
from farcall.registry import registration, runtime, sharing
from farcall.serialize import Serializer
from farcall.strategies import Strategylike
from farcall.tasklogs import follow_log, read_log
from farcall.transport import Transport

#: Settings of older clients that mean nothing here.
_WITHOUT_MEANING = frozenset(
    {"asynchronous", "force_login", "funcx_home", "http_timeout", "use_offprocess_checker", "warn_about_url_mismatch"}
)
#: How long get_result waits: an endpoint may first have to start a block.
RESULT_TIMEOUT_S = 60.0
#: The longest that the service keeps one request waiting.
_LONGEST_WAIT_S = 25.0
#: Task ids in one request for their states.
_STATUS_PAGE = 1_000

#: A task, by its id or its future.
TaskLike: TypeAlias = UUIDLike | FarcallFuture


class Client:
    """A user's view of the service.

    ``service_url`` and ``token`` default to ``FARCALL_SERVICE_URL`` and ``FARCALL_TOKEN``, or ``FARCALL_CLIENT_ID`` and
    ``FARCALL_CLIENT_SECRET``, then to what ``farcall-webservice serve`` or ``farcall-endpoint login`` left in
    ``$FARCALL_HOME``. ``authorizer`` may be one of
    globus_sdk. ``environment``, ``local_compute_services``, ``app`` and ``login_manager`` choose among Globus's own
    services, of which there are none here: they are accepted, and the last two warn.
    """

    def __init__(
        self,
        environment: str | None = None,
        local_compute_services: bool = False,
        do_version_check: bool = True,
        *,
        code_serialization_strategy: Strategylike | None = None,
        data_serialization_strategy: Strategylike | None = None,
        login_manager: Any = None,
        app: Any = None,
        authorizer: Any = None,
        service_url: str | None = None,
        token: str | None = None,
        **kwargs: Any,
    ) -> None:
        unknown = kwargs.keys() - _WITHOUT_MEANING
        if unknown:
            raise TypeError(f"Client has no setting {', '.join(sorted(map(repr, unknown)))}")
        if login_manager is not None or app is not None:
            warnings.warn(
                "Farcall logs in with a token, or a client's id and secret: login_manager and app have no effect. "
                "See `farcall-endpoint login`, FARCALL_TOKEN, FARCALL_CLIENT_ID, or Client(token=...).",
                UserWarning,
                stacklevel=2,
            )
        settings = config.load(service_url, token)
        credentials: Credentials
        if authorizer is not None:
            credentials = AuthorizerCredentials(authorizer)
        else:
            credentials = FixedToken(token) if token else StoredLogin(settings)
        self.transport = Transport(settings.service_url, credentials)
        self.serializer = Serializer(code_serialization_strategy, data_serialization_strategy)
        #: For what is submitted from here on, unless something else is said; None leaves it to the endpoint.
        self.max_retries: int | None = None
        self.timeout_s: float | None = None
        if do_version_check:
            self.version_check()

    def __repr__(self) -> str:
        return f"Client<{self.transport.service_url}>"

    def version_check(self, endpoint_version: str | None = None) -> None:
        """Raise :class:`VersionMismatch` if the service no longer speaks with this version (or the endpoint's)."""
        versions = self.transport.get("/v2/version", params={"service": "all"})
        oldest = versions.get("min_farcall_version") if isinstance(versions, dict) else None
        ours = endpoint_version or __version__
        if oldest is not None and _as_numbers(ours) < _as_numbers(oldest):
            raise VersionMismatch(
                f"the service at {self.transport.service_url} needs farcall {oldest} or newer, this is {ours}: "
                "pip install --upgrade farcall"
            )

    def logout(self) -> None:
        """Forget the login to this service that is kept for this account.

        A token that a client's id and secret gave is ended too.

        A token that was passed in, or that is in ``FARCALL_TOKEN``, stays good.
        """
        if isinstance(self.transport.credentials, StoredLogin):
            self.transport.credentials.forget()

    def with_options(self, *, max_retries: int | None = None, timeout_s: float | None = None) -> Client:
        """The same client for tasks with options: ``client.with_options(max_retries=0).run(x, ...)``.

        ``max_retries`` says how often a task is run again whose worker or node was lost (0: it is never started twice),
        ``timeout_s`` after how many seconds a running task is stopped.
        """
        other = copy.copy(self)
        other.max_retries = self.max_retries if max_retries is None else checked_max_retries(max_retries)
        other.timeout_s = self.timeout_s if timeout_s is None else checked_timeout_s(timeout_s)
        return other

    # -- functions --

    def register_function(
        self,
        function: Callable[..., Any],
        description: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        public: bool = False,
        group: UUIDLike | None = None,
        ha_endpoint_id: UUIDLike | None = None,
        *,
        function_name: str | None = None,
        container_uuid: UUIDLike | None = None,
        serializer: Serializer | None = None,
        searchable: bool | None = None,
    ) -> str:
        """Send a function to the service and get the id under which it can be run.

        ``public`` lets everybody run it, ``group`` the members of a group. ``container_uuid``, ``searchable`` and
        ``ha_endpoint_id`` are accepted and have no meaning here: whoever may run a function can find it.
        """
        body = registration(
            function,
            serializer or self.serializer,
            name=function_name,
            description=description,
            metadata=metadata,
            public=public,
            group=group,
        )
        return self._register(body)

    def register_source_code(
        self,
        source: str,
        function_name: str,
        description: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        public: bool = False,
        group: UUIDLike | None = None,
        ha_endpoint_id: UUIDLike | None = None,
    ) -> str:
        """Register a function by its text; ``function_name`` says which name in the text it is."""
        body = {
            "function_name": function_name,
            "function_code": source,
            "serialized": False,
            "meta": {**runtime(), **(metadata or {})},
            **sharing(public, group),
        }
        if description:
            body["description"] = description
        return self._register(body)

    def get_function(self, function_id: UUIDLike) -> dict[str, Any]:
        """Name, description, code and metadata of a function."""
        return self._dictionary(f"/v2/functions/{as_id(function_id, 'function_id')}")

    def find_functions(
        self, search: str | None = None, *, scope: str = "all", limit: int | None = None
    ) -> list[dict[str, Any]]:
        """Functions whose name, description or metadata has ``search``; ``scope`` is mine, shared or all."""
        params = {"search": search, "scope": scope}
        return list(self._pages("/v2/functions", "functions", params, limit))

    def get_functions(self, **filters: Any) -> list[dict[str, Any]]:
        """As :meth:`find_functions`."""
        return self.find_functions(**filters)

    def delete_function(self, function_id: UUIDLike) -> Any:
        return self.transport.delete(f"/v2/functions/{as_id(function_id, 'function_id')}")

    # -- running --

    def run(self, *args: Any, endpoint_id: UUIDLike, function_id: UUIDLike, **kwargs: Any) -> str:
        """Run a registered function once. The task's id, for :meth:`get_result`.

        All other keyword arguments are the function's; :meth:`with_options` says how the task is run.
        """
        batch = self.create_batch()
        batch.add(function_id, args, kwargs)
        task_id: str = self.batch_run(endpoint_id, batch).task_ids[0]
        return task_id

    def create_batch(
        self,
        task_group_id: UUIDLike | None = None,
        resource_specification: dict[str, Any] | None = None,
        user_endpoint_config: dict[str, Any] | None = None,
        create_websocket_queue: bool = False,
        result_serializers: list[str] | None = None,
        *,
        max_retries: int | None = None,
        timeout_s: float | None = None,
    ) -> Batch:
        """An empty batch; see :meth:`Batch.add`, and :meth:`with_options` for the last two."""
        return Batch(
            task_group_id,
            resource_specification,
            user_endpoint_config,
            create_websocket_queue,
            self.serializer,
            result_serializers,
            self.max_retries if max_retries is None else max_retries,
            self.timeout_s if timeout_s is None else timeout_s,
        )

    def batch_run(self, endpoint_id: UUIDLike | Batch, batch: Batch | None = None) -> BatchRun:
        """Submit a batch: ``batch_run(endpoint_id, batch)``, or ``batch_run(batch)`` where each call names its own.

        One request goes to each endpoint.
        """
        target: UUIDLike | None
        if isinstance(endpoint_id, Batch):
            target, batch = None, endpoint_id
        else:
            target = as_id(endpoint_id, "endpoint_id")
        if not batch:
            raise ValueError("the batch is empty: add() calls to it first")
        answers: dict[str, Any] = {}
        for endpoint, calls in batch.by_endpoint(target).items():
            answers[endpoint] = self.transport.post(
                f"/v3/endpoints/{endpoint}/submit",
                batch.body(calls),
                # The same with every repetition: a request whose answer was lost makes no second set of tasks.
                headers={"Idempotency-Key": uuid.uuid4().hex},
            )
        return BatchRun(batch, answers, target)

    def get_worker_hardware_details(self, endpoint_id: UUIDLike) -> str:
        """Ask a worker what machine it runs on. The task's id; :meth:`get_result` has the text."""
        return self.run(endpoint_id=endpoint_id, function_id=self.register_function(hardware_report))

    # -- tasks --

    def get_task(self, task_id: UUIDLike) -> dict[str, Any]:
        """A task's ``status`` and ``history``, and its ``result`` or ``exception`` once it is done.

        ``reason`` says in words what it waits for or why it was cancelled, ``attempts`` how each attempt ended that was
        lost with its worker, node or endpoint.
        """
        return readable(self._task(as_id(task_id, "task_id")), self.serializer.deserialize)

    def look_at_task(self, task_id: UUIDLike) -> dict[str, Any]:
        """As :meth:`get_task`, with the text of an ``exception`` and without the ``result``, which is not loaded."""
        return described_task(self._task(as_id(task_id, "task_id")))

    def get_result(self, task_id: UUIDLike, *, timeout: float | None = RESULT_TIMEOUT_S) -> Any:
        """The value that a task returned. Raises what the function raised.

        Waits for it up to ``timeout`` seconds (None: as long as it takes), then raises :class:`TaskPending`.
        """
        known_id = as_id(task_id, "task_id")
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = _LONGEST_WAIT_S if deadline is None else max(0.0, deadline - time.monotonic())
            document = self._task(known_id, wait_s=min(left, _LONGEST_WAIT_S))
            if is_done(document):
                break
            if deadline is not None and time.monotonic() >= deadline:
                raise TaskPending(str(document.get("status")))
        outcome = outcome_of(document, self.serializer.deserialize)
        if outcome.error is not None:
            raise outcome.error
        return outcome.value

    def get_batch_result(self, task_id_list: Iterable[UUIDLike] | BatchRun) -> dict[str, dict[str, Any]]:
        """The state of many tasks by id, with ``result`` or ``exception`` where done. Takes what batch_run returned."""
        wanted = task_id_list.task_ids if isinstance(task_id_list, BatchRun) else task_id_list
        ids = list(dict.fromkeys(as_id(task_id, "task_id") for task_id in wanted))
        found: dict[str, dict[str, Any]] = {}
        for start in range(0, len(ids), _STATUS_PAGE):
            answer = self.transport.post("/v2/batch_status", {"task_ids": ids[start : start + _STATUS_PAGE]})
            for task_id, document in answer["results"].items():
                found[task_id] = readable(document, self.serializer.deserialize)
        return found

    @overload
    def cancel(self, tasks: TaskLike) -> bool: ...  # type: ignore[overload-overlap]  # an id is a text, not many
    @overload
    def cancel(self, tasks: Iterable[TaskLike] | BatchRun) -> dict[str, dict[str, Any]]: ...
    @overload
    def cancel(self, *, task_group_id: UUIDLike) -> dict[str, Any]: ...

    def cancel(
        self, tasks: TaskLike | Iterable[TaskLike] | BatchRun | None = None, *, task_group_id: UUIDLike | None = None
    ) -> bool | dict[str, Any]:
        """Cancel a task, many, or all of a group, wherever they are; running ones are stopped.

        Of one task: True if that is how it ends, False if it had ended otherwise. Of many, in as few requests as can
        be: what the service says of each by its id, with ``cancelled``, ``status`` and ``reason``. Of a group: the
        numbers ``cancelled`` (by this) and ``ended`` (before). What is cancelled already stays so.
        """
        if (tasks is None) == (task_group_id is None):
            raise TypeError("say what to cancel: a task, several tasks, or task_group_id=...")
        if task_group_id is not None:
            return cancel_group(self.transport, as_id(task_group_id, "task_group_id"))
        if isinstance(tasks, FarcallFuture):
            return tasks.cancel()
        canceller = canceller_for(self.transport)
        if isinstance(tasks, str | uuid.UUID):
            task_id = as_id(tasks, "task_id")
            return is_cancelled(canceller.ask([task_id])[task_id])
        wanted = list(tasks.task_ids if isinstance(tasks, BatchRun) else tasks or ())
        futures = [each for each in wanted if isinstance(each, FarcallFuture)]
        ids = [as_id(each, "task_id") for each in wanted if not isinstance(each, FarcallFuture)]
        return {**cancel_all(futures, self.transport), **canceller.ask(ids)}

    def get_task_log(self, task_id: UUIDLike, stream: str = "stdout", after: int = 0) -> dict[str, Any]:
        """What a task has printed so far, running or not, from the character ``after`` on.

        ``text`` begins at the character ``start``, which is later than ``after`` where something was not kept; ``next``
        is where to go on; ``ended`` says that there will be no more. ``stream`` is stdout or stderr.
        """
        return read_log(self.transport, task_id, stream, after)

    def follow_task_log(self, task_id: UUIDLike, stream: str = "stdout", after: int = 0) -> Iterator[str]:
        """What a task prints, as it comes, until it has ended. Goes on when a service that was away is back."""
        return follow_log(self.transport, task_id, stream, after)

    def tasks(
        self,
        *,
        state: str | None = None,
        endpoint_id: UUIDLike | None = None,
        function_id: UUIDLike | None = None,
        task_group_id: UUIDLike | None = None,
        created_after: str | None = None,
        created_before: str | None = None,
        limit: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """My tasks, without their results; only those that fit. Times are ISO 8601. Asks for more as it is read."""
        params = {
            "state": state,
            "endpoint_id": endpoint_id,
            "function_id": function_id,
            "task_group_id": task_group_id,
            "created_after": created_after,
            "created_before": created_before,
        }
        return self._pages("/v2/tasks", "tasks", params, limit)

    def get_task_group(self, task_group_id: UUIDLike) -> dict[str, Any]:
        """The ids of a group's tasks, and when they were made."""
        # Our results are asked for, so the broker need not keep them too.
        path = f"/v2/taskgroup/{as_id(task_group_id, 'task_group_id')}"
        return dict(self.transport.get(path, params={"create_queue": "false"}))

    def get_task_group_results(self, task_group_id: UUIDLike) -> dict[str, dict[str, Any]]:
        """Those tasks of a group that are done, by id, with ``result`` or ``exception``."""
        path = f"/v2/taskgroup/{as_id(task_group_id, 'task_group_id')}/results"
        found: dict[str, dict[str, Any]] = {}
        cursor = 0
        while True:
            answer = self.transport.get(path, params={"after": cursor, "wait": 0, "limit": _STATUS_PAGE})
            if not answer["results"]:
                return found
            for document in answer["results"]:
                found[document["task_id"]] = readable(document, self.serializer.deserialize)
            cursor = answer["cursor"]

    # -- the service --

    def whoami(self) -> dict[str, Any]:
        """As whom the service knows the caller."""
        return self._dictionary("/v2/whoami")

    def get_limits(self) -> dict[str, Any]:
        """How much the service takes at once, and how long it keeps what it has."""
        return self._dictionary("/v2/limits")

    # -- endpoints --

    def get_endpoints(self, role: str | None = None) -> list[dict[str, Any]]:
        """Endpoints that are mine (``role="owner"``) or that I may use (``role="any"``)."""
        found: list[dict[str, Any]] = self.transport.get("/v2/endpoints", params={"role": role})
        return found

    def get_endpoint_status(self, endpoint_uuid: UUIDLike) -> dict[str, Any]:
        """``status`` (online or offline), ``details`` and ``logs``: what the endpoint reported last, newest first."""
        return self._dictionary(f"/v2/endpoints/{as_id(endpoint_uuid, 'endpoint_uuid')}/status")

    def get_endpoint_metadata(self, endpoint_uuid: UUIDLike) -> dict[str, Any]:
        """What the endpoint said of itself when it registered."""
        return self._dictionary(f"/v2/endpoints/{as_id(endpoint_uuid, 'endpoint_uuid')}")

    def get_allowed_functions(self, endpoint_id: UUIDLike) -> dict[str, Any]:
        """Whether the endpoint runs only certain functions, and which."""
        return self._dictionary(f"/v3/endpoints/{as_id(endpoint_id, 'endpoint_id')}/allowed_functions")

    def register_endpoint(
        self,
        name: str,
        endpoint_id: UUIDLike | None,
        metadata: Mapping[str, Any] | None = None,
        multi_user: bool | None = None,
        display_name: str | None = None,
        allowed_functions: Iterable[UUIDLike] | None = None,
        auth_policy: UUIDLike | None = None,
        subscription_id: UUIDLike | None = None,
        public: bool | None = None,
        high_assurance: bool | None = None,
        admins: Iterable[UUIDLike] | None = None,
    ) -> dict[str, Any]:
        """What an agent does when it starts: make itself known and be told its queues."""
        body = {
            "endpoint_name": name,
            "display_name": display_name,
            "multi_user": multi_user or None,
            "metadata": metadata or None,
            "allowed_functions": [str(each) for each in allowed_functions] if allowed_functions else None,
            "authentication_policy": auth_policy and str(auth_policy),
            "subscription_uuid": subscription_id and str(subscription_id),
            "public": public,
            "high_assurance": high_assurance,
            "admins": [str(each) for each in admins] if admins else None,
        }
        body = {key: value for key, value in body.items() if value is not None}
        answer: dict[str, Any]
        if endpoint_id:
            answer = self.transport.put(f"/v3/endpoints/{as_id(endpoint_id, 'endpoint_id')}", body)
        else:
            answer = self.transport.post("/v3/endpoints", body)
        return answer

    def stop_endpoint(self, endpoint_id: UUIDLike) -> Any:
        """Stop an endpoint from afar; for a while it may not register again."""
        return self.transport.post(f"/v3/endpoints/{as_id(endpoint_id, 'endpoint_id')}/lock")

    def delete_endpoint(self, endpoint_id: UUIDLike) -> Any:
        """Remove an endpoint; its unfinished tasks fail."""
        return self.transport.delete(f"/v2/endpoints/{as_id(endpoint_id, 'endpoint_id')}")

    # -- inside --

    def _register(self, body: dict[str, Any]) -> str:
        function_id: str = self.transport.post("/v3/functions", body)["function_uuid"]
        return function_id

    def _dictionary(self, path: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.transport.get(path)
        return answer

    def _task(self, task_id: str, wait_s: float | None = None) -> dict[str, Any]:
        answer: dict[str, Any] = self.transport.get(
            f"/v2/tasks/{task_id}", params={"wait": None if wait_s is None else round(wait_s, 3)}
        )
        return answer

    def _pages(self, path: str, key: str, params: Mapping[str, Any], limit: int | None) -> Iterator[dict[str, Any]]:
        after: str | None = None
        left = limit
        while left is None or left > 0:
            answer = self.transport.get(path, params={**params, "limit": left and min(left, 1000), "after": after})
            yield from answer[key]
            after = answer.get("next")
            if after is None:
                return
            left = None if left is None else left - len(answer[key])


def _as_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())
