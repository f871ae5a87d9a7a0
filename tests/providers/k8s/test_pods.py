"""What options become of a block's pod. No cluster is needed for that; one test has a real API server look at it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from farcall.errors import ConfigurationError
from farcall_endpoint.config import ProviderSection
from farcall_endpoint.plugins import read_options
from farcall_endpoint.provider import BlockSpec, ProviderError
from farcall_provider_k8s import K8sConfig, K8sProvider
from farcall_provider_k8s.given import MOST_BYTES, Given
from farcall_provider_k8s.merging import merged
from farcall_provider_k8s.pods import name_for, pod_for

#: Every option, as an administrator writes it.
EVERYTHING = """
image: registry.example.org/farcall-endpoint:1
namespace: science
kubeconfig: ~/.kube/science
context: mine
agent_address: 10.0.0.5
image_pull_policy: Always
secret: [registry, other-registry]
init_cpu: 500m
max_cpu: 2
init_mem: 1Gi
max_mem: 2.5Gi
gpus: 2
gpu_resource: amd.com/gpu
resources: {requests: {ephemeral-storage: 1Gi}, limits: {ephemeral-storage: 2Gi}}
service_account_name: default
node_selector: {disk: ssd, fast: true, rack: 7}
tolerations: [{key: dedicated, operator: Equal, value: science, effect: NoSchedule}]
affinity:
  nodeAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms: [{matchExpressions: [{key: zone, operator: In, values: [a, b]}]}]
labels: {team: science}
annotations: {example.org/contact: ada}
volumes:
  - {name: data, mountPath: /data, readOnly: true, persistentVolumeClaim: {claimName: data}}
  - {name: settings, mountPath: /etc/settings, configMap: {name: settings}}
  - {name: keys, mountPath: /etc/keys, subPath: mine, secret: {secretName: keys}}
  - {name: scratch, mountPath: /scratch, emptyDir: {sizeLimit: 10Gi}}
  - {name: software, mountPath: /software, hostPath: {path: /software}}
persistent_volumes: [[home, /home]]
allow_host_paths: true
run_as_non_root: true
user_id: 1000
group_id: 2000
security_context: {readOnlyRootFilesystem: true}
environment: {MODE: fast, THREADS: 4, KEY: {secretKeyRef: {name: keys, key: mine}}}
shell: bash
pod_patch:
  metadata: {annotations: {patched: "yes"}}
  spec:
    priorityClassName: system-node-critical
    initContainers: [{name: fetch, image: busybox, command: [fetch]}]
    containers: [{name: block, env: [{name: PATCHED, value: "1"}]}, {name: sidecar, image: proxy}]
start_patience: 60
"""


def options(text: str) -> K8sConfig:
    read = read_options(K8sProvider, ProviderSection("k8s", yaml.safe_load(text)))
    assert isinstance(read, K8sConfig)
    return read


def pod(text: str = "image: some", *, walltime_s: int | None = None, **more: Any) -> dict[str, Any]:
    spec = BlockSpec(command="run", name="farcall.e.0", run_dir=Path(), owner="me", walltime_s=walltime_s)
    return pod_for(spec, options(text), name="name", namespace="science", **more)


def container(made: dict[str, Any]) -> dict[str, Any]:
    return dict(made["spec"]["containers"][0])


def test_every_option_has_its_place_in_the_pod() -> None:
    made = pod(EVERYTHING, walltime_s=3600)

    spec, block = made["spec"], container(made)
    assert made["metadata"]["labels"] == {
        "team": "science",
        "app.kubernetes.io/managed-by": "farcall",
        "farcall/owner": "me",
    }
    assert made["metadata"]["annotations"] == {"example.org/contact": "ada", "patched": "yes"}
    assert spec["activeDeadlineSeconds"] == 3600
    assert spec["imagePullSecrets"] == [{"name": "registry"}, {"name": "other-registry"}]
    assert spec["nodeSelector"] == {"disk": "ssd", "fast": "true", "rack": "7"}
    assert spec["tolerations"][0]["value"] == "science"
    assert "nodeAffinity" in spec["affinity"]
    assert spec["serviceAccountName"] == "default" and spec["automountServiceAccountToken"]
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "runAsGroup": 2000,
        "fsGroup": 2000,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert spec["priorityClassName"] == "system-node-critical"
    assert [each["name"] for each in spec["initContainers"]] == ["fetch"]
    assert [each["name"] for each in spec["containers"]] == ["block", "sidecar"]
    assert block["image"] == "registry.example.org/farcall-endpoint:1"
    assert block["imagePullPolicy"] == "Always"
    assert block["command"][0] == "bash"
    assert block["resources"] == {
        "requests": {"cpu": "500m", "memory": "1Gi", "ephemeral-storage": "1Gi"},
        "limits": {"cpu": "2", "memory": "2.5Gi", "amd.com/gpu": "2", "ephemeral-storage": "2Gi"},
    }
    assert block["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert block["env"] == [
        {"name": "MODE", "value": "fast"},
        {"name": "THREADS", "value": "4"},
        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "mine"}}},
        {"name": "PATCHED", "value": "1"},
    ]
    assert {"name": "scratch", "emptyDir": {"sizeLimit": "10Gi"}} in spec["volumes"]
    assert {"name": "data", "persistentVolumeClaim": {"claimName": "data"}} in spec["volumes"]
    assert {"name": "data", "mountPath": "/data", "readOnly": True} in block["volumeMounts"]
    assert {"name": "keys", "mountPath": "/etc/keys", "subPath": "mine"} in block["volumeMounts"]
    assert {"name": "claim-0", "mountPath": "/home"} in block["volumeMounts"]


def test_the_api_server_understands_every_option(account: Any) -> None:
    # As it stands but for what the test's cluster has not.
    text = EVERYTHING.replace("namespace: science", f"namespace: {account.namespace}").replace("2.5Gi", "2Gi")
    text = text.replace("kubeconfig: ~/.kube/science\ncontext: mine", f"kubeconfig: {account.kubeconfig}")
    provider = K8sProvider(options(text))

    findings = list(provider.examine())
    provider.close()

    assert [finding.said for finding in findings if not finding.is_well] == []
    assert findings[-1].subject == "a pod"


def test_without_options_a_pod_has_no_rights_beyond_its_own() -> None:
    made = pod()

    spec, block = made["spec"], container(made)
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["automountServiceAccountToken"] is False
    assert block["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert spec["volumes"] == [{"name": "farcall", "emptyDir": {}}]
    assert spec["restartPolicy"] == "Never"


@pytest.mark.parametrize(
    "text",
    [
        "volumes: [{name: software, mountPath: /s, hostPath: {path: /s}}]",
        "pod_patch: {spec: {volumes: [{name: software, hostPath: {path: /s}}]}}",
    ],
)
def test_a_directory_of_a_node_is_refused_unless_it_is_allowed(text: str) -> None:
    with pytest.raises(ProviderError, match=r"'software' is a directory of a node.* set allow_host_paths"):
        pod(f"image: some\n{text}")

    assert pod(f"image: some\nallow_host_paths: true\n{text}")


def test_a_patch_cannot_take_away_what_a_pod_is_found_by() -> None:
    made = pod(
        "image: some\npod_patch: {metadata: {name: x, labels: {farcall/owner: you}}, spec: {restartPolicy: Always}}"
    )

    assert made["metadata"]["name"] == "name"
    assert made["metadata"]["labels"]["farcall/owner"] == "me"
    assert made["spec"]["restartPolicy"] == "Never"


def test_a_pod_belongs_to_the_pod_of_its_agent() -> None:
    made = pod(agent_pod={"name": "agent", "uid": "u"})

    assert made["metadata"]["ownerReferences"] == [{"apiVersion": "v1", "kind": "Pod", "name": "agent", "uid": "u"}]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("init_cpu: much", "expected an amount, such as 2, 500m or 2Gi, got 'much'"),
        ("max_mem: true", "expected an amount"),
        ("image_pull_policy: always", "expected one of Always, IfNotPresent, Never, got 'always'"),
        ("volumes: [{name: data, emptyDir: {}}]", "expected a name, a mountPath and a source"),
        ("tolerations: {key: a}", "expected a list of entries with keys, as in a pod"),
        ("labels: [a]", "expected names with values"),
        ("environment: {A: [1]}", r"expected a text for A, got \[1\]"),
        ("persistent_volumes: [data]", r"expected a list of \[claim, path\]"),
        ("resources: {cpu: 1}", "expected requests and limits"),
        ("init_memory: 1Gi", "there is no such key; did you mean 'init_mem'"),
    ],
)
def test_a_wrong_option_is_pointed_at(line: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        options(f"image: some\n{line}")


def test_the_image_must_be_said() -> None:
    with pytest.raises(ConfigurationError, match="'image' is missing"):
        options("namespace: science")


def test_two_pods_of_one_name_have_two_names_that_a_cluster_takes() -> None:
    spec = BlockSpec(command="", name="farcall.My_Endpoint." + "x" * 80, run_dir=Path())

    first, second = name_for(spec), name_for(spec)

    assert first != second
    assert first.startswith("farcall-my-endpoint-xxx") and len(first) <= 63


def test_a_dollar_reaches_the_shell_as_it_is() -> None:
    spec = BlockSpec(command="echo $(HOME) $$", name="x", run_dir=Path())

    made = pod_for(spec, K8sConfig(image="some"), name="x", namespace="y")

    assert "echo $$(HOME) $$$$" in container(made)["command"][2]


def test_a_patch_is_merged_as_kubernetes_would() -> None:
    base = {
        "a": {"b": 1, "c": 2},
        "tolerations": [1],
        "containers": [{"name": "x", "v": 1}],
        "command": ["a"],
        "gone": 1,
    }
    patch = {"a": {"c": 3}, "tolerations": [2], "containers": [{"name": "y"}, {"name": "x", "w": 2}], "command": ["b"]}

    assert merged(base, {**patch, "gone": None}) == {
        "a": {"b": 1, "c": 3},
        "tolerations": [1, 2],
        "containers": [{"name": "x", "v": 1, "w": 2}, {"name": "y"}],
        "command": ["b"],
    }


def test_blocks_are_given_certificates_and_no_logs(run_dir: Path) -> None:
    given = [item["path"] for item in Given.of(run_dir).items]

    assert given == [
        "files/htex/certificates/client.key_secret",
        "files/htex/certificates/server.key",
        "files/htex/certificates/server.key_secret",
        "files/secret",
    ]


def test_files_that_are_too_many_for_a_secret_are_refused(run_dir: Path) -> None:
    (run_dir / "data").write_bytes(bytes(MOST_BYTES))

    with pytest.raises(ProviderError, match="more than fit into the Secret of a block"):
        Given.of(run_dir)
