"""What PBS says, and what is understood."""

from __future__ import annotations

import doctest

import pytest

from farcall_endpoint.provider import BlockState
from farcall_endpoint.shell import Ran
from farcall_provider_pbs import client, config, words


@pytest.mark.parametrize("module", [client, config, words], ids=lambda module: module.__name__)
def test_examples_hold(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("attributes", "state", "said"),
    [
        ({"job_state": "F", "substate": 91}, BlockState.FAILED, "cancelled by somebody"),
        ({"job_state": "F", "Exit_status": -4}, BlockState.FAILED, "its node was lost, or PBS was started again there"),
        ({"job_state": "F", "Exit_status": "0"}, BlockState.DONE, "exit status 0"),
        ({"job_state": "C", "exit_status": "271"}, BlockState.FAILED, "killed by SIGTERM (exit status 271)"),
        ({"job_state": "C", "exit_status": -11}, BlockState.FAILED, "its walltime was over (exit status -11)"),
        ({"job_state": "C", "exit_status": -10}, BlockState.FAILED, "it used more memory than it had asked for"),
        ({"job_state": "F"}, BlockState.FAILED, "ended, and PBS does not say how"),
        ({"job_state": "H"}, BlockState.PENDING, "it is held"),
        ({"job_state": "W"}, BlockState.PENDING, "its time has not come yet"),
        ({"job_state": "S", "exec_host": "n1/0"}, BlockState.RUNNING, "it is suspended, on n1"),
        ({"job_state": "E", "exec_host": "n1/0*2+n2/0"}, BlockState.RUNNING, "on n1,n2"),
        ({"job_state": "?"}, BlockState.UNKNOWN, "PBS calls it ?"),
    ],
)
def test_the_attributes_of_a_job_are_understood(attributes: dict[str, object], state: BlockState, said: str) -> None:
    job = words.job_of(attributes)

    assert job.state is state
    assert job.said.startswith(said)


def test_a_comment_that_was_folded_is_whole_again() -> None:
    text = (
        "Job Id: 13.pbshost\n    job_state = F\n    Exit_status = -29\n"
        "    comment = Job run at Fri Nov 20 at 12:51 on (pbshost:ncpus=1) and exceeded \n\tresource walltime\n"
    )

    assert words.read_text(text)["13.pbshost"]["comment"].endswith("and exceeded resource walltime")


@pytest.mark.parametrize(
    "said",
    [
        "Connection refused\nqstat: cannot connect to server pbshost (errno=111)",
        "qsub: cannot connect to server (null) (errno=15137) could not connect to trqauthd",
        "qsub: Premature end of message",
        "pbs_iff: all reserved ports in use",
    ],
)
def test_a_server_that_does_not_answer_has_refused_nothing(said: str) -> None:
    assert words.is_silence(said)


def test_of_jobs_that_are_gone_nobody_needs_to_be_told() -> None:
    gone = "qdel: Unknown Job Id 9.h\nqdel: Job has finished 8.h\nqdel: Unauthorized Request  7.h\n"

    assert words.complaints(Ran(159, "", gone)) == ["qdel: Unauthorized Request  7.h"]
    assert words.complaints(Ran(1, "", "")) == ["[exit code 1]"]
