"""One request to the service and its answer: connections, retries, and errors as exceptions."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from farcall import __version__
from farcall.auth import Credentials, FixedToken
from farcall.config import check_url
from farcall.errors import ServiceError, ServiceUnavailable, Unauthenticated, service_error

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

log = logging.getLogger(__name__)

#: How long a request is tried again while the service does not answer.
DEFAULT_RETRY_FOR_S = 30.0
DEFAULT_TIMEOUT_S = 60.0
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_WORTH_ANOTHER_TRY = frozenset({429, 500, 502, 503, 504})
#: A bug of the service does not go away in half a minute: a plain 500 is tried so often and no more.
_TRIES_OF_A_500 = 3
#: How many connections are kept; more are opened when more threads ask at once.
_POOL_SIZE = 32


class Transport:
    """Requests to one service, from any number of threads and on both sides of a fork.

    While the service does not answer, a request is tried again, with a warning in the log, for ``retry_for_s`` seconds.
    """

    def __init__(
        self,
        service_url: str,
        credentials: Credentials | None = None,
        *,
        retry_for_s: float = DEFAULT_RETRY_FOR_S,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.service_url = check_url(service_url)
        self.credentials = credentials or FixedToken(None)
        self.retry_for_s = retry_for_s
        self._sleep = sleep
        self._pool: PoolManager | None = None
        self._pool_pid = 0

    def get(self, path: str, **options: Any) -> Any:
        return self.request("GET", path, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> Any:
        return self.request("POST", path, body=body, **options)

    def put(self, path: str, body: Any = None, **options: Any) -> Any:
        return self.request("PUT", path, body=body, **options)

    def delete(self, path: str, **options: Any) -> Any:
        return self.request("DELETE", path, **options)

    def request(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        form: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry_for_s: float | None = None,
    ) -> Any:
        """The answer's JSON. Raises :class:`~farcall.errors.ServiceError` when the service says no or nothing at all.

        ``body`` is sent as JSON, ``form`` as what a browser's form sends. ``params`` that are None are left
        out. ``retry_for_s=0`` tries once, ``math.inf`` until the service answers.
        """
        encoded, kind = _encoded(body, form)
        sent = {**kind, **(headers or {})}
        url = self.service_url + path + _query(params)
        patience = _Patience(self.service_url, self.retry_for_s if retry_for_s is None else retry_for_s)
        renewed = False
        while True:
            try:
                answer = self._send(method, url, encoded, sent, timeout_s)
            except ServiceUnavailable as error:
                self._sleep(patience.pause_after(error))
                continue
            patience.over()
            if answer.status < 300:
                return self._json(answer)
            failure = _failure(answer, f"{method} {path}")
            if isinstance(failure, Unauthenticated) and not renewed and self.credentials.renew():
                renewed = True
            elif answer.status in _WORTH_ANOTHER_TRY:
                self._sleep(patience.pause_after(failure, _retry_after_s(answer)))
            else:
                raise failure

    def close(self) -> None:
        """Close the connections that are kept. The next request opens new ones."""
        pool, self._pool = self._pool, None
        if pool is not None and self._pool_pid == os.getpid():
            pool.clear()

    def _send(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str], timeout_s: float
    ) -> BaseHTTPResponse:
        from urllib3 import Timeout
        from urllib3.exceptions import HTTPError

        sent = {"Accept": "application/json", "User-Agent": f"farcall/{__version__}", **headers}
        authorization = self.credentials.header()
        if authorization:
            sent["Authorization"] = authorization
        try:
            return self._connections().request(
                method,
                url,
                body=body,
                headers=sent,
                timeout=Timeout(connect=min(timeout_s, 10.0), read=timeout_s),
                retries=False,
                redirect=False,
            )
        except (HTTPError, OSError) as error:
            # The sentence holds the reason; the three tracebacks behind it would only hide it.
            raise ServiceUnavailable(
                f"no answer from the service at {self.service_url}: {_reason(error)}. "
                "Is it running (`farcall-webservice serve`), and is FARCALL_SERVICE_URL right?"
            ) from None

    def _connections(self) -> PoolManager:
        # Loaded with the first request, so that importing farcall stays quick. A child process must not write into
        # its parent's connections, so it gets its own.
        if self._pool is None or self._pool_pid != os.getpid():
            self._pool, self._pool_pid = _new_pool(self.service_url), os.getpid()
        return self._pool

    def _json(self, answer: BaseHTTPResponse) -> Any:
        if not answer.data:
            return None
        try:
            return json.loads(answer.data)
        except ValueError as error:
            raise ServiceError(
                f"{self.service_url} answered with something that is not JSON: is it a Farcall service?",
                http_status=answer.status,
            ) from error


class _Patience:
    """How long one request goes on trying, and what the user hears of it."""

    def __init__(self, service_url: str, retry_for_s: float) -> None:
        self._service_url = service_url
        self._retry_for_s = retry_for_s
        self._deadline: float | None = None
        self._tries = 0

    def pause_after(self, error: ServiceError, wanted_s: float | None = None) -> float:
        """The pause before the next try. Raises ``error`` when there is to be none."""
        now = time.monotonic()
        self._tries += 1
        if self._deadline is None:
            self._deadline = now + self._retry_for_s
        elif self._tries == 2:
            # Not at the first failure: the service may just have closed a connection that was long idle.
            how_long = "until it answers" if math.isinf(self._retry_for_s) else f"for {self._retry_for_s:g} s"
            log.warning("%s; trying again %s", error.message, how_long)
        if now >= self._deadline or (error.http_status == 500 and self._tries >= _TRIES_OF_A_500):
            raise error
        pause = wanted_s or min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (self._tries - 1)) * random.uniform(0.5, 1.0)
        return min(pause, self._deadline - now)

    def over(self) -> None:
        if self._tries > 1:
            log.info("the service at %s answers again", self._service_url)


def _new_pool(service_url: str) -> PoolManager:
    from urllib.request import getproxies, proxy_bypass

    import urllib3

    parts = urlsplit(service_url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme)
    options: dict[str, Any] = {"num_pools": 2, "maxsize": _POOL_SIZE}
    if proxy and not proxy_bypass(parts.netloc):
        return urllib3.ProxyManager(proxy, **options)
    return urllib3.PoolManager(**options)


def _encoded(body: Any, form: Mapping[str, str] | None) -> tuple[bytes | None, dict[str, str]]:
    if form is not None:
        return urlencode(form).encode(), {"Content-Type": "application/x-www-form-urlencoded"}
    if body is not None:
        return json.dumps(body, separators=(",", ":")).encode(), {"Content-Type": "application/json"}
    return None, {}


def _query(params: Mapping[str, Any] | None) -> str:
    given = {name: value for name, value in (params or {}).items() if value is not None}
    return "?" + urlencode(given) if given else ""


def _failure(answer: BaseHTTPResponse, request: str) -> ServiceError:
    try:
        document = json.loads(answer.data)
        message, code = document["message"], document["code"]
        request_id = document.get("request_id")
    except (ValueError, KeyError, TypeError, AttributeError):
        text = answer.data[:200].decode("utf-8", "replace").strip()
        message, code, request_id = f"{request} was answered with status {answer.status}: {text}", None, None
    return service_error(answer.status, str(message), code=code, request_id=request_id)


def _retry_after_s(answer: BaseHTTPResponse) -> float | None:
    try:
        return max(0.0, float(answer.headers.get("Retry-After", "")))
    except ValueError:
        return None


def _reason(error: BaseException) -> str:
    """The words of the innermost cause: urllib3 wraps what the operating system said."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
