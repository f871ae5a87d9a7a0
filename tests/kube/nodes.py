"""A node of a test cluster: it runs the containers of pods as processes of this machine, with a container's rights to
see and end other processes, and says of them what a kubelet would.

There are no images: whatever one is called, the machine's own files are in it; what has a name of ``Images`` behaves
as such an image would.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from servers import free_ports
from urllib3.exceptions import HTTPError

from .apiclient import ApiAnswer, Object
from .cluster import Cluster
from .podlife import PodLife, now, path_of
from .volumes import Contents, expanded

log = logging.getLogger(__name__)

_CONTAINER = Path(__file__).with_name("container.py")

#: How often it tells that it lives, and tries again what a pod waits for.
_BEAT_S, _RETRY_S = 5.0, 0.1


class Node:
    """One of a cluster's nodes, in threads of the tests."""

    def __init__(self, cluster: Cluster, name: str, folder: Path, *, cpu: str, path: str) -> None:
        self.name = name
        self._cluster = cluster
        self._api = cluster.admin
        self._folder = folder
        self._cpu = cpu
        self._path = path
        self._contents = Contents(self._api, name)
        self._closing = threading.Event()
        self._silent = threading.Event()
        self._lock = threading.Lock()
        self._pods: dict[str, PodLife] = {}
        (self._port,) = free_ports(1)
        self._server = self._log_server()

    def start(self) -> None:
        self._api.post(
            "/api/v1/nodes", {"metadata": {"name": self.name, "labels": {"kubernetes.io/hostname": self.name}}}
        )
        self._say_how_it_is()
        self._threads = [
            threading.Thread(target=run, name=f"{self.name}: {run.__name__}", daemon=True)
            for run in (self._watch, self._beat, self._server.serve_forever)
        ]
        for thread in self._threads:
            thread.start()

    def be_silent(self) -> None:
        """As if its network were gone: it hears nothing and says nothing; what it runs goes on."""
        self._silent.set()

    def stop(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        for thread in self._threads:
            thread.join()
        with self._lock:
            pods = list(self._pods.values())
        for pod in pods:
            pod.kill()
        self._api.delete_if_there(f"/api/v1/nodes/{self.name}")
        shutil.rmtree(self._folder)

    # -- the node itself ----------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        while not self._closing.wait(_BEAT_S):
            if not self._silent.is_set():
                with suppress(ApiAnswer, HTTPError):
                    self._say_how_it_is()

    def _say_how_it_is(self) -> None:
        amounts = {"cpu": self._cpu, "memory": "16Gi", "pods": "110"}
        ready = {"type": "Ready", "status": "True", "reason": "TestNode", "lastHeartbeatTime": now()}
        status = {
            "capacity": amounts,
            "allocatable": amounts,
            "conditions": [ready],
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._port}},
        }
        self._api.patch(f"/api/v1/nodes/{self.name}/status", {"status": status})

    def _watch(self) -> None:
        while not self._closing.is_set():
            try:
                events = self._api.events("/api/v1/pods", self._closing, fieldSelector=f"spec.nodeName={self.name}")
                for event in events:
                    if event["type"] != "LISTED" and not self._silent.is_set():
                        self._hear(event["type"], event["object"])
            except (ApiAnswer, HTTPError) as error:
                # The tests may have stopped the API server for a while.
                log.info("%s does not hear the API server: %s", self.name, error)
                self._closing.wait(_RETRY_S)

    def _hear(self, kind: str, pod: Object) -> None:
        uid = pod["metadata"]["uid"]
        with self._lock:
            known = self._pods.get(uid)
        if kind == "DELETED":
            if known is not None:
                known.kill()
        elif pod["metadata"].get("deletionTimestamp"):
            (known or self._known(pod)).end(pod)
        elif known is None and pod["status"].get("phase") == "Pending":
            threading.Thread(target=self._known(pod).run, daemon=True).start()

    def _known(self, pod: Object) -> PodLife:
        uid = pod["metadata"]["uid"]
        found = PodLife(self, pod, self._folder / uid)
        with self._lock:
            self._pods[uid] = found
        return found

    def say(self, pod: Object, status: Object) -> None:
        """Tell the API server how a pod is."""
        body = {"status": {"hostIP": "127.0.0.1", "podIP": "127.0.0.1", "startTime": now(), **status}}
        while not self._closing.is_set() and not self._silent.is_set():
            try:
                self._api.patch(f"{path_of(pod)}/status", body)
                return
            except ApiAnswer as answer:
                if answer.status in (404, 409):
                    return
                raise
            except HTTPError:
                self._closing.wait(_RETRY_S)

    def gone(self, pod: Object) -> None:
        """Tell that nothing is left of it."""
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod["metadata"]["uid"]}}
        with suppress(ApiAnswer, HTTPError):
            if not self._silent.is_set():
                self._api.delete(path_of(pod), body)

    # -- logs ---------------------------------------------------------------------------------------------------------

    def _log_server(self) -> ThreadingHTTPServer:
        node = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                words = parts.path.strip("/").split("/")
                text = node._log_of(*words[1:4]) if words[0] == "containerLogs" and len(words) == 4 else None
                if text is None:
                    self.send_error(404)
                    return
                lines = text.splitlines(keepends=True)
                tail = parse_qs(parts.query).get("tailLines")
                content = b"".join(lines[-int(tail[0]) :] if tail else lines)
                self.send_response(200)
                self.send_header("Content-Type", "text/plain")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None: ...

        files = self._cluster.authority.issue(self.name, is_server=True)
        server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.certificate, files.key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        return server

    def _log_of(self, namespace: str, name: str, container: str) -> bytes | None:
        with self._lock:
            for pod in self._pods.values():
                metadata = pod.pod["metadata"]
                if (metadata["namespace"], metadata["name"]) == (namespace, name):
                    path = pod.folder / f"{container}.log"
                    return path.read_bytes() if path.exists() else None
        return None

    # -- what a pod needs ---------------------------------------------------------------------------------------------

    def start_container(self, pod: Object, container: Object, folder: Path) -> subprocess.Popen[bytes]:
        """Raises ApiAnswer or NotYet while something is missing that it needs."""
        environment = self._contents.environment(pod, container)
        environment |= {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(self._cluster.port)}
        if self._path:
            environment["PATH"] = f"{self._path}:{environment['PATH']}"
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes") or ()}
        mounts = []
        for mount in container.get("volumeMounts") or ():
            source = self._contents.volume(pod, volumes[mount["name"]], folder / "volumes" / mount["name"])
            mounts.append([str(source / mount.get("subPath", "")), mount["mountPath"]])
        context = {**(pod["spec"].get("securityContext") or {}), **(container.get("securityContext") or {})}
        words = [*(container.get("command") or ()), *(container.get("args") or ())]
        root = folder / "root"
        root.mkdir(exist_ok=True)
        specification = folder / f"{container['name']}.json"
        specification.write_text(
            json.dumps(
                {
                    "root": str(root),
                    "mounts": mounts,
                    "command": [expanded(word, environment) for word in words],
                    "environment": environment,
                    "directory": container.get("workingDir", "/"),
                    "user": context.get("runAsUser"),
                    "group": context.get("runAsGroup"),
                }
            )
        )
        program = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        reading, writing = os.pipe()
        with (folder / f"{container['name']}.log").open("ab") as output:
            process = subprocess.Popen(
                [*program, sys.executable, "-I", "-S", _CONTAINER, specification, str(writing)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[writing],
            )
        os.close(writing)
        # Until it becomes the container's own program, it is deaf to signals.
        os.read(reading, 1)
        os.close(reading)
        return process


@contextmanager
def running_node(cluster: Cluster, name: str = "node-1", *, cpu: str = "16", path: str = "") -> Iterator[Node]:
    """A node that is there for a while. ``path`` comes before its containers' PATH."""
    folder = cluster.folder / name
    folder.mkdir()
    node = Node(cluster, name, folder, cpu=cpu, path=path)
    node.start()
    try:
        yield node
    finally:
        node.stop()
