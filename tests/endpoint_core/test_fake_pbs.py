"""The PBS that is not there: its commands say what a real one says, and its jobs really run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from farcall_endpoint.testing import FakePbs


@pytest.fixture
def pbs(tmp_path: Path) -> Iterator[FakePbs]:
    with FakePbs(tmp_path) as pbs:
        yield pbs


def run(pbs: FakePbs, *command: str | Path, script: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": pbs.path}
    return subprocess.run(command, env=environment, input=script, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("command", "exit_code", "said"),
    [
        (["qsub", "-q", "nosuch"], 170, "qsub: Unknown queue\n"),
        (["qsub", "-l", "nosuchres=3"], 187, "qsub: Unknown resource Resource_List.nosuchres\n"),
        (
            ["qsub", "-q", "short", "-l", "walltime=00:10:00"],
            188,
            "qsub: Job violates queue and/or server resource limits\n",
        ),
        (
            ["qsub", "-l", "walltime=abc"],
            166,
            "qsub: Illegal attribute or resource value Resource_List.walltime\n",
        ),
        (
            ["qsub", "-l", "ncpus=1", "-l", "select=1"],
            5,
            'qsub: "-lresource=" cannot be used with "select" or "place", resource is: ncpus\n',
        ),
        (["qsub", "nosuchfile.sh"], 1, "qsub: script file:: No such file or directory\n"),
        (["qstat", "99999"], 153, "qstat: Unknown Job Id 99999.pbshost\n"),
        (["qdel", "99999.pbshost"], 153, "qdel: Unknown Job Id 99999.pbshost\n"),
    ],
)
def test_refusals_are_those_of_a_real_one(pbs: FakePbs, command: list[str], exit_code: int, said: str) -> None:
    done = run(pbs, *command)

    assert (done.returncode, done.stdout, done.stderr) == (exit_code, "", said)
    assert pbs.jobs == []


def test_a_job_that_has_ended_is_history(pbs: FakePbs) -> None:
    assert run(pbs, "qsub", script="exit 3").stdout == "0.pbshost\n"
    pbs.wait_until_ended(pbs.jobs[0])

    plain, history, deleted = (
        run(pbs, *command) for command in (["qstat", "0"], ["qstat", "-x", "-f", "-F", "json", "0"], ["qdel", "0"])
    )

    use = "Job has finished, use -x or -H to obtain historical job information"
    assert (plain.returncode, plain.stderr) == (35, f"qstat: 0.pbshost {use}\n")
    assert (deleted.returncode, deleted.stderr) == (35, "qdel: Job has finished 0.pbshost\n")
    assert '\t\t\t"Exit_status":\t3' in history.stdout
    assert json.loads(history.stdout)["Jobs"]["0.pbshost"]["job_state"] == "F"


def test_what_is_known_of_several_jobs_is_told_though_one_of_them_is_unknown(pbs: FakePbs) -> None:
    for _ in range(2):
        run(pbs, "qsub", script="exit 0")

    done = run(pbs, "qstat", "-x", "-f", "-F", "json", "0", "77", "1")

    assert done.returncode == 153
    assert done.stderr == "qstat: Unknown Job Id 77.pbshost\n"
    assert list(json.loads(done.stdout)["Jobs"]) == ["0.pbshost", "1.pbshost"]


def test_a_job_has_an_environment_of_its_own(pbs: FakePbs, tmp_path: Path) -> None:
    script = f"env > {tmp_path}/env"

    run(pbs, "qsub", "-N", "named", "-v", "A=1", script=script)
    pbs.wait_until_ended(pbs.jobs[0])

    printed = (tmp_path / "env").read_text().splitlines()
    assert {"A=1", "PBS_JOBNAME=named", "PBS_JOBID=0.pbshost", "PATH=/usr/local/bin:/usr/bin:/bin"} <= set(printed)
    assert not [line for line in printed if line.startswith("PYTEST")]


def test_lines_of_the_script_go_behind_what_the_command_says_and_end_with_the_first_command(pbs: FakePbs) -> None:
    script = "#!/bin/bash\n#PBS -N script\n#PBS -l walltime=1:00\n\n# more\nexit 0\n#PBS -q nosuch\n"

    run(pbs, "qsub", "-N", "command", script=script)

    assert pbs.jobs[0].name == "command"
    assert pbs.jobs[0].walltime_s == 60


def test_as_many_run_as_there_are_slots_and_the_next_follows(pbs: FakePbs, tmp_path: Path) -> None:
    pbs.limit(1)
    run(pbs, "qsub", script=f"exec 3< {_fifo(tmp_path)}")
    run(pbs, "qsub", script="exit 0")
    first, second = pbs.jobs
    assert [job.state for job in pbs.jobs] == ["running", "queued"]
    assert "comment = Not Running: Not enough free nodes available" in run(pbs, "qstat", "-f", "1").stdout

    with (tmp_path / "fifo").open("w"):
        pbs.wait_until_ended(first)

    assert pbs.wait_until_ended(second).exit_code == 0


def _fifo(folder: Path) -> Path:
    os.mkfifo(folder / "fifo")
    return folder / "fifo"


def test_a_job_that_asks_for_more_than_there_is_waits_for_ever(pbs: FakePbs) -> None:
    assert run(pbs, "qsub", "-l", "select=1:ncpus=999", script="exit 0").returncode == 0

    assert pbs.jobs[0].state == "queued"


def test_a_stalled_command_goes_on_afterwards(pbs: FakePbs) -> None:
    with pbs.stalled("qstat"):
        waiting = subprocess.Popen(
            ["qstat", "-B"], env={**os.environ, "PATH": pbs.path}, stdout=subprocess.PIPE, text=True
        )
        while not pbs.calls("qstat"):
            assert waiting.poll() is None
        assert waiting.poll() is None

    assert "Active" in waiting.communicate(timeout=60)[0]
    assert pbs.calls("qstat") == [["-B"]]


def test_a_command_that_is_refused_does_nothing_until_it_is_accepted(pbs: FakePbs) -> None:
    pbs.refuse("qsub", "qsub: Maximum number of jobs already in queue", 190)
    assert run(pbs, "qsub", script="exit 0").returncode == 190
    assert pbs.jobs == []

    pbs.accept("qsub")

    assert run(pbs, "qsub", script="exit 0").returncode == 0


def test_a_deleted_job_ends_with_all_that_it_started_also_in_the_background(pbs: FakePbs, tmp_path: Path) -> None:
    run(pbs, "qsub", script=f"set -m; sleep 600 & echo $! > {tmp_path}/pid; echo > {_fifo(tmp_path)}; wait")
    (tmp_path / "fifo").read_text()
    background = psutil.Process(int((tmp_path / "pid").read_text()))

    run(pbs, "qdel", "0")

    assert pbs.wait_until_ended(pbs.jobs[0]).ended_by == "deleted"
    assert not background.is_running() or background.status() == psutil.STATUS_ZOMBIE


def test_closing_ends_what_waits_and_what_runs(tmp_path: Path) -> None:
    with FakePbs(tmp_path) as pbs:
        run(pbs, "qsub", script="sleep 600")
        pbs.hold("Not enough free nodes available")
        run(pbs, "qsub", script="sleep 600")

    assert [job.state for job in pbs.jobs] == ["ended", "ended"]
    assert pbs.jobs[1].keeper is None


def test_another_batch_system_can_be_built_on_its_jobs(pbs: FakePbs, tmp_path: Path) -> None:
    (tmp_path / "mini_lsf.py").write_text(
        textwrap.dedent(
            """
            import sys
            from pathlib import Path
            from farcall_endpoint.testing.jobs import Job, Jobs

            jobs = Jobs(Path(sys.argv[1]))
            job = jobs.submit(Job(name="mini", stdout="", stderr=""), sys.stdin.read())
            jobs.schedule()
            print(f"Job <{job.number}> is submitted to default queue.")
            """
        )
    )
    pbs.add_command("bsub", "mini_lsf")
    environment = {**os.environ, "PATH": pbs.path, "PYTHONPATH": str(tmp_path)}

    done = subprocess.run(["bsub"], env=environment, input="exit 4", capture_output=True, text=True, check=False)

    assert done.stdout == "Job <0> is submitted to default queue.\n", done.stderr
    assert pbs.wait_until_ended(pbs.jobs[0]).exit_code == 4


def test_its_commands_need_no_pytest() -> None:
    program = "import sys, farcall_endpoint.testing.pbscommands as _; assert 'pytest' not in sys.modules"

    subprocess.run([sys.executable, "-c", program], check=True)
