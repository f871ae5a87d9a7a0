"""What blocks are given of the agent's files: the certificates with which they connect, and little else.

It travels in a Secret that belongs to the pod and ends with it, and that only the pod and the namespace's
administrators can read.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from farcall_endpoint.provider import ProviderError

from .pods import MANAGED_BY, OWNER

#: Kubernetes takes a megabyte, in base64.
MOST_BYTES = 700 * 1024

#: What nodes have no need of, and what grows.
_KEPT_BACK = ("*.log",)
_FOLDERS_KEPT_BACK = frozenset({"blocks"})


class Given:
    """Files as they were at one moment, by their path below the directory."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = dict(sorted(files.items()))

    @classmethod
    def of(cls, directory: Path) -> Given:
        """Raises ProviderError where they are too many for a Secret."""
        found: dict[str, bytes] = {}
        for path in directory.rglob("*"):
            below = path.relative_to(directory)
            if path.is_file() and below.parts[0] not in _FOLDERS_KEPT_BACK and not any(map(path.match, _KEPT_BACK)):
                found[str(below)] = path.read_bytes()
        size = sum(map(len, found.values()))
        if size > MOST_BYTES:
            raise ProviderError(f"{directory} holds {size} bytes, more than fit into the Secret of a block")
        return cls(found)

    @property
    def items(self) -> list[dict[str, str]]:
        """For a volume: which key of the Secret becomes which file."""
        return [{"key": f"file-{number}", "path": f"files/{path}"} for number, path in enumerate(self._files)]

    def secret_for(self, pod: Mapping[str, Any]) -> dict[str, Any]:
        """The Secret of a pod that there is."""
        metadata = pod["metadata"]
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "Opaque",
            "metadata": {
                "name": metadata["name"],
                "labels": {key: metadata["labels"][key] for key in (MANAGED_BY, OWNER)},
                "ownerReferences": [
                    {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]}
                ],
            },
            "data": {
                f"file-{number}": base64.b64encode(content).decode()
                for number, content in enumerate(self._files.values())
            },
        }
