"""One cluster with one node for the tests of this folder, and a namespace for each."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from kube.cluster import Cluster, missing_kubernetes, running_cluster
from kube.nodes import running_node
from running import BIN
from servers import needs

import farcall_provider_k8s
from farcall_endpoint.provider import BlockState, Provider
from farcall_provider_k8s import K8sConfig, K8sProvider

ROLE = yaml.safe_load(Path(farcall_provider_k8s.__file__).with_name("role.yaml").read_text())


@dataclass
class Account:
    """A namespace, and an account there that may do what ``role.yaml`` says and nothing else."""

    cluster: Cluster
    namespace: str
    kubeconfig: Path

    def options(self, **more: Any) -> K8sConfig:
        """Of a provider whose pods are processes of this machine, and its users whoever runs the tests."""
        wanted = {"image": "test", "kubeconfig": str(self.kubeconfig), "run_as_non_root": False, **more}
        return K8sConfig(agent_address="127.0.0.1", **wanted)

    def provider(self, **more: Any) -> K8sProvider:
        return K8sProvider(self.options(**more))

    def path(self, resource: str, name: str = "") -> str:
        group = "/apis/rbac.authorization.k8s.io/v1" if resource == "roles" else "/api/v1"
        return f"{group}/namespaces/{self.namespace}/{resource}" + (f"/{name}" if name else "")

    def all(self, resource: str) -> list[dict[str, Any]]:
        return list(self.cluster.admin.get(self.path(resource))["items"])


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    needs("kubernetes", missing_kubernetes)
    with running_cluster(tmp_path_factory.mktemp("kubernetes")) as cluster, running_node(cluster, path=str(BIN)):
        yield cluster


@pytest.fixture
def account(cluster: Cluster, tmp_path: Path) -> Iterator[Account]:
    namespace = cluster.namespace(f"test-{uuid.uuid4().hex[:8]}")
    token = cluster.account(namespace, "agent")
    account = Account(cluster, namespace, cluster.kubeconfig(tmp_path / "kubeconfig", token, namespace))
    cluster.admin.post(account.path("roles"), ROLE)
    binding = {
        "metadata": {"name": "farcall-agent"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "farcall-agent"},
        "subjects": [{"kind": "ServiceAccount", "name": "agent", "namespace": namespace}],
    }
    cluster.admin.post(account.path("roles").replace("roles", "rolebindings"), binding)
    yield account
    cluster.drop_namespace(namespace)


@pytest.fixture
def provider(account: Account) -> Iterator[K8sProvider]:
    provider = account.provider()
    yield provider
    provider.close()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """What an agent gives its nodes, and what it keeps."""
    folder = tmp_path / "run"
    (folder / "htex" / "certificates").mkdir(parents=True)
    (folder / "secret").write_text("for pods only\n")
    for name in ("client.key_secret", "server.key", "server.key_secret"):
        (folder / "htex" / "certificates" / name).write_text(f"this is {name}\n")
    (folder / "htex" / "interchange.log").write_text("said\n")
    return folder


@pytest.fixture
def ended() -> Callable[[Provider, str], BlockState]:
    """The state of a block once it has ended; a provider can only be asked."""

    def wait(
        provider: Provider, block_id: str, wanted: Callable[[BlockState], bool] = lambda s: s.has_ended
    ) -> BlockState:
        deadline = time.monotonic() + 60
        while not wanted(state := provider.states([block_id])[block_id]):
            assert time.monotonic() < deadline, f"{block_id} is {state}: {provider.reason(block_id)}"
            time.sleep(0.02)
        return state

    return wait
