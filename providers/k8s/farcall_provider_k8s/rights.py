"""What the agent's account must be allowed to do, which ``role.yaml`` grants; looked at for ``doctor``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from farcall_endpoint.provider import Finding, ProviderError, SystemUnavailable

from .api import Api


@dataclass(frozen=True)
class Right:
    verb: str
    resource: str
    subresource: str = ""

    @property
    def name(self) -> str:
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource


#: All of them, and each is needed: a test takes away one after the other.
RIGHTS = (
    Right("create", "pods"),
    Right("list", "pods"),
    Right("watch", "pods"),
    Right("delete", "pods"),
    Right("get", "pods", "log"),
    Right("create", "secrets"),
)

ROLE_REMEDY = "bind the role of role.yaml (in the folder of this provider's package) to the agent's account"


def missing(api: Api) -> list[Right]:
    """Those that the cluster says this account has not."""
    return [right for right in RIGHTS if not _has(api, right)]


def examined(api: Api) -> Iterator[Finding]:
    try:
        version = api.request("GET", "/version", doing="tell its version").get("gitVersion", "?")
    except SystemUnavailable as error:
        yield Finding("Kubernetes", False, str(error), "check kubeconfig and context, and the way to the cluster")
        return
    except ProviderError as error:
        yield Finding("Kubernetes", False, str(error), "renew the credentials, or choose others with kubeconfig")
        return
    yield Finding("Kubernetes", True, f"{version} at {api.place}")
    try:
        lacking = missing(api)
    except ProviderError as error:
        yield Finding("rights", False, str(error), ROLE_REMEDY)
        return
    said = ", ".join(f"{right.verb} {right.name}" for right in lacking or RIGHTS)
    yield Finding(
        "rights",
        not lacking,
        f"this account may not do in namespace {api.namespace} what is needed: {said}" if lacking else said,
        ROLE_REMEDY if lacking else "",
    )


def _has(api: Api, right: Right) -> bool:
    attributes = {
        "namespace": api.namespace,
        "verb": right.verb,
        "resource": right.resource,
        "subresource": right.subresource,
    }
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    answer = api.request("POST", path, review, doing="say what this account may do")
    return bool(answer.get("status", {}).get("allowed"))
