"""The role that is shipped is what is needed: with it everything works, without any part of it the error names that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from farcall_endpoint.provider import BlockSpec, BlockState, Provider, ProviderError
from farcall_provider_k8s.rights import RIGHTS, Right


def spec(command: str = "exit 0", **more: Any) -> BlockSpec:
    return BlockSpec(command=command, name="rights", run_dir=Path("/nowhere"), owner="me", **more)


def take_away(account: Any, right: Right) -> None:
    role = account.cluster.admin.get(account.path("roles", "farcall-agent"))
    for rule in role["rules"]:
        if right.name in rule["resources"]:
            rule["verbs"].remove(right.verb)
    rules = [rule for rule in role["rules"] if rule["verbs"]]
    account.cluster.admin.patch(account.path("roles", "farcall-agent"), {"rules": rules})
    until(lambda: not allows(account, right))


def allows(account: Any, right: Right) -> bool:
    attributes = {
        "namespace": account.namespace,
        "verb": right.verb,
        "resource": right.resource,
        "subresource": right.subresource,
    }
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": f"system:serviceaccount:{account.namespace}:agent",
            "resourceAttributes": attributes,
        },
    }
    path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
    return bool(account.cluster.admin.post(path, review)["status"]["allowed"])


def everything(provider: Provider, run_dir: Path, until_state: Any) -> str:
    """All that an agent does with a provider; what a failed block printed."""
    provider.give_access(run_dir, [1])
    lasting = provider.submit(spec("sleep 600"))
    failing = provider.submit(spec("cat /farcall/run/secret; exit 3"))
    assert until_state(provider, failing) is BlockState.FAILED
    assert provider.owned("me") == [lasting]
    provider.cancel([lasting])
    assert until_state(provider, lasting) is BlockState.CANCELLED
    return provider.output(failing)


def test_with_the_role_everything_works(account: Any, run_dir: Path, provider: Provider, ended: Any) -> None:
    assert "for pods only\n[exit code 3" in everything(provider, run_dir, ended)


@pytest.mark.parametrize("right", RIGHTS, ids=lambda right: f"{right.verb} {right.name}")
def test_without_one_of_its_rights_the_error_says_which(
    account: Any, run_dir: Path, provider: Provider, ended: Any, right: Right
) -> None:
    take_away(account, right)

    try:
        said = everything(provider, run_dir, ended)
    except ProviderError as error:
        said = str(error)

    assert f"agent may not {right.verb} {right.name} in namespace {account.namespace}" in said
    assert f"its role lacks the verb '{right.verb}' for '{right.name}'" in said


@pytest.mark.parametrize("right", RIGHTS, ids=lambda right: f"{right.verb} {right.name}")
def test_doctor_says_which_right_is_missing(account: Any, provider: Provider, right: Right) -> None:
    take_away(account, right)

    findings = {finding.subject: finding for finding in provider.examine()}

    assert not findings["rights"].is_well
    assert findings["rights"].said.endswith(f"what is needed: {right.verb} {right.name}")
    assert "role.yaml" in findings["rights"].remedy


def test_doctor_finds_all_well_where_it_is(provider: Provider) -> None:
    findings = list(provider.examine())

    assert [finding.subject for finding in findings if finding.is_well] == ["Kubernetes", "rights", "a pod"]
    assert findings[0].said.startswith("v1.20")


def until(condition: Any) -> None:
    """The API server takes note of a changed role by and by."""
    while not condition():
        pass
