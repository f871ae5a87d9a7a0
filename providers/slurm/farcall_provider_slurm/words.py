"""What Slurm's words mean: the states of jobs, why they wait, and whether a failed command was answered at all.

The states are those of https://slurm.schedmd.com/job_state_codes.html, the reasons those of
https://slurm.schedmd.com/job_reason_codes.html.
"""

from __future__ import annotations

import dataclasses
import logging
import re

from farcall_endpoint.batch import Job
from farcall_endpoint.provider import BlockState

log = logging.getLogger(__name__)

_STATES = {
    # Also those that somebody has put back into the queue.
    BlockState.PENDING: (
        "PENDING CONFIGURING POWER_UP_NODE REQUEUED REQUEUE_FED REQUEUE_HOLD SPECIAL_EXIT RESV_DEL_HOLD EXPEDITING"
    ),
    # How a job ends is not known before it has.
    BlockState.RUNNING: "RUNNING COMPLETING SUSPENDED STOPPED SIGNALING STAGE_OUT RESIZING UPDATE_DB",
    BlockState.DONE: "COMPLETED",
    BlockState.FAILED: (
        "FAILED CANCELLED TIMEOUT NODE_FAIL BOOT_FAIL DEADLINE OUT_OF_MEMORY PREEMPTED REVOKED LAUNCH_FAILED "
        "RECONFIG_FAIL"
    ),
}
_MEANINGS = {word: state for state, words in _STATES.items() for word in words.split()}

_NEVER = "it never starts like this"

_REASONS = {
    "Resources": "what it needs is not free yet",
    "Priority": "other jobs come first",
    "Dependency": "another job has to end first",
    "DependencyNeverSatisfied": f"{_NEVER}: the job that it depends on has failed",
    "BeginTime": "its time has not come yet",
    "JobHeldUser": "it is held until somebody releases it with scontrol release",
    "JobHeldAdmin": "an administrator holds it",
    "PartitionTimeLimit": f"{_NEVER}: its walltime is longer than the partition allows",
    "PartitionNodeLimit": f"{_NEVER}: the partition does not allow so many nodes",
    "PartitionConfig": f"{_NEVER}: it asks for more time or nodes than the partition allows",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition takes no jobs now",
    "AccountNotAllowed": f"{_NEVER}: the partition does not allow the account",
    "QOSNotAllowed": f"{_NEVER}: the account or the partition does not allow the quality of service",
    "BadConstraints": f"{_NEVER}: no node is as it asks for",
    "InvalidAccount": f"{_NEVER}: the account does not exist, or is not for this user",
    "InvalidQOS": f"{_NEVER}: there is no such quality of service for it",
    "Licenses": "a licence that it needs is in use",
    "Reservation": "its reservation has not begun",
    "ReservationDeleted": f"{_NEVER}: its reservation is gone",
    "ReqNodeNotAvail": "nodes that it needs are down, drained or reserved",
    "NodeDown": "a node that it needs is down",
    "QOSMaxWallDurationPerJobLimit": f"{_NEVER}: its walltime is longer than the quality of service allows",
    "AssocMaxWallDurationPerJobLimit": f"{_NEVER}: its walltime is longer than the account allows",
    "JobArrayTaskLimit": "as many of its array run as may",
}

#: Of reasons with many variants, such as AssocGrpCPUMinutesLimit; the first that fits.
_PATTERNS = (
    (r"ReqNodeNotAvail\b.*", _REASONS["ReqNodeNotAvail"]),
    (r"(Assoc|QOS)Grp\w+Minutes\w*", "the hours that were granted are used up, or would be"),
    (r"(Assoc|QOS)Grp\w+", "all jobs of its group together use as much as they may"),
    (r"(Assoc|QOS)Max\w*JobsP\w+|MaxJobsPer\w+", "as many jobs as may run at a time are running"),
    (r"(Assoc|QOS)Max\w+PerJob\w*|(Assoc|QOS)Max\w+PerNode\w*", f"{_NEVER}: it asks for more than one job may have"),
    (r"(Assoc|QOS)Max\w+", "it and the jobs beside it would use more than they may"),
    (r"(Assoc|QOS)Min\w+", f"{_NEVER}: it asks for less than a job has to"),
)

_ENDINGS = {
    "TIMEOUT": "its walltime was over",
    "NODE_FAIL": "a node of it was lost",
    "BOOT_FAIL": "its nodes did not start",
    "OUT_OF_MEMORY": "it used more memory than it had asked for",
    "PREEMPTED": "a job that comes first has taken its place",
    "DEADLINE": "its deadline was over",
    "REVOKED": "another cluster has started it",
}

#: Parts of what commands print when nobody answers them, or when they might be answered otherwise later.
_SILENCE = (
    "Socket timed out",
    "Unable to contact slurm controller",
    "Connection refused",
    "Communication connection failure",
    "Communication shutdown failure",
    "Zero Bytes were transmitted",
    "Transport endpoint is not connected",
    "Connection reset",
    "Connection timed out",
    "Network is unreachable",
    "No route to host",
    "Slurm temporarily unable",
    "Resource temporarily unavailable",
    "Unable to establish controller machine",
    "Could not establish a configuration source",
    "Slurm backup controller in standby mode",
    "Protocol authentication error",
    "Slurm is in the process of",
    # As many jobs as may wait are waiting: of this user, or of all.
    "MaxSubmitJob",
    "GrpSubmitJob",
)

_unknown_words: set[str] = set()


@dataclasses.dataclass(frozen=True)
class Seen:
    """A job, as a line of ``squeue``, ``sacct`` or ``scontrol`` has it."""

    #: May go on, as in ``CANCELLED by 1001``.
    state: str
    nodes: str = ""
    reason: str = ""
    #: As Slurm writes it: ``3:0``, or ``0:9`` for a signal. Empty where nobody tells it.
    exit_code: str = ""

    @property
    def word(self) -> str:
        return re.split(r"[ +]", self.state, maxsplit=1)[0]

    @property
    def meaning(self) -> BlockState:
        return _MEANINGS.get(self.word, BlockState.UNKNOWN)


def is_silence(printed: str) -> bool:
    """Whether a command failed for the reason that nobody could answer it."""
    return any(part in printed for part in _SILENCE)


def job_of(seen: Seen) -> Job:
    """What there is to know and to say of a job."""
    state = seen.meaning
    where = f"on {seen.nodes}" if seen.nodes not in ("", "None assigned", "(null)") else ""
    if state is BlockState.UNKNOWN:
        if seen.word not in _unknown_words:
            _unknown_words.add(seen.word)
            log.warning("Slurm calls the state of a job %r, which means nothing here", seen.state)
        return Job(state, f"Slurm calls its state {seen.state}")
    if state is BlockState.PENDING:
        waits = why_it_waits(seen.reason)
        return Job(state, waits if seen.word == "PENDING" else ", ".join(filter(None, (seen.word, waits, where))))
    if state is BlockState.RUNNING:
        return Job(state, where if seen.word == "RUNNING" else f"{seen.word} {where}".strip())
    return Job(state, f"{how_it_ended(seen)} {where}".strip())


def why_it_waits(reason: str) -> str:
    """Slurm's word, and what it means where that is not plain.

    >>> why_it_waits("PartitionTimeLimit")
    'PartitionTimeLimit (it never starts like this: its walltime is longer than the partition allows)'
    >>> why_it_waits("AssocGrpCPUMinutesLimit")
    'AssocGrpCPUMinutesLimit (the hours that were granted are used up, or would be)'
    >>> why_it_waits("None")
    ''
    """
    if reason in ("", "None"):
        return ""
    meaning = _REASONS.get(reason) or next((said for form, said in _PATTERNS if re.fullmatch(form, reason)), "")
    return f"{reason} ({meaning})" if meaning else reason


def how_it_ended(seen: Seen) -> str:
    """How a job ended, for people.

    >>> how_it_ended(Seen("FAILED", reason="NonZeroExitCode", exit_code="3:0"))
    'FAILED, exit code 3'
    >>> how_it_ended(Seen("TIMEOUT", reason="TimeLimit", exit_code="0:15"))
    'TIMEOUT (its walltime was over)'
    >>> how_it_ended(Seen("CANCELLED by 1001"))
    'CANCELLED (by user 1001, not by the endpoint)'
    """
    if seen.word == "CANCELLED":
        by = re.search(r"by (\d+)", seen.state)
        return f"CANCELLED (by {f'user {by[1]}' if by else 'somebody'}, not by the endpoint)"
    said = f"{seen.word} ({_ENDINGS[seen.word]})" if seen.word in _ENDINGS else seen.word
    code, _, signal = seen.exit_code.partition(":")
    if seen.word in ("FAILED", "OUT_OF_MEMORY") and signal not in ("", "0"):
        said += f", killed by signal {signal}"
    elif seen.word == "FAILED" and code not in ("", "0"):
        said += f", exit code {code}"
    elif seen.word == "FAILED" and seen.reason not in ("", "None", "NonZeroExitCode"):
        said += f", {why_it_waits(seen.reason)}"
    return said
