"""What deploy/kubernetes composes is taken by a real API server, and an agent comes to work from it."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kube.cluster import missing_kubernetes
from running import RunningService, running_service
from servers import needs

import farcall_provider_k8s
from farcall import Client, Executor

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy" / "kubernetes"
#: What each set of manifests consists of.
KINDS = {
    "agent": {
        *("ServiceAccount", "Role", "RoleBinding", "PersistentVolumeClaim", "Deployment", "NetworkPolicy"),
        *("ConfigMap", "Secret"),
    },
    "service": {"Deployment", "Service", "NetworkPolicy", "Secret"},
}
NEVER = threading.Event()
#: Made anew for each test; the files in the repository are examples.
EXAMPLES = {"agent": "agent.env", "service": "service.env"}


def missing_kubectl() -> str | None:
    if shutil.which("kubectl") is None:
        return "kubectl is not installed (on Debian: apt-get install kubernetes-client)"
    return missing_kubernetes()


def kubectl(*arguments: str, given: str | None = None, **environment: str) -> str:
    done = subprocess.run(
        ["kubectl", *arguments],
        input=given,
        env={
            "PATH": f"{Path(shutil.which('kubectl') or '').parent}:/usr/bin:/bin",
            "HOME": "/nonexistent",
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    needs("kubernetes", missing_kubectl)
    folder = tmp_path / "kubernetes"
    shutil.copytree(DEPLOY, folder, ignore=shutil.ignore_patterns("*.env"))
    for name, file in EXAMPLES.items():
        shutil.copy(folder / name / f"{file}.example", folder / name / file)
    return folder


def composed(folder: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(kubectl("kustomize", str(folder))))


def apply(account: Any, documents: list[dict[str, Any]], tmp_path: Path) -> str:
    """As an administrator of the cluster; what was done."""
    kubeconfig = account.cluster.admin_kubeconfig(tmp_path / "admin", account.namespace)
    # Its cache would be in somebody's home.
    cache = str(tmp_path / "cache")
    return kubectl(
        *("apply", "--kubeconfig", str(kubeconfig), "--cache-dir", cache, "-f", "-"),
        given=yaml.safe_dump_all(documents),
    )


@pytest.mark.parametrize("name", sorted(KINDS))
def test_the_api_server_takes_what_is_composed(account: Any, manifests: Path, tmp_path: Path, name: str) -> None:
    documents = composed(manifests / name)

    done = apply(account, documents, tmp_path)

    assert {document["kind"] for document in documents} == KINDS[name]
    assert len([line for line in done.splitlines() if line.endswith(("created", "configured"))]) == len(documents)


def test_an_overlay_chooses_namespace_and_image(manifests: Path) -> None:
    overlay = manifests / "mine"
    overlay.mkdir()
    readme = (DEPLOY / "README.md").read_text()
    text = readme.partition("$ cat mine/kustomization.yaml\n")[2].partition("$ kubectl")[0]
    (overlay / "kustomization.yaml").write_text(text)

    documents = composed(overlay)

    assert {document["metadata"]["namespace"] for document in documents} == {"science"}
    (deployment,) = [document for document in documents if document["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example.org/farcall-endpoint:1"


def test_the_role_is_the_one_that_the_provider_ships() -> None:
    shipped = Path(farcall_provider_k8s.__file__).with_name("role.yaml")

    assert (DEPLOY / "agent" / "role.yaml").read_text() == shipped.read_text()


def test_blocks_reach_the_agent_on_the_ports_that_it_uses() -> None:
    config = yaml.safe_load((DEPLOY / "agent" / "config.yaml").read_text())
    policy, blocks = yaml.safe_load_all((DEPLOY / "agent" / "network.yaml").read_text())
    first, last = config["engine"]["worker_port_range"]

    (rule,) = policy["spec"]["ingress"]

    assert [port["port"] for port in rule["ports"]] == list(range(first, last))
    assert rule["from"] == [{"podSelector": blocks["spec"]["podSelector"]}]
    assert blocks["spec"]["podSelector"]["matchLabels"].items() <= {"app.kubernetes.io/managed-by": "farcall"}.items()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[RunningService]:
    with running_service(tmp_path / "home") as service:
        yield service


def test_an_agent_in_the_cluster_comes_to_work_and_owns_its_blocks(
    account: Any, manifests: Path, service: RunningService, tmp_path: Path
) -> None:
    (manifests / "agent" / "agent.env").write_text(
        f"FARCALL_SERVICE_URL={service.url}\nFARCALL_TOKEN={service.token}\n"
    )
    config = manifests / "agent" / "config.yaml"
    config.write_text(config.read_text().replace("init_cpu", "run_as_non_root: false\n    init_cpu"))
    documents = composed(manifests / "agent")
    (deployment,) = [document for document in documents if document["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    # What the test's node has not: disks that outlive a pod, and users that may read the checkout.
    pod["volumes"][0] = {"name": "home", "emptyDir": {}}
    del pod["securityContext"]
    apply(account, documents, tmp_path)
    client = Client(service_url=service.url, token=service.token)
    endpoint_id = until_registered(client)

    with Executor(endpoint_id=endpoint_id, client=client) as executor:
        assert executor.submit(abs, -1).result(90) == 1
        agent, block = until_there(account, "farcall-agent-", "farcall-default-")

    (owner,) = block["metadata"]["ownerReferences"]
    assert (owner["name"], owner["uid"]) == (agent["metadata"]["name"], agent["metadata"]["uid"])
    account.cluster.admin.delete(
        f"/apis/apps/v1/namespaces/{account.namespace}/deployments/farcall-agent", {"propagationPolicy": "Foreground"}
    )
    for _ in account.cluster.admin.events(account.path("pods"), NEVER):
        if not account.all("pods"):
            break
    assert json.dumps(block).count(service.token) == 0


def until_registered(client: Client) -> str:
    while not (found := client.get_endpoints()):
        pass
    return str(found[0]["uuid"])


def until_there(account: Any, *prefixes: str) -> list[dict[str, Any]]:
    """The first pods with these beginnings of their names."""
    found: dict[str, dict[str, Any]] = {}
    for event in account.cluster.admin.events(account.path("pods"), NEVER):
        for prefix in prefixes:
            if event["type"] != "LISTED" and event["object"]["metadata"]["name"].startswith(prefix):
                found.setdefault(prefix, event["object"])
        if len(found) == len(prefixes):
            break
    return [found[prefix] for prefix in prefixes]
