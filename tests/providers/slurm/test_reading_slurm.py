"""What Slurm's commands print, and what is asked of them, without any Slurm."""

from __future__ import annotations

import doctest
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from farcall.errors import ConfigurationError
from farcall_endpoint.batch import SECRETS
from farcall_endpoint.loading import load_config
from farcall_endpoint.plugins import provider_config
from farcall_endpoint.provider import BlockSpec, BlockState, ProviderError, SystemUnavailable
from farcall_endpoint.shell import Ran, Shell
from farcall_provider_slurm import SlurmConfig, SlurmProvider, config, words
from farcall_provider_slurm.words import Seen, job_of

FINE = Ran(0, "", "")
NO_ACCOUNTING = Ran(1, "", "Slurm accounting storage is disabled")


class Scripted(Shell):
    """Answers each program with what the test says, and remembers what was asked."""

    place = "a test"

    def __init__(self, **answers: Ran | Callable[[Sequence[str]], Ran]) -> None:
        self.answers = {"sacct": NO_ACCOUNTING, **answers}
        self.asked: list[list[str]] = []
        self.hidden: set[str] = set()
        self.files: dict[str, str] = {}

    def run(self, command: Sequence[str], *, stdin: bytes = b"", timeout_s: float) -> Ran:
        words = list(command)
        if words[0] == "env":
            del words[0]
            while words[0] == "-u":
                self.hidden.add(words[1])
                del words[:2]
        if words[0] == "sh":
            self.files[words[-1]] = stdin.decode()
            return FINE
        if words[0] == "tail":
            return Ran(0, self.files.get(words[-1], ""), "")
        self.asked.append(words)
        answer = self.answers.get(words[0], FINE)
        return answer if isinstance(answer, Ran) else answer(words)

    def programs(self) -> list[str]:
        return [command[0] for command in self.asked]


def provider_on(shell: Shell, **options: object) -> SlurmProvider:
    return SlurmProvider(SlurmConfig(**options), shell)  # type: ignore[arg-type]


def block(**more: object) -> BlockSpec:
    return BlockSpec(**{"command": "work", "name": "farcall.lab.0", "run_dir": Path("/run"), **more})  # type: ignore[arg-type]


def script_of(spec: BlockSpec, **options: object) -> list[str]:
    shell = Scripted(sbatch=Ran(0, "7\n", ""))
    provider_on(shell, **options).submit(spec)
    return next(iter(shell.files.values())).splitlines()


@pytest.mark.parametrize("module", [config, words], ids=lambda module: module.__name__)
def test_the_examples_in_the_docstrings_are_right(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "word, state",
    [
        ("PENDING", BlockState.PENDING),
        ("CONFIGURING", BlockState.PENDING),
        ("REQUEUE_HOLD", BlockState.PENDING),
        ("SPECIAL_EXIT", BlockState.PENDING),
        ("RUNNING", BlockState.RUNNING),
        ("COMPLETING", BlockState.RUNNING),
        ("SUSPENDED", BlockState.RUNNING),
        ("STOPPED", BlockState.RUNNING),
        ("COMPLETED", BlockState.DONE),
        ("FAILED", BlockState.FAILED),
        ("TIMEOUT", BlockState.FAILED),
        ("NODE_FAIL", BlockState.FAILED),
        ("OUT_OF_MEMORY", BlockState.FAILED),
        ("BOOT_FAIL", BlockState.FAILED),
        ("DEADLINE", BlockState.FAILED),
        ("PREEMPTED", BlockState.FAILED),
        ("REVOKED", BlockState.FAILED),
        ("CANCELLED", BlockState.FAILED),
        ("CANCELLED by 1001", BlockState.FAILED),
        ("CANCELLED+", BlockState.FAILED),
    ],
)
def test_each_of_slurms_states_has_a_meaning(word: str, state: BlockState) -> None:
    assert job_of(Seen(word)).state is state


def test_a_state_that_a_later_slurm_invents_is_unknown_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        jobs = [job_of(Seen("LEVITATING")) for _ in range(3)]

    assert {job.state for job in jobs} == {BlockState.UNKNOWN}
    assert "LEVITATING" in jobs[0].said
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    "reason, said",
    [
        ("Resources", "is not free yet"),
        ("Priority", "other jobs come first"),
        ("ReqNodeNotAvail, UnavailableNodes:n3", "down, drained or reserved"),
        ("AssocGrpCPUMinutesLimit", "hours that were granted are used up"),
        ("QOSMaxJobsPerUserLimit", "as many jobs as may run at a time"),
        ("AssocMaxJobsLimit", ""),
        ("QOSMaxNodePerJobLimit", "never starts"),
        ("QOSGrpNodeLimit", "all jobs of its group together"),
        ("QOSMaxCpuPerUserLimit", "would use more than they may"),
        ("SomethingNew", "SomethingNew"),
    ],
)
def test_a_reason_keeps_slurms_word_and_gets_an_explanation(reason: str, said: str) -> None:
    shown = job_of(Seen("PENDING", reason=reason)).said

    assert shown.startswith(reason)
    assert said in shown


def test_one_question_for_all_blocks_and_the_reason_may_be_a_sentence() -> None:
    sentence = "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions"
    shell = Scripted(squeue=Ran(0, f"5|RUNNING|n[1-2]|None\n6|PENDING||{sentence}\n4|RUNNING|n9|None\n", ""))
    provider = provider_on(shell)

    states = provider.states(["5", "6", "7"])

    assert states == {"5": BlockState.RUNNING, "6": BlockState.PENDING, "7": BlockState.UNKNOWN}
    assert provider.reason("5") == "on n[1-2]"
    assert provider.reason("6") == sentence
    assert shell.programs() == ["squeue", "sacct"]


def test_accounting_that_is_not_there_is_not_asked_again() -> None:
    shell = Scripted(squeue=Ran(1, "", "slurm_load_jobs error: Invalid job id specified"))
    provider = provider_on(shell)

    for _ in range(3):
        assert provider.states(["5"]) == {"5": BlockState.UNKNOWN}

    assert shell.programs().count("sacct") == 1


def test_accounting_that_does_not_answer_is_left_alone_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    broken = Ran(1, "", "sacct: error: slurm_persist_conn_open: failed to connect")
    shell = Scripted(squeue=Ran(0, "", ""), sacct=broken)
    provider = provider_on(shell)

    for _ in range(3):
        assert provider.states(["5", "6"]) == {"5": BlockState.UNKNOWN, "6": BlockState.UNKNOWN}

    assert shell.programs().count("sacct") == 1
    assert "failed to connect" in caplog.text


def test_a_slurm_that_refuses_a_list_for_one_forgotten_id_is_asked_for_all_jobs() -> None:
    def squeue(command: Sequence[str]) -> Ran:
        if "-j" in command:
            return Ran(1, "", "slurm_load_jobs error: Invalid job id specified")
        return Ran(0, "5|RUNNING|n1|None\n9|RUNNING|n1|None\n", "")

    states = provider_on(Scripted(squeue=squeue)).states(["5", "6"])

    assert states == {"5": BlockState.RUNNING, "6": BlockState.UNKNOWN}


def test_accounting_that_is_late_does_not_bring_an_ended_job_back_to_life() -> None:
    shell = Scripted(squeue=Ran(0, "5|FAILED|n1|NonZeroExitCode\n", ""), sacct=Ran(0, "5|RUNNING|0:0|n1|None\n", ""))

    assert provider_on(shell).states(["5"]) == {"5": BlockState.FAILED}


@pytest.mark.parametrize(
    "said",
    [
        "slurm_load_jobs error: Socket timed out on send/recv operation",
        "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
        "sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: Job violates ...",
    ],
)
def test_what_may_be_answered_otherwise_later_says_nothing_against_a_block(said: str) -> None:
    with pytest.raises(SystemUnavailable):
        provider_on(Scripted(sbatch=Ran(1, "", said))).submit(block())


def test_commands_that_are_not_there_are_named() -> None:
    with pytest.raises(ProviderError, match="there is no command sbatch on a test"):
        provider_on(Scripted(sbatch=Ran(127, "", "env: 'sbatch': No such file or directory"))).submit(block())


@pytest.mark.parametrize("said", ["12\n", "Welcome!\n12\n"])
def test_the_id_is_found_beside_what_a_site_prints(said: str) -> None:
    assert provider_on(Scripted(sbatch=Ran(0, said, ""))).submit(block()) == "12"


def test_an_answer_without_an_id_is_shown() -> None:
    with pytest.raises(ProviderError, match="Welcome!"):
        provider_on(Scripted(sbatch=Ran(0, "Welcome!\n", ""))).submit(block())


def test_on_several_clusters_each_is_asked_for_its_own() -> None:
    shell = Scripted(
        squeue=lambda command: Ran(0, f"5|RUNNING|{'m' if '--clusters=moon' in command else 's'}1|None\n", "")
    )
    provider = provider_on(shell, clusters="moon,sun")

    provider.states(["5;moon", "5;sun"])
    provider.cancel(["5;moon", "5;sun"])

    assert (provider.reason("5;moon"), provider.reason("5;sun")) == ("on m1", "on s1")
    assert [command for command in shell.asked if command[0] == "scancel"] == [
        ["scancel", "--clusters=moon", "5"],
        ["scancel", "--clusters=sun", "5"],
    ]


@pytest.mark.parametrize(
    "complaint",
    [
        "scancel: error: Kill job error on job id 5: Invalid job id specified",
        "scancel: error: Kill job error on job id 5: Job/step already completing or completed",
    ],
)
def test_ending_what_has_ended_is_no_error_whatever_the_version_says(complaint: str) -> None:
    provider_on(Scripted(scancel=Ran(1, "", complaint))).cancel(["5"])


def test_a_job_that_cannot_be_ended_is_an_error_in_slurms_words() -> None:
    complaint = "scancel: error: Kill job error on job id 5: Access/permission denied"

    with pytest.raises(ProviderError, match="permission denied"):
        provider_on(Scripted(scancel=Ran(1, "", complaint))).cancel(["5"])


def test_every_option_is_a_line_of_the_script() -> None:
    lines = script_of(
        block(nodes=2, walltime_s=90),
        account="physics",
        partition="gpu",
        qos="long",
        constraint="a100&nvme",
        reservation="monday",
        cores_per_node=8,
        mem_per_node=1.5,
        gpus_per_node="a100:4",
        gres="craynetwork:1",
        scheduler_options="#SBATCH --mail-type=END",
    )

    assert {line for line in lines if line.startswith("#SBATCH")} == {
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=1",
        "#SBATCH --time=0-00:01:30",
        "#SBATCH --account=physics",
        "#SBATCH --partition=gpu",
        "#SBATCH --qos=long",
        "#SBATCH --constraint='a100&nvme'",
        "#SBATCH --reservation=monday",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --mem=1536M",
        "#SBATCH --gpus-per-node=a100:4",
        "#SBATCH --gres=craynetwork:1",
        "#SBATCH --exclusive",
        "#SBATCH --mail-type=END",
    }
    assert "export PARSL_CORES=8" in lines
    assert "export PARSL_MEMORY_GB=1.5" in lines
    first = next(number for number, line in enumerate(lines) if number and not line.startswith("#"))
    assert not [line for line in lines[first:] if line.startswith("#SBATCH")]


def test_what_is_left_out_is_left_to_slurm() -> None:
    lines = script_of(block(), exclusive=False)

    assert [line for line in lines if line.startswith("#SBATCH")] == [
        "#SBATCH --nodes=1",
        "#SBATCH --ntasks-per-node=1",
    ]


def test_variables_go_that_would_win_over_what_is_configured_and_those_with_secrets() -> None:
    shell = Scripted(sbatch=Ran(0, "7\n", ""))

    provider_on(shell, partition="gpu").submit(block())

    assert {"SBATCH_PARTITION", "SBATCH_WAIT", "SCANCEL_INTERACTIVE", *SECRETS} <= shell.hidden
    # Sites set it for people, and nothing was configured.
    assert "SBATCH_ACCOUNT" not in shell.hidden


def test_a_controller_that_is_away_is_one_finding_of_doctor() -> None:
    shell = Scripted(sinfo=Ran(1, "", "slurm_load_partitions: Unable to contact slurm controller (connect failure)"))

    found = list(provider_on(shell).examine())

    assert [finding.is_well for finding in found] == [True, True, True, False]
    assert "Unable to contact slurm controller" in found[-1].said


DOCUMENTATION = Path(__file__).parents[3] / "docs" / "slurm.md"


@pytest.mark.parametrize("text", re.findall(r"```yaml\n(.*?)```", DOCUMENTATION.read_text(), re.DOTALL))
def test_the_configurations_in_the_documentation_are_right(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)

    provider, options = provider_config(load_config(tmp_path).provider)

    assert provider is SlurmProvider
    assert isinstance(options, SlurmConfig)


@pytest.mark.parametrize("wrong", ["gpus_per_node: many", "partiton: debug", "cores_per_node: 0"])
def test_a_mistake_in_a_configuration_is_pointed_at(wrong: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"engine:\n  provider:\n    type: slurm\n    {wrong}\n")

    with pytest.raises(ConfigurationError, match=r"config\.yaml, line 4"):
        provider_config(load_config(tmp_path).provider)
