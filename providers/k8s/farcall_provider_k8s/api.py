"""The API server: a request, its answer as plain maps, and what its refusals say in words.

The client library knows the ways in: kubeconfig files, programs that bring tokens, the account of a pod, certificates.
What is asked for passes by its models, which would drop the fields that a newer cluster has and their version has not.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import urllib3
from kubernetes import client, config
from kubernetes.config.config_exception import ConfigException

from farcall_endpoint.provider import ProviderError, SystemUnavailable

from .config import K8sConfig

#: Until an answer begins; in a busy cluster, admission webhooks alone may take ten seconds.
TIMEOUT = urllib3.Timeout(connect=10, read=30)

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class Refused(ProviderError):
    """The API server has answered, and said no."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Api:
    """One namespace of a cluster, with the credentials of an account."""

    def __init__(self, options: K8sConfig) -> None:
        configuration = client.Configuration()
        try:
            found = _find_way(options, configuration)
        except (ConfigException, OSError, ValueError) as error:
            raise ProviderError(
                f"there is no way to a cluster: {_one_line(error)}; set kubeconfig (and context) of the k8s provider"
            ) from error
        self.namespace = options.namespace or found or "default"
        self._configuration: Any = configuration
        self._http = client.ApiClient(configuration).rest_client.pool_manager
        self.place = f"{urlsplit(configuration.host).netloc}, namespace {self.namespace}"

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        doing: str,
        query: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Ask for something and return the answer. ``doing`` is a verb and a resource: ``create pods``.

        ``path`` begins with ``/`` or is what comes after the namespace. Raises Refused, or SystemUnavailable.
        """
        response = self._send(method, path, body, query, doing=doing)
        data = json.loads(response.data)
        return data if isinstance(data, dict) else {}

    def text(self, path: str, *, doing: str, query: Mapping[str, Any] | None = None) -> str:
        return self._send("GET", path, None, query, doing=doing).data.decode(errors="replace")

    def stream(self, path: str, query: Mapping[str, Any], *, doing: str, silence_s: float) -> urllib3.BaseHTTPResponse:
        """An answer that goes on and on; it is open, and whoever asked for it closes it."""
        return self._send(
            "GET", path, None, query, doing=doing, stream=True, timeout=urllib3.Timeout(connect=10, read=silence_s)
        )

    def close(self) -> None:
        self._http.clear()

    def own_address(self) -> str:
        """The address of this machine from which the API server is reached."""
        parts = urlsplit(self._configuration.host)
        target = (parts.hostname or "", parts.port or 443)
        try:
            kind, _, _, _, address = socket.getaddrinfo(*target, type=socket.SOCK_DGRAM)[0]
            with socket.socket(kind, socket.SOCK_DGRAM) as probe:
                # Nothing is sent: the kernel only chooses the way.
                probe.connect(address)
                return str(probe.getsockname()[0])
        except OSError as error:
            raise SystemUnavailable(f"there is no way to the API server at {self.place}: {error}") from error

    # -- one request --------------------------------------------------------------------------------------------------

    def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        query: Mapping[str, Any] | None,
        *,
        doing: str,
        stream: bool = False,
        timeout: urllib3.Timeout = TIMEOUT,
    ) -> urllib3.BaseHTTPResponse:
        if not path.startswith("/"):
            path = f"/api/v1/namespaces/{self.namespace}/{path}"
        url = self._configuration.host + path + (f"?{urlencode(query)}" if query else "")
        try:
            response: urllib3.BaseHTTPResponse = self._http.request(
                method,
                url,
                body=None if body is None else json.dumps(body).encode(),
                headers=self._headers(body is not None),
                timeout=timeout,
                preload_content=not stream,
                # What was sent may have been obeyed.
                retries=False,
                redirect=False,
            )
        except (urllib3.exceptions.HTTPError, OSError, ConfigException) as error:
            raise SystemUnavailable(f"the API server at {self.place} cannot be reached: {_one_line(error)}") from error
        if 200 <= response.status < 300:
            return response
        with contextlib.closing(response):
            raise self._refusal(response.status, _message(response.data), doing)

    def _headers(self, has_body: bool) -> dict[str, str]:
        headers = {"Accept": "application/json", "User-Agent": "farcall-provider-k8s"}
        if has_body:
            headers["Content-Type"] = "application/json"
        # Asked anew each time: tokens change while we live.
        for each in self._configuration.auth_settings().values():
            if each["in"] == "header" and each["value"]:
                headers[each["key"]] = each["value"]
        return headers

    def _refusal(self, status: int, message: str, doing: str) -> ProviderError:
        said = message or f"HTTP status {status}"
        if status == 401:
            return Refused(f"the API server at {self.place} does not accept these credentials: {said}", status)
        if status in (408, 429) or status >= 500:
            return SystemUnavailable(f"the API server at {self.place} cannot do it now: {said}")
        denied = re.match(r'.* is forbidden: User "([^"]*)" cannot (\w+) resource "([^"]+)"', said, re.DOTALL)
        if status == 403 and denied:
            account, verb, resource = denied.groups()
            return Refused(
                f"{account} may not {verb} {resource} in namespace {self.namespace}: its role lacks the verb {verb!r} "
                f"for {resource!r} (role.yaml of the k8s provider has what is needed)",
                status,
            )
        return Refused(f"the API server at {self.place} refuses to {doing}: {said}", status)


def _find_way(options: K8sConfig, configuration: Any) -> str | None:
    """Fill in how the API server is reached; returns the namespace that goes with the credentials, if any."""
    if options.kubeconfig is None and options.context is None and (_ACCOUNT / "token").exists():
        config.load_incluster_config(client_configuration=configuration)
        return (_ACCOUNT / "namespace").read_text().strip()
    file = None if options.kubeconfig is None else str(Path(options.kubeconfig).expanduser())
    config.load_kube_config(file, options.context, client_configuration=configuration, persist_config=False)
    contexts, current = config.list_kube_config_contexts(file)
    chosen = next((each for each in contexts if each["name"] == options.context), current)
    namespace = chosen["context"].get("namespace")
    return None if namespace is None else str(namespace)


def _message(body: bytes) -> str:
    """The sentence in the answer of an API server, or of something in front of it."""
    text = body.decode(errors="replace").strip()
    try:
        status = json.loads(text)
    except ValueError:
        return text[:500]
    return str(status.get("message", text[:500])) if isinstance(status, dict) else text[:500]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def lines_of(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """The lines of an open answer, each as soon as it is there."""
    rest = b""
    for chunk in response.stream(amt=None, decode_content=True):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
