"""What all providers share that drive a batch system by its commands, on a system that does as the test says."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from farcall_endpoint.batch import ENDED_KEPT, SECRETS, BatchConfig, BatchProvider, Files, Job
from farcall_endpoint.provider import BlockSpec, BlockState, ProviderError, SystemUnavailable
from farcall_endpoint.shell import LocalShell, Ran, Shell

UNREACHABLE = "nobody answers"


class FakeShell(Shell):
    """A machine with files and a batch system whose commands answer what the test says."""

    place = "a test"

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.answers: dict[str, Ran] = {}
        self.asked: list[list[str]] = []
        self.is_down = False

    def run(self, command: Sequence[str], *, stdin: bytes = b"", timeout_s: float) -> Ran:
        if self.is_down:
            raise SystemUnavailable("a test cannot be reached")
        words = list(command)
        if words[0] == "env":
            del words[: 1 + 2 * words.count("-u")]
        match words[0]:
            case "sh":
                self.files[words[-1]] = stdin.decode()
            case "tail":
                return Ran(0, self.files[words[-1]], "") if words[-1] in self.files else Ran(1, "", "no such file")
            case "rm":
                for path in words[2:]:
                    self.files.pop(path, None)
            case _:
                self.asked.append(words)
                return self.answers.get(words[0], Ran(0, "", ""))
        return Ran(0, "", "")

    def close(self) -> None:
        self.is_down = True


class Batch(BatchProvider):
    commands: ClassVar[Mapping[str, Sequence[str]]] = {"submit": ("submit", "--version")}

    def __init__(self, shell: Shell, **options: object) -> None:
        super().__init__(BatchConfig(**options), shell)  # type: ignore[arg-type]
        self.jobs: dict[str, Job] = {}
        self.looked_at: list[list[str]] = []

    def head(self, spec: BlockSpec, files: Files) -> Sequence[str]:
        return [f"#BATCH nodes={spec.nodes}"]

    def preparation(self, spec: BlockSpec) -> Sequence[str]:
        return ["export PREPARED=yes"]

    def submit_command(self, files: Files) -> Sequence[str]:
        return ["submit", files.name, files.script]

    def block_id(self, printed: str) -> str:
        return str(int(printed))

    def look(self, block_ids: Sequence[str]) -> Mapping[str, Job]:
        self.looked_at.append(list(block_ids))
        return {key: self.jobs[key] for key in block_ids if key in self.jobs}

    def cancel_command(self, block_ids: Sequence[str]) -> Sequence[str]:
        return ["end", *block_ids]

    def is_refusal(self, ran: Ran) -> bool:
        return UNREACHABLE not in ran.stderr


@pytest.fixture
def shell() -> FakeShell:
    shell = FakeShell()
    shell.answers["submit"] = Ran(0, "1\n", "")
    return shell


@pytest.fixture
def batch(shell: FakeShell) -> Batch:
    return Batch(shell)


def spec(**more: object) -> BlockSpec:
    return BlockSpec(**{"command": "work", "name": "farcall.lab.0", "run_dir": Path("/run"), **more})  # type: ignore[arg-type]


def path_of(shell: FakeShell, ending: str) -> str:
    """Of a file of the only block."""
    script = next(path for path in shell.files if path.endswith(".sh"))
    return script.removesuffix(".sh") + ending


def test_the_scripts_head_comes_first_and_everything_runs_in_one_shell(shell: FakeShell) -> None:
    Batch(shell, scheduler_options="#BATCH mail=yes\n\n#BATCH more").submit(
        spec(worker_init="module load python", nodes=2)
    )

    lines = shell.files[path_of(shell, ".sh")].splitlines()
    assert lines[:4] == ["#!/bin/bash", "#BATCH nodes=2", "#BATCH mail=yes", "#BATCH more"]
    assert [line.split()[0] for line in lines[4:6]] == ["trap", "trap"]
    assert lines[6:] == ["export PREPARED=yes", "module load python", "work"]


@pytest.mark.parametrize("folder", ["plain", "it's", 'a "b" $HOME `id` \\'])
def test_a_script_leaves_its_exit_code_wherever_its_files_are(tmp_path: Path, folder: str) -> None:
    batch = Batch(LocalShell())
    files = Files.of(spec(), str(tmp_path / folder))
    batch.shell.write(files.script, batch.script(spec(command="exit 5"), files).encode())

    ran = batch.run(["bash", files.script])

    assert ran.exit_code == 5
    assert batch.shell.tail(files.exit_code, 100) == "5\n"


def test_the_agents_secrets_do_not_reach_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*SECRETS, "A_HABIT", "KEPT"):
        monkeypatch.setenv(name, f"value of {name}")
    batch = Batch(LocalShell())
    batch.hidden = ("A_HABIT",)

    seen = batch.run(["env"]).stdout

    assert "value of KEPT" in seen
    assert not [name for name in (*SECRETS, "A_HABIT") if f"value of {name}" in seen]


def test_the_jobs_name_ends_in_its_owner(batch: Batch, shell: FakeShell) -> None:
    batch.submit(spec(owner="0123456789ab"))
    batch.submit(spec())

    assert [command[1] for command in shell.asked] == ["farcall.lab.0.0123456789ab", "farcall.lab.0"]


def test_a_refusal_is_told_in_the_systems_words_and_leaves_no_script(batch: Batch, shell: FakeShell) -> None:
    shell.answers["submit"] = Ran(1, "", "no such queue\n")

    with pytest.raises(ProviderError, match=r"submit on a test failed: no such queue \[exit code 1\]") as caught:
        batch.submit(spec())

    assert not isinstance(caught.value, SystemUnavailable)
    assert not shell.files


def test_a_system_that_does_not_answer_has_refused_nothing(batch: Batch, shell: FakeShell) -> None:
    shell.answers["submit"] = Ran(1, "", UNREACHABLE)

    with pytest.raises(SystemUnavailable):
        batch.submit(spec())


def test_a_machine_that_cannot_be_reached_is_named(batch: Batch, shell: FakeShell) -> None:
    shell.is_down = True

    with pytest.raises(SystemUnavailable, match="a test cannot be reached"):
        batch.cancel(["1"])


def test_a_command_that_is_not_there_is_named(batch: Batch, shell: FakeShell) -> None:
    shell.answers["submit"] = Ran(127, "", "env: submit: No such file or directory")

    with pytest.raises(ProviderError, match="there is no command submit on a test; is its directory in PATH"):
        batch.submit(spec())


def test_an_answer_without_an_id_is_shown(batch: Batch, shell: FakeShell) -> None:
    shell.answers["submit"] = Ran(0, "thank you\n", "")

    with pytest.raises(ProviderError, match="thank you"):
        batch.submit(spec())


def test_all_blocks_are_looked_at_in_one_go_and_those_that_have_ended_never_again(
    batch: Batch, shell: FakeShell
) -> None:
    batch.jobs = {"1": Job(BlockState.DONE), "2": Job(BlockState.RUNNING, "on n1")}

    batch.states(["1", "2"])
    batch.jobs["1"] = Job(BlockState.RUNNING)
    states = batch.states(["1", "2"])

    assert batch.looked_at == [["1", "2"], ["2"]]
    assert states == {"1": BlockState.DONE, "2": BlockState.RUNNING}
    assert batch.reason("2") == "on n1"


def test_a_job_that_vanished_is_unknown_until_its_exit_code_proves_how_it_ended(batch: Batch, shell: FakeShell) -> None:
    block_id = batch.submit(spec())

    before = batch.states([block_id])
    shell.files[path_of(shell, ".exit")] = "4\n"

    assert before == {block_id: BlockState.UNKNOWN}
    assert batch.states([block_id]) == {block_id: BlockState.FAILED}
    assert "exit code 4" in batch.output(block_id)


def test_half_an_exit_code_proves_nothing(batch: Batch, shell: FakeShell) -> None:
    block_id = batch.submit(spec())
    shell.files[path_of(shell, ".exit")] = ""

    assert batch.states([block_id]) == {block_id: BlockState.UNKNOWN}


@pytest.mark.parametrize("seen", [None, Job(BlockState.FAILED, "killed")])
def test_what_we_ended_is_cancelled_however_the_system_calls_it(batch: Batch, shell: FakeShell, seen: Job) -> None:
    block_id = batch.submit(spec())
    batch.cancel([block_id])
    batch.jobs = {block_id: seen} if seen else {}

    assert batch.states([block_id]) == {block_id: BlockState.CANCELLED}
    assert batch.output(block_id) == "[ended by the endpoint]"


def test_what_somebody_else_ended_has_failed(batch: Batch) -> None:
    block_id = batch.submit(spec())
    batch.jobs = {block_id: Job(BlockState.FAILED, "cancelled by alice")}

    assert batch.states([block_id]) == {block_id: BlockState.FAILED}
    assert "cancelled by alice" in batch.output(block_id)


def test_a_block_that_ended_well_although_it_was_to_be_ended_is_done(batch: Batch) -> None:
    block_id = batch.submit(spec())
    batch.cancel([block_id])
    batch.jobs = {block_id: Job(BlockState.DONE)}

    assert batch.states([block_id]) == {block_id: BlockState.DONE}


def test_an_end_that_nobody_confirmed_counts_as_ours(batch: Batch, shell: FakeShell) -> None:
    block_id = batch.submit(spec())
    shell.answers["end"] = Ran(1, "", UNREACHABLE)
    with pytest.raises(SystemUnavailable):
        batch.cancel([block_id])

    batch.jobs = {block_id: Job(BlockState.FAILED)}

    assert batch.states([block_id]) == {block_id: BlockState.CANCELLED}


def test_blocks_of_an_earlier_agent_are_looked_at_and_ended_like_ones_own(batch: Batch, shell: FakeShell) -> None:
    batch.jobs = {"77": Job(BlockState.PENDING, "it waits")}

    assert batch.states(["77"]) == {"77": BlockState.PENDING}
    assert batch.reason("77") == "it waits"
    batch.cancel(["77"])
    batch.jobs = {}
    assert batch.states(["77"]) == {"77": BlockState.CANCELLED}
    assert ["end", "77"] in shell.asked


def test_output_has_both_streams_and_what_the_system_says(batch: Batch, shell: FakeShell) -> None:
    block_id = batch.submit(spec())
    shell.files[path_of(shell, ".out")] = "to stdout\n"
    shell.files[path_of(shell, ".err")] = "to stderr\n"
    batch.jobs = {block_id: Job(BlockState.FAILED, "out of memory")}
    batch.states([block_id])

    assert batch.output(block_id) == "to stdout\nto stderr\n[out of memory]"


def test_output_that_cannot_be_read_says_so_and_keeps_the_rest(batch: Batch, shell: FakeShell) -> None:
    block_id = batch.submit(spec())
    batch.jobs = {block_id: Job(BlockState.FAILED, "out of memory")}
    batch.states([block_id])
    shell.is_down = True

    assert "cannot be read: a test cannot be reached" in batch.output(block_id)
    assert "[out of memory]" in batch.output(block_id)


def test_files_of_long_ended_blocks_go(batch: Batch, shell: FakeShell) -> None:
    for number in range(1, ENDED_KEPT + 3):
        shell.answers["submit"] = Ran(0, str(number), "")
        batch.submit(spec())
        batch.jobs[str(number)] = Job(BlockState.DONE)
        batch.states([str(number)])

    assert len(shell.files) == ENDED_KEPT + 1


def test_doctor_hears_of_each_command(batch: Batch, shell: FakeShell, caplog: pytest.LogCaptureFixture) -> None:
    shell.answers["submit"] = Ran(0, "batch 22.05\n", "")
    well = list(batch.examine())
    shell.answers["submit"] = Ran(127, "", "not found")
    wrong = list(batch.examine())

    assert [(finding.is_well, finding.said) for finding in well] == [(True, "batch 22.05")]
    assert not wrong[0].is_well
    assert "`submit --version` works on a test" in wrong[0].remedy
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
