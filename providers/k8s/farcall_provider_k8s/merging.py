"""Lay one part of a pod over another, entry by entry where Kubernetes would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: What tells the entries of a list apart. The entries of other lists have nothing that does.
_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "hostAliases": "ip",
}

#: Lists that the patch adds to.
_APPENDED = frozenset({"tolerations", "envFrom"})


def merged(base: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """The base with the patch over it; both stay as they are.

    Keys with values are merged, and so are the entries of lists that have names; a key with no value (null) is
    removed; ``tolerations`` and ``envFrom`` are added to; all else is replaced.
    """
    result = dict(base)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _laid_over(key, result.get(key), value)
    return result


def _laid_over(key: str, below: Any, above: Any) -> Any:
    if isinstance(above, Mapping):
        return merged(below if isinstance(below, Mapping) else {}, above)
    if isinstance(above, list) and isinstance(below, list):
        if key in _APPENDED:
            return [*below, *above]
        if key in _KEYS and all(isinstance(item, Mapping) and _KEYS[key] in item for item in (*below, *above)):
            return _by_key(_KEYS[key], below, above)
    return above


def _by_key(name: str, below: Sequence[Mapping[str, Any]], above: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    entries = {item[name]: dict(item) for item in below}
    for item in above:
        entries[item[name]] = merged(entries.get(item[name], {}), item)
    return list(entries.values())
