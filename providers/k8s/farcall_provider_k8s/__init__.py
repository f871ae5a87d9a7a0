"""Runs blocks as pods of a Kubernetes cluster, wherever the agent is: inside the cluster or outside."""

from __future__ import annotations

from farcall_endpoint.hookspecs import hookimpl
from farcall_endpoint.provider import Provider

from .config import K8sConfig
from .provider import K8sProvider

__all__ = ["K8sConfig", "K8sProvider", "farcall_providers"]


@hookimpl
def farcall_providers() -> dict[str, type[Provider]]:
    return {"k8s": K8sProvider}
