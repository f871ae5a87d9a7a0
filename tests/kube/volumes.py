"""The volumes of a pod as directories of this machine, and the environment of its containers."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .apiclient import ApiClient, Object


class NotYet(Exception):
    """Something that the pod needs is not there; it may come."""


class Contents:
    """Looks up what pods refer to."""

    def __init__(self, api: ApiClient, node: str) -> None:
        self._api = api
        self._node = node

    def volume(self, pod: Object, volume: Object, folder: Path) -> Path:
        """Make it, in ``folder`` where it is not elsewhere already. Raises ApiAnswer while what it names is missing."""
        if "hostPath" in volume:
            return Path(volume["hostPath"]["path"])
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o777)
        for name, content in self._files(pod, volume).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return folder

    def environment(self, pod: Object, container: Object) -> dict[str, str]:
        found = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOSTNAME": pod["metadata"]["name"],
            "HOME": "/",
        }
        for source in container.get("envFrom") or ():
            if "secretRef" in source:
                secret = self._secret(pod, source["secretRef"]["name"])
                found |= {name: value.decode() for name, value in secret.items()}
            else:
                values = self._config_map(pod, source["configMapRef"]["name"])
                found |= {name: value.decode() for name, value in values.items()}
        for each in container.get("env") or ():
            found[each["name"]] = self._value(pod, each)
        return found

    def _value(self, pod: Object, variable: Object) -> str:
        source = variable.get("valueFrom")
        if source is None:
            return str(variable.get("value", ""))
        if "fieldRef" in source:
            return self._field(pod, source["fieldRef"]["fieldPath"])
        if "secretKeyRef" in source:
            reference = source["secretKeyRef"]
            return self._secret(pod, reference["name"])[reference["key"]].decode()
        reference = source["configMapKeyRef"]
        return self._config_map(pod, reference["name"])[reference["key"]].decode()

    def _files(self, pod: Object, volume: Object) -> Mapping[str, bytes]:
        if "emptyDir" in volume:
            return {}
        if "secret" in volume:
            return _picked(self._secret(pod, volume["secret"]["secretName"]), volume["secret"])
        if "configMap" in volume:
            return _picked(self._config_map(pod, volume["configMap"]["name"]), volume["configMap"])
        if "projected" in volume:
            files: dict[str, bytes] = {}
            for source in volume["projected"]["sources"]:
                files |= self._projected(pod, source)
            return files
        raise NotYet(f"no test node has volumes such as {volume['name']}")

    def _projected(self, pod: Object, source: Object) -> Mapping[str, bytes]:
        if "configMap" in source:
            return _picked(self._config_map(pod, source["configMap"]["name"]), source["configMap"])
        if "downwardAPI" in source:
            items = source["downwardAPI"]["items"]
            return {item["path"]: self._field(pod, item["fieldRef"]["fieldPath"]).encode() for item in items}
        wanted = source["serviceAccountToken"]
        metadata, account = pod["metadata"], pod["spec"]["serviceAccountName"]
        bound = {"kind": "Pod", "apiVersion": "v1", "name": metadata["name"], "uid": metadata["uid"]}
        path = f"/api/v1/namespaces/{metadata['namespace']}/serviceaccounts/{account}/token"
        return {wanted["path"]: self._api.post(path, {"spec": {"boundObjectRef": bound}})["status"]["token"].encode()}

    def _secret(self, pod: Object, name: str) -> dict[str, bytes]:
        secret = self._api.get(f"/api/v1/namespaces/{pod['metadata']['namespace']}/secrets/{name}")
        return {key: base64.b64decode(value) for key, value in (secret.get("data") or {}).items()}

    def _config_map(self, pod: Object, name: str) -> dict[str, bytes]:
        found = self._api.get(f"/api/v1/namespaces/{pod['metadata']['namespace']}/configmaps/{name}")
        return {key: value.encode() for key, value in (found.get("data") or {}).items()}

    def _field(self, pod: Object, path: str) -> str:
        if path in ("status.podIP", "status.hostIP"):
            return "127.0.0.1"
        if path == "spec.nodeName":
            return self._node
        value: Any = pod
        for key in path.split("."):
            value = value[key]
        return str(value)


def expanded(word: str, environment: Mapping[str, str]) -> str:
    """A word of a container's command, as Kubernetes reads it: $(NAME) is a variable, $$ a dollar."""

    def of(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else environment.get(match[1], match[0])

    return re.sub(r"\$\$|\$\((\w+)\)", of, word)


def _picked(files: Mapping[str, bytes], source: Object) -> Mapping[str, bytes]:
    items = source.get("items")
    return {item["path"]: files[item["key"]] for item in items} if items else files
