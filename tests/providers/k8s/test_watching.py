"""Blocks are known by what the API server tells, also when what it tells breaks off."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from farcall_endpoint.provider import BlockSpec, BlockState, SystemUnavailable
from farcall_provider_k8s import K8sProvider, watching
from farcall_provider_k8s.api import Refused


def spec(command: str = "sleep 600", **more: Any) -> BlockSpec:
    return BlockSpec(command=command, name="watching", run_dir=Path("/nowhere"), **{"owner": "me", **more})


def running(state: BlockState) -> bool:
    return state is BlockState.RUNNING


class Requests:
    """What a provider asks of the API server, as it does so; some of it can be kept from it."""

    def __init__(self, provider: K8sProvider, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []
        self.refused_watches: list[Exception] = []
        self.listed = threading.Semaphore(0)
        send = provider._api._send

        def recording(method: str, path: str, *arguments: Any, **options: Any) -> Any:
            doing = options["doing"]
            self.made.append(doing)
            if doing == "watch pods" and self.refused_watches:
                raise self.refused_watches.pop()
            answer = send(method, path, *arguments, **options)
            if doing == "list pods":
                self.listed.release()
            return answer

        monkeypatch.setattr(provider._api, "_send", recording)


@pytest.fixture
def requests(provider: K8sProvider, monkeypatch: pytest.MonkeyPatch) -> Requests:
    return Requests(provider, monkeypatch)


def test_asking_for_states_asks_the_api_server_nothing(provider: K8sProvider, requests: Requests, ended: Any) -> None:
    block_id = provider.submit(spec("exit 0"))
    before = len(requests.made)

    assert ended(provider, block_id) is BlockState.DONE

    assert requests.made[before:] == []


def test_a_watch_whose_beginning_is_forgotten_lists_the_pods_anew(
    provider: K8sProvider, requests: Requests, ended: Any
) -> None:
    requests.refused_watches.append(Refused("too old resource version", 410))

    block_id = provider.submit(spec("exit 0"))

    assert ended(provider, block_id) is BlockState.DONE
    assert requests.made.count("list pods") == 2


@pytest.mark.parametrize(
    "trouble", [SystemUnavailable("504: Gateway Timeout"), OSError("the connection broke"), ValueError("half a line")]
)
def test_a_watch_that_breaks_off_lists_the_pods_anew(
    provider: K8sProvider, requests: Requests, ended: Any, trouble: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "_PAUSES_S", (0.0,))
    first = provider.submit(spec())
    ended(provider, first, running)

    requests.refused_watches.append(trouble)
    # Another owner has the watch begin anew.
    second = provider.submit(spec("exit 0", owner="other"))

    assert ended(provider, second) is BlockState.DONE
    assert provider.states([first]) == {first: BlockState.RUNNING}
    provider.cancel([first])
    assert ended(provider, first) is BlockState.CANCELLED


def test_a_pod_that_is_gone_when_the_pods_are_listed_anew_has_failed(
    account: Any, provider: K8sProvider, ended: Any
) -> None:
    block_id = provider.submit(spec())
    ended(provider, block_id, running)
    account.cluster.api_server.suspend()
    try:
        # The connection is closed while nobody answers.
        provider._pods._break_off()
    finally:
        account.cluster.api_server.resume()
    account.cluster.admin.delete(account.path("pods", block_id), {"gracePeriodSeconds": 0})

    assert ended(provider, block_id) is BlockState.FAILED
    assert "the pod was deleted, and not by this agent" in provider.output(block_id)


def test_an_api_server_that_is_started_again_is_heard_again(
    account: Any, provider: K8sProvider, ended: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watching, "_PAUSES_S", (0.0, 0.05))
    caplog.set_level(logging.INFO, "farcall_provider_k8s")
    block_id = provider.submit(spec())
    ended(provider, block_id, running)

    account.cluster.api_server.kill()
    with pytest.raises(SystemUnavailable, match="cannot be reached"):
        while True:
            provider.states([block_id])
    with pytest.raises(SystemUnavailable, match="cannot be reached"):
        provider.submit(spec())
    with pytest.raises(SystemUnavailable, match="cannot be reached"):
        provider.cancel([block_id])
    account.cluster.api_server.start()
    account.cluster.wait_until_ready()

    provider._pods.follow("me")
    assert provider.states([block_id]) == {block_id: BlockState.RUNNING}
    provider.cancel([block_id])
    assert ended(provider, block_id) is BlockState.CANCELLED


def test_closing_does_not_wait_for_the_watch_to_end(account: Any) -> None:
    provider = account.provider()
    provider.submit(spec("exit 0"))
    thread = provider._pods._thread

    provider.close()

    assert thread is not None and not thread.is_alive()
