"""Blocks as pods of a real API server, with exactly the rights of role.yaml."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from kube.nodes import running_node
from kube.podlife import Images

from farcall_endpoint.provider import Access, BlockSpec, BlockState, Provider, ProviderError, SystemUnavailable
from farcall_endpoint.testing import ProviderContract
from farcall_provider_k8s import K8sProvider, watching


class TestK8sProvider(ProviderContract):
    @pytest.fixture(autouse=True)
    def _account(self, account: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.account = account
        monkeypatch.setattr(watching, "_PAUSES_S", (0.0, 0.05))

    def make_provider(self) -> Provider:
        self.made: K8sProvider = self.account.provider()
        return self.made

    def impossible_spec(self, run_dir: Path) -> BlockSpec:
        return dataclasses.replace(self.spec(run_dir, "exit 0"), walltime_s=-1)

    @contextmanager
    def held(self) -> Iterator[None]:
        node = "/api/v1/nodes/node-1"
        self.account.cluster.admin.patch(node, {"spec": {"unschedulable": True}})
        try:
            yield
        finally:
            self.account.cluster.admin.patch(node, {"spec": {"unschedulable": None}})

    @contextmanager
    def away(self) -> Iterator[None]:
        cluster = self.account.cluster
        cluster.api_server.kill()
        try:
            yield
        finally:
            cluster.api_server.start()
            cluster.wait_until_ready()
        # It tries again by and by.
        while True:
            with suppress(SystemUnavailable):
                self.made._pods.follow("")
                break


def spec(command: str = "exit 0", **more: Any) -> BlockSpec:
    wanted = {"command": command, "name": "farcall.story.0", "run_dir": Path("/nowhere"), "owner": "me", **more}
    return BlockSpec(**wanted)


def running(state: BlockState) -> bool:
    return state is BlockState.RUNNING


def events_of(account: Any, resource: str) -> Iterator[Any]:
    """What happens to the objects of a namespace from now on, beginning with those that there are."""
    yield from account.cluster.admin.events(account.path(resource), threading.Event())


def until_gone(account: Any, resource: str, name: str) -> None:
    """Wait until the cluster has no object of this name."""
    is_there = False
    for event in events_of(account, resource):
        if event["type"] == "LISTED" and not is_there:
            return
        if event["type"] != "LISTED" and event["object"]["metadata"]["name"] == name:
            is_there = event["type"] != "DELETED"
            if not is_there:
                return


def until_said(provider: Provider, block_id: str, words: str) -> str:
    while words not in (said := provider.reason(block_id)):
        assert not provider.states([block_id])[block_id].has_ended, provider.output(block_id)
    return said


def test_a_block_that_no_node_takes_waits_and_says_why(account: Any) -> None:
    provider = account.provider(init_cpu="64")

    block_id = provider.submit(spec())

    assert "Insufficient cpu" in until_said(provider, block_id, "Unschedulable")
    assert provider.states([block_id]) == {block_id: BlockState.PENDING}
    provider.close()


def test_an_image_that_cannot_be_pulled_is_given_up_after_a_while_and_the_pod_is_removed(
    account: Any, ended: Any
) -> None:
    provider = account.provider(image=Images.ABSENT, start_patience_s=1.0)

    block_id = provider.submit(spec())

    assert ended(provider, block_id) is BlockState.FAILED
    assert "given up after 1 s: ErrImagePull: rpc error: code = NotFound" in provider.output(block_id)
    until_gone(account, "pods", block_id)
    provider.close()


def test_an_image_that_may_not_be_pulled_and_is_not_there_is_given_up_at_once(account: Any, ended: Any) -> None:
    provider = account.provider(image=Images.ABSENT, image_pull_policy="Never")

    block_id = provider.submit(spec())

    assert ended(provider, block_id) is BlockState.FAILED
    assert "ErrImageNeverPull" in provider.output(block_id)
    provider.close()


def test_an_image_that_would_be_root_says_what_to_do(account: Any) -> None:
    provider = account.provider(image=Images.OF_ROOT, run_as_non_root=True)

    block_id = provider.submit(spec())

    assert "set user_id" in until_said(provider, block_id, "CreateContainerConfigError")
    provider.close()


def test_a_quota_that_is_used_up_refuses_a_block_in_words(account: Any, provider: Provider) -> None:
    quota = {"metadata": {"name": "few"}, "spec": {"hard": {"pods": "0"}}}
    account.cluster.admin.post(account.path("resourcequotas"), quota)
    for event in events_of(account, "resourcequotas"):
        if event.get("object", {}).get("status", {}).get("hard"):
            break

    with pytest.raises(ProviderError, match="exceeded quota: few, requested: pods=1, used: pods=0, limited: pods=0"):
        provider.submit(spec())


def test_a_service_account_that_there_is_not_refuses_a_block_in_words(account: Any) -> None:
    provider = account.provider(service_account_name="nobody")

    with pytest.raises(ProviderError, match='serviceaccount "nobody" not found'):
        provider.submit(spec())
    provider.close()


def test_a_pod_that_the_api_server_does_not_understand_is_refused_in_its_words(account: Any) -> None:
    provider = account.provider(tolerations=({"key": "a", "operator": "Perhaps"},))

    with pytest.raises(ProviderError, match=r'Unsupported value: "Perhaps"'):
        provider.submit(spec())
    (finding,) = [each for each in provider.examine() if not each.is_well]
    provider.close()

    assert finding.subject == "a pod"
    assert 'Unsupported value: "Perhaps"' in finding.said


def test_a_namespace_that_there_is_not_is_told_of(account: Any, cluster: Any, tmp_path: Path) -> None:
    kubeconfig = cluster.admin_kubeconfig(tmp_path / "admin")
    provider = account.provider(kubeconfig=str(kubeconfig), namespace="nowhere")

    with pytest.raises(ProviderError, match='namespaces "nowhere" not found'):
        provider.submit(spec())
    provider.close()


def test_several_nodes_a_block_are_refused_with_what_to_set_instead(provider: Provider) -> None:
    with pytest.raises(ProviderError, match=r"one pod on one node, not 2: .* set nodes_per_block to 1 and raise max"):
        provider.submit(spec(nodes=2))


def test_a_block_whose_walltime_is_over_has_failed_and_says_so(provider: Provider, ended: Any) -> None:
    block_id = provider.submit(spec("sleep 600", walltime_s=1))

    assert ended(provider, block_id) is BlockState.FAILED
    assert "[its walltime is over" in provider.output(block_id)


def test_a_block_that_somebody_else_deletes_has_failed_and_says_so(
    account: Any, provider: Provider, ended: Any
) -> None:
    block_id = provider.submit(spec("sleep 600"))
    ended(provider, block_id, running)

    account.cluster.admin.delete(account.path("pods", block_id))

    assert ended(provider, block_id) is BlockState.FAILED
    assert "[the pod was deleted, and not by this agent" in provider.output(block_id)


def test_a_block_that_is_evicted_has_failed_and_says_so(account: Any, provider: Provider, ended: Any) -> None:
    block_id = provider.submit(spec("sleep 600"))
    ended(provider, block_id, running)

    # As a node does that is short of something.
    said = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}
    account.cluster.admin.patch(f"{account.path('pods', block_id)}/status", {"status": said})

    assert ended(provider, block_id) is BlockState.FAILED
    assert "[Evicted: The node was low on resource: memory." in provider.output(block_id)


def test_a_block_on_a_node_that_is_removed_has_failed(account: Any, ended: Any) -> None:
    with running_node(account.cluster, "short-lived") as node:
        provider = account.provider(node_selector={"kubernetes.io/hostname": "short-lived"})
        block_id = provider.submit(spec("sleep 600"))
        ended(provider, block_id, running)

        node.be_silent()
        account.cluster.admin.delete("/api/v1/nodes/short-lived")
        # The cluster's collector of pods without a node, which would take forty seconds to begin.
        account.cluster.admin.delete(account.path("pods", block_id), {"gracePeriodSeconds": 0})

        assert ended(provider, block_id) is BlockState.FAILED
        provider.close()


def test_a_block_reads_what_it_is_given_from_a_secret_that_ends_with_it(
    account: Any, provider: Provider, run_dir: Path, ended: Any
) -> None:
    access = provider.give_access(run_dir, [54000, 54001])
    assert access == Access("127.0.0.1", {54000: 54000, 54001: 54001}, "/farcall/run", "/farcall/tasks")

    block_id = provider.submit(
        spec(f"cat {access.directory}/htex/certificates/client.key_secret; find /farcall; touch {access.directory}/x")
    )

    assert ended(provider, block_id) is BlockState.DONE
    printed = provider.output(block_id)
    assert "this is client.key_secret" in printed
    assert "/farcall/run/htex/certificates/server.key" in printed
    assert "interchange.log" not in printed
    assert [each["metadata"]["name"] for each in account.all("secrets") if each["type"] == "Opaque"] == [block_id]
    account.cluster.admin.delete(account.path("pods", block_id))
    until_gone(account, "secrets", block_id)


def test_a_block_outlives_an_agent_that_crashes_and_is_found_by_the_next_one(
    account: Any, provider: Provider, ended: Any
) -> None:
    block_id = provider.submit(spec("sleep 600"))
    other = provider.submit(spec("sleep 600", owner="somebody"))
    ended(provider, block_id, running)

    successor = account.provider()

    assert successor.owned("me") == [block_id]
    assert successor.states([block_id, other]) == {block_id: BlockState.RUNNING, other: BlockState.UNKNOWN}
    successor.cancel([block_id])
    assert ended(successor, block_id) is BlockState.CANCELLED
    assert successor.owned("me") == []
    successor.close()


def test_an_agent_in_a_pod_owns_its_blocks_so_that_they_end_with_it(
    account: Any, monkeypatch: pytest.MonkeyPatch, ended: Any
) -> None:
    agent = account.cluster.admin.post(
        account.path("pods"),
        {
            "metadata": {"name": "agent"},
            "spec": {"containers": [{"name": "a", "image": "i", "command": ["sleep", "60"]}]},
        },
    )
    monkeypatch.setenv("FARCALL_POD_NAME", "agent")
    monkeypatch.setenv("FARCALL_POD_UID", agent["metadata"]["uid"])
    monkeypatch.setenv("FARCALL_POD_NAMESPACE", account.namespace)
    provider = account.provider()
    block_id = provider.submit(spec("sleep 600"))
    ended(provider, block_id, running)

    account.cluster.admin.delete(account.path("pods", "agent"), {"gracePeriodSeconds": 0})

    until_gone(account, "pods", block_id)
    provider.close()


def test_pods_that_have_ended_are_removed_at_the_end(account: Any, ended: Any) -> None:
    provider = account.provider()
    block_id = provider.submit(spec("echo printed"))
    assert ended(provider, block_id) is BlockState.DONE

    provider.close()

    until_gone(account, "pods", block_id)
    assert provider.output(block_id) == "printed\n[exit code 0]"


def test_an_api_server_that_cannot_be_reached_is_unavailable(account: Any, tmp_path: Path) -> None:
    text = account.kubeconfig.read_text().replace(f":{account.cluster.port}", ":1")
    (tmp_path / "wrong").write_text(text)
    provider = account.provider(kubeconfig=str(tmp_path / "wrong"))

    with pytest.raises(SystemUnavailable, match=r"the API server at 127\.0\.0\.1:1, namespace .* cannot be reached"):
        provider.submit(spec())
    (finding,) = provider.examine()
    provider.close()

    assert not finding.is_well


def test_credentials_that_are_not_accepted_are_told_of(account: Any, tmp_path: Path) -> None:
    kubeconfig = account.cluster.kubeconfig(tmp_path / "stranger", "wrong", account.namespace)
    provider = account.provider(kubeconfig=str(kubeconfig))

    with pytest.raises(ProviderError, match="does not accept these credentials"):
        provider.submit(spec())
    provider.close()


def test_no_way_to_a_cluster_is_told_of(account: Any, tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match=r"there is no way to a cluster: .* set kubeconfig"):
        K8sProvider(account.options(kubeconfig=str(tmp_path / "nothing")))
