"""Blocks as jobs of PBS: what is asked for, what is told of them, and what is not believed of them."""

from __future__ import annotations

import dataclasses
import getpass
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from farcall_endpoint.config import ProviderSection
from farcall_endpoint.plugins import build_provider
from farcall_endpoint.provider import BlockSpec, BlockState, ProviderError, SystemUnavailable
from farcall_endpoint.testing import FakePbs, ProviderContract
from farcall_provider_pbs import PbsConfig, PbsProvider
from farcall_provider_pbs import client as client_module

OWNER = "0123456789ab"


@pytest.fixture
def provider(pbs: FakePbs) -> Iterator[PbsProvider]:
    provider = PbsProvider(PbsConfig())
    yield provider
    provider.close()


def spec(run_dir: Path, command: str, **more: object) -> BlockSpec:
    plain = BlockSpec(command=command, name="farcall.lab.0", run_dir=run_dir, owner=OWNER)
    return dataclasses.replace(plain, **more)  # type: ignore[arg-type]


def ended(provider: PbsProvider, pbs: FakePbs, block_id: str) -> BlockState:
    for job in pbs.jobs:
        if block_id == f"{job.number}.pbshost":
            pbs.wait_until_ended(job)
    return provider.states([block_id])[block_id]


def running(provider: PbsProvider, block_id: str) -> None:
    ProviderContract().wait_for(provider, block_id, lambda state: state is BlockState.RUNNING)


# -- what is asked for ------------------------------------------------------------------------------------------------


def test_all_that_can_be_set_is_asked_for(pbs: FakePbs, tmp_path: Path) -> None:
    section = ProviderSection(
        "pbs",
        {
            "queue": "short",
            "account": "physics 1",
            "cpus_per_node": 4,
            "mem_per_node": 1.5,
            "gpus_per_node": 2,
            "mpiprocs": 3,
            "place": "scatter:excl",
            "select_options": "",
            "scheduler_options": "#PBS -l cput=00:10:00",
        },
    )
    provider = build_provider(section)

    with pbs.holding():
        provider.submit(spec(tmp_path, "exit 0", nodes=2, walltime_s=90))

    [job] = pbs.jobs
    assert job.name == f"farcall.lab.0.{OWNER}"
    assert (job.details["queue"], job.details["account"]) == ("short", "physics 1")
    assert job.details["resources"] == {
        "select": "2:ncpus=4:mem=1536mb:ngpus=2:mpiprocs=3",
        "place": "scatter:excl",
        "walltime": "00:01:30",
        "cput": "00:10:00",
    }
    assert not job.details["rerunable"]


def test_torque_is_asked_in_its_own_way(pbs: FakePbs, tmp_path: Path) -> None:
    pbs.speak("torque")
    provider = PbsProvider(PbsConfig(cpus_per_node=4, mem_per_node=1.5, gpus_per_node=2, select_options="bigmem"))

    with pbs.holding():
        provider.submit(spec(tmp_path, "exit 0", nodes=2))

    [job] = pbs.jobs
    assert job.name == f"fc-{OWNER}"
    assert job.details["resources"] == {"nodes": "2:ppn=4:gpus=2:bigmem", "mem": "3072mb"}


def test_what_was_set_goes_before_what_qstat_says_it_is(pbs: FakePbs, tmp_path: Path) -> None:
    provider = PbsProvider(PbsConfig(dialect="torque"))

    with pbs.holding():
        provider.submit(spec(tmp_path, "exit 0"))

    assert "nodes" in pbs.jobs[0].details["resources"]


def test_a_block_of_two_nodes_finds_both_in_its_file_of_nodes(
    pbs: FakePbs, provider: PbsProvider, tmp_path: Path
) -> None:
    block_id = provider.submit(spec(tmp_path, f"wc -l < $PBS_NODEFILE > {tmp_path}/count", nodes=2))

    assert ended(provider, pbs, block_id) is BlockState.DONE
    assert (tmp_path / "count").read_text().strip() == "2"


def test_an_unknown_dialect_is_answered_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="expected auto, pbspro or torque, got 'sge'"):
        build_provider(ProviderSection("pbs", {"dialect": "sge"}))


# -- what is told -----------------------------------------------------------------------------------------------------


def test_one_question_is_for_all_blocks(pbs: FakePbs, provider: PbsProvider, tmp_path: Path) -> None:
    ids = [provider.submit(spec(tmp_path, "exit 0")) for _ in range(5)]
    before = len(pbs.calls("qstat"))

    provider.states(ids)

    assert len(pbs.calls("qstat")) == before + 1


def test_a_forgotten_block_among_others_hides_none_of_them(pbs: FakePbs, provider: PbsProvider, tmp_path: Path) -> None:
    first, lost, last = (provider.submit(spec(tmp_path, "sleep 600")) for _ in range(3))
    for block_id in (first, lost, last):
        running(provider, block_id)
    pbs.lose(pbs.jobs[1])

    states = provider.states([first, lost, last])

    assert states == {first: BlockState.RUNNING, lost: BlockState.UNKNOWN, last: BlockState.RUNNING}


def test_a_waiting_block_says_why(pbs: FakePbs, provider: PbsProvider, tmp_path: Path) -> None:
    with pbs.holding("Insufficient amount of resource: ngpus"):
        block_id = provider.submit(spec(tmp_path, "exit 0"))

        assert provider.states([block_id]) == {block_id: BlockState.PENDING}
        assert provider.reason(block_id) == "Insufficient amount of resource: ngpus"


def test_a_running_block_says_where(pbs: FakePbs, provider: PbsProvider, tmp_path: Path) -> None:
    block_id = provider.submit(spec(tmp_path, "sleep 600"))
    running(provider, block_id)

    assert provider.reason(block_id) == "on pbshost"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("exit 3", "[exit status 3 on pbshost]"),
        ("kill -SEGV $$", "[killed by SIGSEGV (exit status 139) on pbshost]"),
    ],
)
def test_a_failed_block_says_how(pbs: FakePbs, provider: PbsProvider, tmp_path: Path, command: str, said: str) -> None:
    block_id = provider.submit(spec(tmp_path, f"echo before; {command}"))

    assert ended(provider, pbs, block_id) is BlockState.FAILED
    assert provider.output(block_id).startswith("before\n")
    assert provider.output(block_id).endswith(said)


def test_the_end_of_its_walltime_is_told_in_words(pbs: FakePbs, provider: PbsProvider, tmp_path: Path) -> None:
    block_id = provider.submit(spec(tmp_path, "sleep 600", walltime_s=1))

    assert ended(provider, pbs, block_id) is BlockState.FAILED
    assert "=>> PBS: job killed: walltime" in provider.output(block_id)
    assert "[its walltime was over (exit status -29) on pbshost]" in provider.output(block_id)


def test_a_block_that_somebody_deletes_has_failed_and_says_who_it_was(
    pbs: FakePbs, provider: PbsProvider, tmp_path: Path
) -> None:
    block_id = provider.submit(spec(tmp_path, "sleep 600"))
    running(provider, block_id)

    pbs.delete(pbs.jobs[0])

    assert ended(provider, pbs, block_id) is BlockState.FAILED
    # A command that is asked to end just as it begins may miss that, and is killed.
    said = rf"cancelled by {getpass.getuser()}@pbshost \(exit status (143|137)\) on pbshost"
    assert re.search(said, provider.output(block_id))


def test_a_block_that_somebody_deletes_while_it_waits_has_failed(
    pbs: FakePbs, provider: PbsProvider, tmp_path: Path
) -> None:
    with pbs.holding():
        block_id = provider.submit(spec(tmp_path, "exit 0"))
        pbs.delete(pbs.jobs[0])

        assert provider.states([block_id]) == {block_id: BlockState.FAILED}
        assert "cancelled by somebody" in provider.output(block_id)


def test_the_loss_of_a_node_is_told_in_words(pbs: FakePbs, provider: PbsProvider, tmp_path: Path) -> None:
    block_id = provider.submit(spec(tmp_path, "sleep 600"))
    running(provider, block_id)

    pbs.lose_node(pbs.jobs[0])

    assert ended(provider, pbs, block_id) is BlockState.FAILED
    assert "its node was lost" in provider.output(block_id)


def test_without_history_the_exit_code_that_a_block_left_says_how_it_ended(
    pbs: FakePbs, provider: PbsProvider, tmp_path: Path
) -> None:
    pbs.forget_ended_jobs()
    well, badly = provider.submit(spec(tmp_path, "exit 0")), provider.submit(spec(tmp_path, "exit 4"))

    assert ended(provider, pbs, well) is BlockState.DONE
    assert ended(provider, pbs, badly) is BlockState.FAILED
    assert "exit code 4" in provider.output(badly)


def test_without_history_a_block_that_was_ended_from_outside_is_not_done(
    pbs: FakePbs, provider: PbsProvider, tmp_path: Path
) -> None:
    pbs.forget_ended_jobs()
    block_id = provider.submit(spec(tmp_path, f"touch {tmp_path}/ready; sleep 600"))
    running(provider, block_id)

    pbs.delete(pbs.jobs[0])

    assert ended(provider, pbs, block_id) in (BlockState.FAILED, BlockState.UNKNOWN)


def test_json_that_is_none_is_asked_for_as_text(
    pbs: FakePbs, provider: PbsProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block_id = provider.submit(spec(tmp_path, "sleep 600"))
    running(provider, block_id)
    real = (pbs.bin / "qstat").rename(pbs.bin / "real-qstat")
    broken = (
        f'#!/bin/sh\ncase "$*" in *json*) echo \'{{"Jobs": {{"0.pbshost": {{"A": 01,\';; *) exec {real} "$@";; esac\n'
    )
    (pbs.bin / "qstat").write_text(broken)
    (pbs.bin / "qstat").chmod(0o755)

    assert provider.states([block_id]) == {block_id: BlockState.RUNNING}


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "walltime_s", "said"),
    [
        ({"queue": "nosuch"}, None, r"qsub on this machine failed: qsub: Unknown queue \[exit code 170\]"),
        ({"queue": "short"}, 600, "Job violates queue and/or server resource limits"),
        ({"scheduler_options": "#PBS -l nosuchres=1"}, None, "Unknown resource Resource_List.nosuchres"),
        ({"scheduler_options": "#PBS -l ncpus=1"}, None, 'cannot be used with "select"'),
    ],
)
@pytest.mark.usefixtures("pbs")
def test_a_refusal_is_told_as_it_was(
    tmp_path: Path, options: dict[str, str], walltime_s: int | None, said: str
) -> None:
    provider = PbsProvider(PbsConfig(**options))  # type: ignore[arg-type]

    with pytest.raises(ProviderError, match=said) as caught:
        provider.submit(spec(tmp_path, "exit 0", walltime_s=walltime_s))

    assert not isinstance(caught.value, SystemUnavailable)


def test_a_job_whose_id_was_lost_on_the_way_is_found_by_its_owner(
    pbs: FakePbs, provider: PbsProvider, tmp_path: Path
) -> None:
    pbs.break_off("qsub")
    with pytest.raises(SystemUnavailable, match="Premature end of message"):
        provider.submit(spec(tmp_path, "sleep 600"))
    pbs.come_back()

    assert provider.owned(OWNER) == ["0.pbshost"]
    provider.cancel(["0.pbshost"])
    pbs.wait_until_ended(pbs.jobs[0])
    assert provider.owned(OWNER) == []


def test_without_qselect_all_jobs_are_looked_through(pbs: FakePbs, provider: PbsProvider, tmp_path: Path) -> None:
    (pbs.bin / "qselect").unlink()
    mine = provider.submit(spec(tmp_path, "sleep 600"))
    provider.submit(spec(tmp_path, "sleep 600", owner="ba9876543210"))

    assert provider.owned(OWNER) == [mine]


def test_a_command_that_hangs_is_no_fault_of_the_block(pbs: FakePbs, tmp_path: Path) -> None:
    provider = PbsProvider(PbsConfig(command_timeout_s=1))
    block_id = provider.submit(spec(tmp_path, "sleep 600"))
    running(provider, block_id)

    with pbs.stalled("qstat"), pytest.raises(SystemUnavailable, match=r"qstat .* did not end within 1 s"):
        provider.states([block_id])

    assert provider.states([block_id]) == {block_id: BlockState.RUNNING}


# -- where PBS is -----------------------------------------------------------------------------------------------------


def test_where_path_has_no_pbs_the_usual_places_are_looked_in(
    pbs: FakePbs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(client_module, "DIRECTORIES", ("", "/nowhere/bin/", f"{pbs.bin}/"))
    provider = PbsProvider(PbsConfig())

    block_id = provider.submit(spec(tmp_path, "exit 0"))

    assert ended(provider, pbs, block_id) is BlockState.DONE


def test_a_qstat_that_is_not_pbs_is_told_as_that(pbs: FakePbs, tmp_path: Path) -> None:
    pbs.speak("slurm")
    provider = PbsProvider(PbsConfig())

    with pytest.raises(ProviderError, match=r"qstat is there, but is not PBS's: .*Unknown option.* is 'slurm'"):
        provider.submit(spec(tmp_path, "exit 0"))
    findings = list(provider.examine())

    assert [finding.is_well for finding in findings] == [False]
    assert "is not PBS's" in findings[0].said


def test_a_qstat_that_is_not_pbs_is_passed_over_where_there_is_one_that_is(
    pbs: FakePbs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = tmp_path / "bin" / "qstat"
    stranger.parent.mkdir()
    shutil.copy(shutil.which("false") or "/bin/false", stranger)
    monkeypatch.setenv("PATH", f"{stranger.parent}:/usr/bin:/bin")
    monkeypatch.setattr(client_module, "DIRECTORIES", ("", f"{pbs.bin}/"))

    assert PbsProvider(PbsConfig()).client.directory == f"{pbs.bin}/"


def test_no_pbs_at_all_is_told_with_where_it_was_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(client_module, "DIRECTORIES", ("", "/nowhere/bin/"))

    with pytest.raises(ProviderError, match="no qstat is in PATH, nor in /nowhere/bin/"):
        PbsProvider(PbsConfig()).submit(spec(tmp_path, "exit 0"))


def test_doctor_hears_of_server_and_queue(pbs: FakePbs) -> None:
    def said(**options: object) -> list[tuple[bool, str]]:
        findings = PbsProvider(PbsConfig(**options)).examine()  # type: ignore[arg-type]
        return [(finding.is_well, f"{finding.subject}: {finding.said}") for finding in findings]

    version = (True, "PBS: pbs_version = 23.06.06 (pbspro), in PATH of this machine")
    assert said() == [version, (True, "server of PBS: pbshost")]
    assert said(queue="workq") == [version, (True, "queue workq: it takes jobs and starts them")]
    assert said(queue="nosuch") == [version, (False, "queue nosuch: qstat: Unknown queue nosuch [exit code 170]")]
    pbs.go_away()
    assert not said()[1][0]
