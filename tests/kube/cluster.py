"""etcd, API server, scheduler and controllers on loopback, in one folder."""

from __future__ import annotations

import base64
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import yaml
from servers import START_TIMEOUT_S, _plain_environment, _Server, free_ports
from urllib3.exceptions import HTTPError

from .apiclient import ApiAnswer, ApiClient, Object
from .certificates import Authority, signing_key

BUILD = Path(__file__).with_name("build.sh")
SERVERS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")


def programs() -> Path:
    """Where build.sh puts them."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(cache) / "farcall-k8s" / "bin"


def missing_kubernetes() -> str | None:
    """Why there can be no cluster here; None if there can."""
    if os.geteuid():
        return "only root can run pods as processes with namespaces of their own"
    if not (programs() / "complete").exists():
        return "its servers have not been built (tests/kube/build.sh, once, some minutes)"
    return None


class Part(_Server):
    """One of the servers."""

    def __init__(self, folder: Path, name: str, *options: str, ready_text: str = "Serving securely on") -> None:
        self.ready_text = ready_text
        command = [programs() / name, *options]
        super().__init__(command, log=folder / f"{name}.log", environment=_plain_environment(HOME=str(folder)))

    def suspend(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


class Cluster:
    """A control plane; nodes are added with ``nodes.running_node``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        etcd_port, peer_port, self.port, controller_port, scheduler_port = free_ports(5)
        self.url = f"https://127.0.0.1:{self.port}"
        self.authority = Authority(folder)
        accounts_key, accounts_pub = signing_key(folder)
        served = self.authority.issue("apiserver", is_server=True)
        towards_nodes = self.authority.issue("apiserver-to-nodes", group="system:masters")
        self._tokens = {
            name: secrets.token_hex(16) for name in ("admin", "system:kube-controller-manager", "system:kube-scheduler")
        }
        groups = {"admin": "system:masters"}
        rows = [f'{token},{name},{name},"{groups.get(name, "")}"' for name, token in self._tokens.items()]
        (folder / "tokens.csv").write_text("\n".join(rows) + "\n")
        etcd_url, peer_url = f"http://127.0.0.1:{etcd_port}", f"http://127.0.0.1:{peer_port}"
        self.etcd = Part(
            folder,
            "etcd",
            "--name=test",
            f"--data-dir={folder}/etcd",
            f"--listen-client-urls={etcd_url}",
            f"--advertise-client-urls={etcd_url}",
            f"--listen-peer-urls={peer_url}",
            f"--initial-advertise-peer-urls={peer_url}",
            f"--initial-cluster=test={peer_url}",
            "--unsafe-no-fsync",
            ready_text="ready to serve client requests",
        )
        self.api_server = Part(
            folder,
            "kube-apiserver",
            f"--etcd-servers={etcd_url}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={self.port}",
            f"--cert-dir={folder}",
            f"--tls-cert-file={served.certificate}",
            f"--tls-private-key-file={served.key}",
            f"--client-ca-file={self.authority.certificate}",
            f"--kubelet-client-certificate={towards_nodes.certificate}",
            f"--kubelet-client-key={towards_nodes.key}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--token-auth-file={folder}/tokens.csv",
            "--authorization-mode=RBAC",
            "--allow-privileged=true",
            f"--service-account-key-file={accounts_pub}",
            f"--service-account-signing-key-file={accounts_key}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--endpoint-reconciler-type=none",
        )
        self.controllers = Part(
            folder,
            "kube-controller-manager",
            f"--kubeconfig={self._kubeconfig_of('system:kube-controller-manager')}",
            f"--service-account-private-key-file={accounts_key}",
            f"--root-ca-file={self.authority.certificate}",
            "--use-service-account-credentials=true",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            "--port=0",
            f"--secure-port={controller_port}",
            f"--cert-dir={folder}",
        )
        self.scheduler = Part(
            folder,
            "kube-scheduler",
            f"--kubeconfig={self._kubeconfig_of('system:kube-scheduler')}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            "--port=0",
            f"--secure-port={scheduler_port}",
            f"--cert-dir={folder}",
        )
        self.admin = ApiClient(self.url, self._tokens["admin"], self.authority.certificate)

    def kubeconfig(self, path: Path, token: str, namespace: str = "default") -> Path:
        """Write a file with the way to this cluster for whom this token belongs to."""
        data = base64.b64encode(self.authority.certificate.read_bytes()).decode()
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {"server": self.url, "certificate-authority-data": data}}],
            "users": [{"name": "user", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "user", "namespace": namespace}}],
            "current-context": "test",
        }
        path.write_text(yaml.safe_dump(content))
        return path

    def admin_kubeconfig(self, path: Path, namespace: str = "default") -> Path:
        return self.kubeconfig(path, self._tokens["admin"], namespace)

    def namespace(self, name: str) -> str:
        """Make one, and wait until pods can be made in it."""
        self.admin.post("/api/v1/namespaces", {"metadata": {"name": name}})
        self._until_there(
            f"/api/v1/namespaces/{name}/serviceaccounts/default", lambda found: bool(found.get("secrets"))
        )
        return name

    def drop_namespace(self, name: str) -> None:
        """Have it removed with all that is in it; the controllers do so by and by."""
        self.admin.delete_if_there(f"/api/v1/namespaces/{name}")

    def account(self, namespace: str, name: str) -> str:
        """Make a service account and return a token for it."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        self.admin.post(path, {"metadata": {"name": name}})
        return str(self.admin.post(f"{path}/{name}/token", {"spec": {}})["status"]["token"])

    def wait_until_ready(self) -> None:
        """Beyond listening: the API server has the roles that it begins with, the controllers do their work."""
        self._until_there("/readyz")
        self._until_there("/api/v1/namespaces/default/serviceaccounts/default")

    def _until_there(self, path: str, is_complete: Callable[[Object], bool] = lambda _: True) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                if is_complete(self.admin.get(path)):
                    return
            except (ApiAnswer, HTTPError):
                if time.monotonic() > deadline:
                    raise
            # The API server tells of readiness in no other way than by being asked.
            threading.Event().wait(0.05)

    def _kubeconfig_of(self, name: str) -> Path:
        return self.kubeconfig(self.folder / f"{name.replace(':', '-')}.kubeconfig", self._tokens[name])


@contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster of one's own, without nodes."""
    cluster = Cluster(folder)
    with ExitStack() as running:
        for part in (cluster.etcd, cluster.api_server):
            running.callback(part.kill)
            part.start()
        cluster._until_there("/readyz")
        for part in (cluster.controllers, cluster.scheduler):
            running.callback(part.kill)
            part.start()
        cluster.wait_until_ready()
        yield cluster
