"""The pod of a block, out of the options and what the engine wants: no cluster is asked, nothing is started."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from farcall_endpoint.provider import BlockSpec, ProviderError

from .config import K8sConfig
from .merging import merged

#: The block's container; there may be others.
CONTAINER = "block"

#: By these labels our pods are found again.
MANAGED_BY, OWNER = "app.kubernetes.io/managed-by", "farcall/owner"
OURS = "farcall"

#: Where a block may write, and beside it where it finds what the agent gives it.
SCRATCH = "/farcall"
GIVEN, RUN_DIR = "/farcall-given", f"{SCRATCH}/run"

#: Where tasks run.
WORKING_DIR = f"{SCRATCH}/tasks"

#: A container that is told to end does so at once; the rest is for the node.
GRACE_S = 10

#: A node that says nothing for so long (after the forty seconds that the cluster takes to call it lost) has lost its
#: blocks. Without this Kubernetes waits for five minutes, and a block that is gone counts as one that works.
_LOST_NODE_S = 60
_LOST_NODE_TAINTS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")

#: What is said of where a volume is mounted, and not of what it is.
_MOUNT_KEYS = ("mountPath", "subPath", "subPathExpr", "readOnly", "mountPropagation")

#: The first process of a container is deaf to signals that it has no trap for, and its end ends all others in there.
_SCRIPT = """\
trap 'exit 143' TERM
(
{prelude}{worker_init}
{command}
) &
wait $!
"""


def pod_for(
    spec: BlockSpec,
    config: K8sConfig,
    *,
    name: str,
    namespace: str,
    agent_pod: Mapping[str, str] | None = None,
    secret: tuple[str, Sequence[Mapping[str, str]]] | None = None,
) -> dict[str, Any]:
    """What the API server is asked for. Raises ProviderError for what may not be.

    ``agent_pod`` has the ``name`` and ``uid`` of the pod that the agent is in, at whose end the cluster ends this one.
    ``secret`` is a name, and which of its keys become which files of the directory that the block finds as RUN_DIR.
    """
    pod = merged(_pod(spec, config, secret), config.pod_patch or {})
    _refuse_host_paths(pod, config)
    # Last, and whatever the patch says: without these the pod would not be found again, or would start anew for ever.
    fixed: dict[str, Any] = {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {MANAGED_BY: OURS, OWNER: spec.owner},
        },
        "spec": {"restartPolicy": "Never"},
    }
    if agent_pod is not None:
        fixed["metadata"]["ownerReferences"] = [{"apiVersion": "v1", "kind": "Pod", **agent_pod}]
    return merged(pod, fixed)


def name_for(spec: BlockSpec) -> str:
    """A name that no later pod gets: what people see in lists, as far as it may stand in the name of a host."""
    readable = re.sub(r"[^a-z0-9]+", "-", spec.name.lower()).strip("-")[:50].strip("-")
    return f"{readable or OURS}-{uuid.uuid4().hex[:12]}"


def _pod(spec: BlockSpec, config: K8sConfig, secret: tuple[str, Sequence[Mapping[str, str]]] | None) -> dict[str, Any]:
    volumes = list(_volumes(config, secret))
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"labels": dict(config.labels or {}), "annotations": dict(config.annotations or {})},
        "spec": _without_nothing(
            {
                "containers": [_container(spec, config, secret is not None)],
                "volumes": [_volume(volume) for volume in volumes],
                "terminationGracePeriodSeconds": GRACE_S,
                "activeDeadlineSeconds": spec.walltime_s,
                "imagePullSecrets": [{"name": each} for each in config.image_pull_secrets],
                "serviceAccountName": config.service_account_name,
                # A task is somebody's code.
                "automountServiceAccountToken": config.service_account_name is not None,
                "enableServiceLinks": False,
                "nodeSelector": dict(config.node_selector or {}),
                "tolerations": [*config.tolerations, *_lost_node_tolerations(config)],
                "affinity": dict(config.affinity or {}),
                "securityContext": _without_nothing(
                    {
                        "runAsNonRoot": config.run_as_non_root,
                        "runAsUser": config.user_id,
                        "runAsGroup": config.group_id,
                        "fsGroup": config.group_id,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    }
                ),
            }
        ),
    }


def _container(spec: BlockSpec, config: K8sConfig, is_given_files: bool) -> dict[str, Any]:
    copying = f" && cp -RL {GIVEN}/files/. {RUN_DIR}" if is_given_files else ""
    # Keys are not used that others could read. The volume of the Secret is readable, and may have a group for it.
    prelude = f"(umask 077 && mkdir -p {RUN_DIR}{copying} && chmod -R go= {RUN_DIR}) || exit\n"
    script = _SCRIPT.format(prelude=prelude, worker_init=spec.worker_init, command=spec.command)
    mounts = [_mount(volume) for volume in _volumes(config, ("", ()) if is_given_files else None)]
    return _without_nothing(
        {
            "name": CONTAINER,
            "image": config.image,
            "imagePullPolicy": config.image_pull_policy,
            # Kubernetes would put variables into what looks like $(NAME); $$ is its way to write $.
            "command": [config.shell, "-c", script.replace("$", "$$")],
            "env": [dict(each) for each in config.environment],
            "resources": _resources(config),
            "securityContext": merged(
                {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}, config.security_context or {}
            ),
            "volumeMounts": mounts,
        }
    )


def _volumes(config: K8sConfig, secret: tuple[str, Sequence[Mapping[str, str]]] | None) -> Iterator[Mapping[str, Any]]:
    yield {"name": "farcall", "mountPath": SCRATCH, "emptyDir": {}}
    if secret is not None:
        name, items = secret
        # Readable by whatever user the container has: nobody else is in there.
        source = {"secretName": name, "items": [dict(item) for item in items], "defaultMode": 0o444}
        yield {"name": "farcall-given", "mountPath": GIVEN, "readOnly": True, "secret": source}
    yield from config.volumes
    for number, (claim, path) in enumerate(config.persistent_volumes):
        source = {"claimName": claim}
        yield {"name": f"claim-{number}", "mountPath": path, "persistentVolumeClaim": source}


def _volume(volume: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in volume.items() if key not in _MOUNT_KEYS}


def _mount(volume: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in volume.items() if key in ("name", *_MOUNT_KEYS)}


def _resources(config: K8sConfig) -> dict[str, Any]:
    requests = _without_nothing({"cpu": config.init_cpu, "memory": config.init_mem})
    limits = _without_nothing({"cpu": config.max_cpu, "memory": config.max_mem})
    if config.gpus:
        # For what is handed out whole, the limit is the request.
        limits[config.gpu_resource] = str(config.gpus)
    return _without_nothing(merged({"requests": requests, "limits": limits}, config.resources or {}))


def _lost_node_tolerations(config: K8sConfig) -> Iterator[dict[str, Any]]:
    said = {toleration.get("key") for toleration in config.tolerations}
    for taint in _LOST_NODE_TAINTS:
        if taint not in said:
            yield {"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": _LOST_NODE_S}


def _refuse_host_paths(pod: Mapping[str, Any], config: K8sConfig) -> None:
    found = [
        volume.get("name")
        for volume in pod["spec"].get("volumes") or ()
        if isinstance(volume, Mapping) and "hostPath" in volume
    ]
    if found and not config.allow_host_paths:
        raise ProviderError(
            f"the volume {found[0]!r} is a directory of a node, which a block could read and change outside of its "
            "container; if that is meant, set allow_host_paths to true"
        )


def _without_nothing(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what was not asked for: Kubernetes has a default for it."""
    return {key: value for key, value in values.items() if value not in (None, {}, [])}
