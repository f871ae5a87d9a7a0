"""Blocks on a real Slurm, without accounting: the tests that every provider passes, and what can become of a job."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from slurm import PrivateSlurm

from farcall_endpoint.plugins import load_provider
from farcall_endpoint.provider import BlockSpec, BlockState, Provider, ProviderError, SystemUnavailable
from farcall_endpoint.testing import ProviderContract
from farcall_provider_slurm import SlurmConfig, SlurmProvider

OWNER = "0123456789ab"
PATIENCE_S = 90


def spec(run_dir: Path, command: str, **more: object) -> BlockSpec:
    return dataclasses.replace(BlockSpec(command=command, name="farcall.lab.0", run_dir=run_dir, owner=OWNER), **more)


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    """Slurm can only be asked, so this asks again and again."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def wait_for(provider: Provider, block_id: str, wanted: BlockState) -> None:
    wait_until(lambda: provider.states([block_id])[block_id] is wanted, f"block {block_id} is not {wanted}")


def wait_for_reason(provider: Provider, block_id: str, *parts: str) -> None:
    """Slurm's first reason is not always its last."""

    def says_so() -> bool:
        provider.states([block_id])
        return any(part in provider.reason(block_id) for part in parts)

    wait_until(says_so, f"the reason is never {parts}")


def options(**more: object) -> SlurmConfig:
    """Nodes are shared, so that tests need not wait for each other's jobs to be cleaned up."""
    return SlurmConfig(**{"exclusive": False, **more})  # type: ignore[arg-type]


@pytest.fixture
def provider(slurm: PrivateSlurm) -> Iterator[SlurmProvider]:
    provider = SlurmProvider(options())
    yield provider
    provider.close()


class TestSlurmProvider(ProviderContract):
    @pytest.fixture(autouse=True)
    def on_slurm(self, slurm: PrivateSlurm) -> None:
        self.slurm = slurm

    def make_provider(self) -> Provider:
        # Commands take long to see that nobody answers.
        return SlurmProvider(options(command_timeout_s=4.0))

    def held(self) -> AbstractContextManager[object]:
        return self.slurm.holding()

    def away(self) -> AbstractContextManager[object]:
        return self.slurm.away()

    def impossible_spec(self, run_dir: Path) -> BlockSpec:
        # Until the test is over.
        self.slurm.update_partitions("drain")
        return self.spec(run_dir, "exit 0")


def test_the_endpoint_finds_it_by_name() -> None:
    assert load_provider("slurm") is SlurmProvider


def test_a_running_block_says_where_and_one_that_failed_says_how(provider: SlurmProvider, tmp_path: Path) -> None:
    running = provider.submit(spec(tmp_path, "sleep 600"))
    failed = provider.submit(spec(tmp_path, "echo what it printed; exit 3"))
    wait_for(provider, running, BlockState.RUNNING)
    wait_for(provider, failed, BlockState.FAILED)

    assert provider.reason(running).startswith("on n")
    assert "what it printed" in provider.output(failed)
    assert "FAILED, exit code 3 on n" in provider.output(failed)


def test_a_block_that_a_signal_ended_names_the_signal(provider: SlurmProvider, tmp_path: Path) -> None:
    block_id = provider.submit(spec(tmp_path, "kill -SEGV $$"))

    wait_for(provider, block_id, BlockState.FAILED)

    assert "killed by signal 11" in provider.output(block_id)


def test_blocks_are_added_and_ended_one_by_one(provider: SlurmProvider, slurm: PrivateSlurm, tmp_path: Path) -> None:
    blocks = [provider.submit(spec(tmp_path, "sleep 600")) for _ in range(3)]
    for block_id in blocks:
        wait_for(provider, block_id, BlockState.RUNNING)

    provider.cancel(blocks[:2])
    for block_id in blocks[:2]:
        wait_for(provider, block_id, BlockState.CANCELLED)

    assert provider.states(blocks)[blocks[2]] is BlockState.RUNNING
    assert provider.owned(OWNER) == blocks[2:]


def test_a_job_that_somebody_else_ended_has_failed_and_one_that_we_ended_is_cancelled(
    provider: SlurmProvider, slurm: PrivateSlurm, tmp_path: Path
) -> None:
    theirs, ours = (provider.submit(spec(tmp_path, "sleep 600")) for _ in range(2))
    for block_id in (theirs, ours):
        wait_for(provider, block_id, BlockState.RUNNING)

    slurm.run("scancel", theirs)
    provider.cancel([ours])

    wait_for(provider, theirs, BlockState.FAILED)
    wait_for(provider, ours, BlockState.CANCELLED)
    assert "CANCELLED (by somebody, not by the endpoint)" in provider.output(theirs)


def test_a_block_of_two_nodes_runs_on_both(slurm: PrivateSlurm, tmp_path: Path) -> None:
    provider = SlurmProvider(options(cores_per_node=2))
    command = "srun --ntasks 2 sh -c 'echo \"$SLURMD_NODENAME has $SLURM_CPUS_PER_TASK of $PARSL_CORES\"'"

    block_id = provider.submit(spec(tmp_path, command, nodes=2))
    wait_for(provider, block_id, BlockState.DONE)

    assert sorted(provider.output(block_id).splitlines()[:2]) == ["n1 has 2 of 2", "n2 has 2 of 2"]


def test_gpus_that_were_asked_for_are_the_ones_that_a_block_sees(slurm: PrivateSlurm, tmp_path: Path) -> None:
    provider = SlurmProvider(options(gpus_per_node="2"))

    block_id = provider.submit(spec(tmp_path, "echo devices: $CUDA_VISIBLE_DEVICES"))
    wait_for(provider, block_id, BlockState.DONE)

    assert "devices: 0,1" in provider.output(block_id)


def test_a_block_is_ended_with_its_walltime_and_says_so(
    provider: SlurmProvider, slurm: PrivateSlurm, tmp_path: Path
) -> None:
    block_id = provider.submit(spec(tmp_path, "sleep 600", walltime_s=3600))
    wait_for(provider, block_id, BlockState.RUNNING)
    assert "TimeLimit=01:00:00" in slurm.run("scontrol", "show", "job", block_id)

    slurm.run("scontrol", "update", f"jobid={block_id}", "EndTime=now+2")
    wait_for(provider, block_id, BlockState.FAILED)

    assert "TIMEOUT (its walltime was over) on n" in provider.output(block_id)
    assert "DUE TO TIME LIMIT" in provider.output(block_id)


def test_a_node_that_goes_down_fails_its_block_which_does_not_start_again(
    provider: SlurmProvider, slurm: PrivateSlurm, tmp_path: Path
) -> None:
    block_id = provider.submit(spec(tmp_path, "sleep 600"))
    wait_for(provider, block_id, BlockState.RUNNING)
    node = provider.reason(block_id).removeprefix("on ")

    slurm.update_node(node, "down")
    wait_for(provider, block_id, BlockState.FAILED)

    assert f"NODE_FAIL (a node of it was lost) on {node}" in provider.output(block_id)
    assert block_id not in slurm.jobs()


def test_drained_nodes_are_why_a_block_waits(provider: SlurmProvider, slurm: PrivateSlurm, tmp_path: Path) -> None:
    for node in slurm.nodes:
        slurm.update_node(node, "drain")

    block_id = provider.submit(spec(tmp_path, "true"))
    wait_for_reason(provider, block_id, "DRAINED", "ReqNodeNotAvail")

    for node in slurm.nodes:
        slurm.update_node(node, "resume")
    wait_for(provider, block_id, BlockState.DONE)


def test_a_block_that_asks_for_too_much_time_waits_for_ever_and_says_so(slurm: PrivateSlurm, tmp_path: Path) -> None:
    provider = SlurmProvider(options(partition="short"))

    block_id = provider.submit(spec(tmp_path, "true", walltime_s=3600))
    wait_for_reason(provider, block_id, "PartitionTimeLimit (it never starts like this: its walltime")

    assert provider.states([block_id]) == {block_id: BlockState.PENDING}
    provider.cancel([block_id])
    wait_for(provider, block_id, BlockState.CANCELLED)


def test_a_partition_that_is_not_there_is_a_refusal_in_slurms_words(slurm: PrivateSlurm, tmp_path: Path) -> None:
    provider = SlurmProvider(options(partition="nosuch"))

    with pytest.raises(ProviderError, match=r"Invalid partition name specified \[exit code 1\]") as caught:
        provider.submit(spec(tmp_path, "true"))

    assert not isinstance(caught.value, SystemUnavailable)
    assert slurm.jobs() == []


def test_the_jobs_of_an_owner_are_found_again_and_nobody_elses(
    provider: SlurmProvider, slurm: PrivateSlurm, tmp_path: Path
) -> None:
    mine = provider.submit(spec(tmp_path, "sleep 600"))
    held = provider.submit(spec(tmp_path, "true", nodes=99))
    ended = provider.submit(spec(tmp_path, "true"))
    provider.submit(spec(tmp_path, "sleep 600", owner="ba9876543210"))
    wait_for(provider, ended, BlockState.DONE)

    later = SlurmProvider(options())

    assert sorted(later.owned(OWNER)) == sorted([mine, held])
    later.cancel(later.owned(OWNER))
    wait_for(later, mine, BlockState.CANCELLED)
    assert later.owned(OWNER) == []


def test_scheduler_options_and_odd_paths_arrive_as_they_are(slurm: PrivateSlurm, tmp_path: Path) -> None:
    provider = SlurmProvider(options(scheduler_options="#SBATCH --comment='a word'\n#SBATCH --job-name=mine"))
    run_dir = tmp_path / "with blank, it's 100%j $HOME"

    block_id = provider.submit(spec(run_dir, "squeue -h -j $SLURM_JOB_ID -o '%k|%j'"))
    wait_for(provider, block_id, BlockState.DONE)

    assert f"a word|farcall.lab.0.{OWNER}" in provider.output(block_id)


def test_what_the_environment_says_to_slurm_does_not_win_and_secrets_stay_here(
    slurm: PrivateSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_PARTITION", "short")
    monkeypatch.setenv("SQUEUE_PARTITION", "short")
    monkeypatch.setenv("SBATCH_WAIT", "1")
    monkeypatch.setenv("FARCALL_TOKEN", "a secret")
    monkeypatch.setenv("SOMETHING_ELSE", "is handed on")
    provider = SlurmProvider(options(partition="debug"))

    block_id = provider.submit(spec(tmp_path, "echo $SLURM_JOB_PARTITION; env"))
    wait_for(provider, block_id, BlockState.DONE)

    output = provider.output(block_id)
    assert output.startswith("debug")
    assert "a secret" not in output
    assert "is handed on" in output


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", path], check=False, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def test_output_on_a_full_disk_keeps_a_block_neither_from_ending_nor_from_being_told(
    provider: SlurmProvider, slurm: PrivateSlurm, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        loud = provider.submit(spec(disk, "head -c 1000000 /dev/zero | tr '\\0' x; exit 4"))
        wait_for(provider, loud, BlockState.FAILED)
        with contextlib.suppress(OSError), (disk / "rest").open("wb", buffering=0) as rest:
            while True:
                rest.write(bytes(4096))

        with pytest.raises(SystemUnavailable, match="No space left"):
            provider.submit(spec(disk, "true"))

        assert "FAILED, exit code 4" in provider.output(loud)
