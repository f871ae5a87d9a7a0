"""What an administrator can say of the pods, beside ``type: k8s``.

Whatever Kubernetes itself has words for (tolerations, affinity, volumes, ...) is taken as it would stand in a pod, and
checked by the API server alone: it knows its version's fields, and we would only know those of ours.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from farcall_endpoint.provider import ProviderConfig, setting

PULL_POLICIES = ("Always", "IfNotPresent", "Never")

_QUANTITY = re.compile(r"\d+(\.\d*)?([eE][+-]?\d+|[numkMGTPE]|[KMGTPE]i)?")


def quantity(raw: Any) -> str:
    """An amount as Kubernetes writes it: ``2``, ``0.5``, ``500m``, ``2Gi``."""
    text = str(raw)
    if isinstance(raw, bool) or not _QUANTITY.fullmatch(text):
        raise ValueError(f"expected an amount, such as 2, 500m or 2Gi, got {raw!r}")
    return text


def texts(raw: Any) -> dict[str, str]:
    """Names with texts, such as labels. Numbers and booleans are what YAML makes of texts that look like them."""
    if not isinstance(raw, Mapping):
        raise ValueError(f"expected names with values, got {raw!r}")
    for name, value in raw.items():
        if not isinstance(value, str | int | float):
            raise ValueError(f"expected a text for {name}, got {value!r}")
    return {str(name): str(value).lower() if isinstance(value, bool) else str(value) for name, value in raw.items()}


def environment(raw: Any) -> list[dict[str, Any]]:
    """Variables of a container: a text is the value, keys with values are where Kubernetes takes it from."""
    if not isinstance(raw, Mapping):
        raise ValueError(f"expected names with values, got {raw!r}")
    sources = {str(name): value for name, value in raw.items() if isinstance(value, Mapping)}
    plain = texts({name: value for name, value in raw.items() if not isinstance(value, Mapping)})
    return [
        *({"name": name, "value": value} for name, value in plain.items()),
        *({"name": name, "valueFrom": dict(value)} for name, value in sources.items()),
    ]


def names(raw: Any) -> tuple[str, ...]:
    if isinstance(raw, str):
        return (raw,)
    if isinstance(raw, list | tuple) and all(isinstance(item, str) for item in raw):
        return tuple(raw)
    raise ValueError(f"expected a name or a list of names, got {raw!r}")


def maps(raw: Any) -> tuple[dict[str, Any], ...]:
    if isinstance(raw, list | tuple) and all(isinstance(item, Mapping) for item in raw):
        return tuple(dict(item) for item in raw)
    raise ValueError(f"expected a list of entries with keys, as in a pod, got {raw!r}")


def volumes(raw: Any) -> tuple[dict[str, Any], ...]:
    found = maps(raw)
    for volume in found:
        if not isinstance(volume.get("name"), str) or not isinstance(volume.get("mountPath"), str):
            raise ValueError(
                f"expected a name, a mountPath and a source, such as {{name: data, mountPath: /data, "
                f"persistentVolumeClaim: {{claimName: data}}}}, got {volume!r}"
            )
    return found


def claims(raw: Any) -> tuple[tuple[str, str], ...]:
    """Globus Compute's way of naming persistent volumes: pairs of a claim and where it is mounted."""
    if isinstance(raw, list | tuple) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(each, str) for each in pair)
        for pair in raw
    ):
        return tuple((claim, path) for claim, path in raw)
    raise ValueError(f"expected a list of [claim, path], such as [[data, /data]], got {raw!r}")


def pull_policy(raw: Any) -> str:
    if raw in PULL_POLICIES:
        return str(raw)
    raise ValueError(f"expected one of {', '.join(PULL_POLICIES)}, got {raw!r}")


def resources(raw: Any) -> dict[str, dict[str, str]]:
    if not isinstance(raw, Mapping) or not set(raw) <= {"requests", "limits"}:
        raise ValueError(f"expected requests and limits, each with amounts, got {raw!r}")
    return {str(kind): {name: quantity(amount) for name, amount in texts(each).items()} for kind, each in raw.items()}


def mapping(raw: Any) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        raise ValueError(f"expected keys with values, as in a pod, got {raw!r}")
    return {str(key): value for key, value in raw.items()}


@dataclasses.dataclass(frozen=True)
class K8sConfig(ProviderConfig):
    """The names are those of a Globus Compute configuration where the notion is the same."""

    image: str = setting(help="The container image of the blocks; it brings python3 with farcall-endpoint.")
    namespace: str | None = setting(None, help="Where the pods are made; left out, where the credentials say.")
    kubeconfig: str | None = setting(
        None, help="The file with the way to the cluster; left out, the agent's service account, or ~/.kube/config."
    )
    context: str | None = setting(None, help="The context in that file; left out, its current one.")
    agent_address: str | None = setting(
        None, help="The address by which pods reach this machine; left out, it is found out."
    )
    image_pull_policy: str | None = setting(None, parse=pull_policy, help="Always, IfNotPresent or Never.")
    image_pull_secrets: tuple[str, ...] = setting(
        (), key="secret", parse=names, help="The secrets with which the image is pulled, a name or a list of names."
    )
    init_cpu: str | None = setting(None, parse=quantity, help="CPU that is reserved for a block, such as 2 or 500m.")
    max_cpu: str | None = setting(None, parse=quantity, help="CPU that a block may use at most.")
    init_mem: str | None = setting(None, parse=quantity, help="Memory that is reserved for a block, such as 4Gi.")
    max_mem: str | None = setting(None, parse=quantity, help="Memory at which a block is killed.")
    gpus: int = setting(0, minimum=0, help="GPUs of a block.")
    gpu_resource: str = setting("nvidia.com/gpu", help="What the cluster calls GPUs.")
    resources: Mapping[str, Mapping[str, str]] | None = setting(
        None, parse=resources, help="More of them, such as: {limits: {ephemeral-storage: 10Gi}}"
    )
    service_account_name: str | None = setting(
        None, help="The service account of the pods; left out, they have no credentials of the cluster."
    )
    node_selector: Mapping[str, str] | None = setting(
        None, parse=texts, help="Labels of the nodes that may run blocks."
    )
    tolerations: tuple[dict[str, Any], ...] = setting((), parse=maps, help="Tolerations, as in a pod.")
    affinity: Mapping[str, Any] | None = setting(None, parse=mapping, help="Affinity, as in a pod.")
    labels: Mapping[str, str] | None = setting(None, parse=texts, help="Labels of the pods, beside ours.")
    annotations: Mapping[str, str] | None = setting(None, parse=texts, help="Annotations of the pods.")
    volumes: tuple[dict[str, Any], ...] = setting(
        (),
        parse=volumes,
        help="Volumes, as in a pod, with their mountPath (subPath, readOnly) beside the name.",
    )
    persistent_volumes: tuple[tuple[str, str], ...] = setting(
        (), parse=claims, help="Volumes by claim and path alone, such as [[data, /data]]."
    )
    allow_host_paths: bool = setting(False, help="Whether a volume may be a directory of a node (hostPath).")
    run_as_non_root: bool = setting(True, help="Refuse to run as root, also where the image would.")
    user_id: int | None = setting(None, minimum=0, help="The user number of the blocks; left out, the image's.")
    group_id: int | None = setting(
        None, minimum=0, help="Their group number, which volumes are given to; left out, the image's."
    )
    security_context: Mapping[str, Any] | None = setting(
        None, parse=mapping, help="The container's security context, as in a pod, over what the options above say."
    )
    environment: tuple[dict[str, Any], ...] = setting(
        (),
        parse=lambda raw: tuple(environment(raw)),
        help="Variables, such as {MODE: fast, KEY: {secretKeyRef: {name: keys, key: mine}}}.",
    )
    shell: str = setting("sh", help="The shell of the image that runs worker_init and starts the workers.")
    pod_patch: Mapping[str, Any] | None = setting(
        None, parse=mapping, help="What no option has a name for: parts of a pod, merged into ours."
    )
    start_patience_s: float = setting(
        300.0,
        key="start_patience",
        minimum=1,
        help="Seconds for which an image that cannot be pulled, or a container that cannot be made, is tried again.",
    )
