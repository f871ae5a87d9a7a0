"""Blocks on a real Slurm with accounting: who ended a job, which account is charged, what may be asked for."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from slurm import ACCOUNT, PrivateSlurm

from farcall_endpoint.provider import BlockSpec, BlockState, Finding, Provider, ProviderError, SystemUnavailable
from farcall_provider_slurm import SlurmConfig, SlurmProvider

PATIENCE_S = 90


def spec(run_dir: Path, command: str, *, nodes: int = 1) -> BlockSpec:
    return BlockSpec(command=command, name="farcall.lab.0", run_dir=run_dir, owner="0123456789ab", nodes=nodes)


def provider_with(**options: object) -> SlurmProvider:
    return SlurmProvider(SlurmConfig(**{"exclusive": False, "account": ACCOUNT, **options}))  # type: ignore[arg-type]


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    """Slurm can only be asked, so this asks again and again."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def wait_for(provider: Provider, block_id: str, wanted: BlockState) -> None:
    wait_until(lambda: provider.states([block_id])[block_id] is wanted, f"block {block_id} is not {wanted}")


def findings(provider: Provider) -> dict[str, Finding]:
    return {finding.subject: finding for finding in provider.examine()}


def test_who_ended_a_job_is_known(accounted: PrivateSlurm, tmp_path: Path) -> None:
    provider = provider_with()
    block_id = provider.submit(spec(tmp_path, "sleep 600"))
    wait_for(provider, block_id, BlockState.RUNNING)

    accounted.run("scancel", block_id)
    # Before it is looked at, so that accounting has heard of it.
    wait_until(lambda: "CANCELLED by" in accounted.run("sacct", "-X", "-n", "-o", "state%20", "-j", block_id), "late")
    wait_for(provider, block_id, BlockState.FAILED)

    assert "CANCELLED (by user " in provider.output(block_id)


def test_an_account_that_is_not_ones_own_is_refused(accounted: PrivateSlurm, tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match="Invalid account") as caught:
        provider_with(account="nosuch").submit(spec(tmp_path, "true"))

    assert not isinstance(caught.value, SystemUnavailable)


def test_a_quality_of_service_that_allows_less_is_why_a_block_waits(accounted: PrivateSlurm, tmp_path: Path) -> None:
    provider = provider_with(qos="tiny")

    block_id = provider.submit(spec(tmp_path, "true", nodes=2))

    def says_so() -> bool:
        provider.states([block_id])
        return provider.reason(block_id).startswith("QOSMaxNodePerJobLimit (it never starts like this")

    wait_until(says_so, "it does not say why")
    provider.cancel([block_id])
    wait_for(provider, block_id, BlockState.CANCELLED)


def test_on_a_named_cluster_blocks_live_and_end_like_elsewhere(accounted: PrivateSlurm, tmp_path: Path) -> None:
    provider = provider_with(clusters="farcall")

    failed, running = (provider.submit(spec(tmp_path, command)) for command in ("exit 3", "sleep 600"))
    wait_for(provider, failed, BlockState.FAILED)
    wait_for(provider, running, BlockState.RUNNING)

    assert failed.endswith(";farcall")
    assert "exit code 3" in provider.output(failed)
    assert provider.owned("0123456789ab") == [running]
    provider.cancel([running])
    wait_for(provider, running, BlockState.CANCELLED)


def test_a_job_that_the_controller_has_forgotten_is_known_to_accounting(
    accounted: PrivateSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block_id = provider_with().submit(spec(tmp_path, "exit 3"))
    wait_until(lambda: "FAILED" in accounted.run("sacct", "-X", "-n", "-o", "state", "-j", block_id), "it is not told")
    # By another agent, who never saw it and has no file of it; squeue is told of no job, as if it had forgotten them.
    later = provider_with()
    monkeypatch.setattr(later, "_queued", lambda cluster, ids: {})

    assert later.states([block_id, "99999"]) == {block_id: BlockState.FAILED, "99999": BlockState.UNKNOWN}
    assert "exit code 3" in later.output(block_id)


def test_doctor_looks_at_partition_account_and_the_whole_request(accounted: PrivateSlurm) -> None:
    well = findings(provider_with(partition="debug"))
    wrong = findings(provider_with(partition="nosuch", account="alchemy"))

    assert all(finding.is_well for finding in well.values())
    assert "debug is up, time limit infinite, nodes: 2" in well["partition"].said
    assert "tiny" in well["account"].said
    assert "to start at" in well["a job like a block, with one node"].said
    assert "there are: debug, short" in wrong["partition"].said
    assert f"yours are: {ACCOUNT}" in wrong["account"].said
    assert not wrong["a job like a block, with one node"].is_well
    assert all(finding.remedy for finding in wrong.values() if not finding.is_well)
