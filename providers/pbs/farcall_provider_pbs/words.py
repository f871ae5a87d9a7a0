"""What PBS says of jobs, as JSON or as text, and what it means."""

from __future__ import annotations

import json
import logging
import re
import signal
from collections.abc import Mapping
from typing import Any

from farcall_endpoint.batch import Job
from farcall_endpoint.provider import BlockState
from farcall_endpoint.shell import Ran

log = logging.getLogger(__name__)

_STATES = {
    **dict.fromkeys("QHWTM", BlockState.PENDING),
    **dict.fromkeys("RESUB", BlockState.RUNNING),
}
#: States of jobs that have ended: of PBS Pro, of its arrays' elements, and of Torque.
_ENDED = frozenset("FXC")

_MEANINGS = {
    "H": "it is held",
    "W": "its time has not come yet",
    "S": "it is suspended",
    "U": "it is suspended, as somebody uses its node",
    "M": "it was moved to another server",
}

#: How PBS Pro begins to tell why a job waits.
_WAITS = "Not Running: "

#: Substate of a job that was ended by qdel.
_DELETED = 91

#: Exit statuses that PBS gives a job itself; those of a script are 0 to 255, and a signal's more than that.
_START_FAILED = {
    -1: "its start failed before its files were there",
    -2: "its start failed when its files were there",
    -3: "it could not be started",
    -4: "its node was lost, or PBS was started again there",
    -5: "its node was lost, or PBS was started again there",
    -6: "its node was lost, or PBS was started again there",
    -7: "it could not be started again",
}
_PBSPRO_STATUSES = {
    **_START_FAILED,
    -10: "its user is not known on its node",
    -11: "it was to be run again",
    -13: "its user's password is not right",
    -14: "its nodes lost each other",
    -16: "a hook of the site failed",
    -17: "a hook of the site failed",
    -18: "a hook of the site ended it",
    -19: "a hook of the site ended it",
    -20: "its first node was lost",
    -22: "a hook of the site failed",
    -24: "it used more cores than it had asked for",
    -25: "it used more cores than it had asked for",
    -26: "it used more virtual memory than it had asked for",
    -27: "it used more memory than it had asked for",
    -28: "it used more processor time than it had asked for",
    -29: "its walltime was over",
    -30: "its nodes did not find each other",
}
_TORQUE_STATUSES = {
    **_START_FAILED,
    -8: "its command could not be run",
    -9: "its output files could not be made",
    -10: "it used more memory than it had asked for",
    -11: "its walltime was over",
    -12: "it used more processor time than it had asked for",
}

#: Parts of what commands print when nobody answers them. Everything else is an answer.
_SILENCE = (
    "cannot connect to server",
    "could not connect to",
    "Cannot connect to",
    "Unable to communicate with",
    "Connection refused",
    "Connection reset",
    "Connection timed out",
    "Communication failure",
    "No route to host",
    "Network is unreachable",
    "Premature end of message",
    "End of File",
    "Server shutting down",
    "Unable to authenticate connection",
    "all reserved ports in use",
)

#: Parts of what is said of single jobs that are not there any more, or not to be ended any more.
_GONE = ("Unknown Job", "Job has finished", "job_history_enable", "Request invalid for state of job")


def is_silence(printed: str) -> bool:
    """Whether a command that failed found nobody who could have answered it."""
    return any(part in printed for part in _SILENCE)


def is_usage(ran: Ran) -> bool:
    """Whether a command did not understand how it was called."""
    return re.search(r"(invalid|unrecognized|illegal|unknown) option|^usage:", ran.stderr, re.I | re.M) is not None


def has_no_history(ran: Ran) -> bool:
    """Whether ``-x`` is of no use, as ended jobs are forgotten; the command may end well for all that."""
    return re.search(r"job_history_enable|maintain job history", ran.stderr + ran.stdout) is not None


def complaints(ran: Ran) -> list[str]:
    """What a command complains of beside jobs that are gone; where it says nothing at all, that."""
    lines = [line for line in ran.stderr.splitlines() if line.strip()] or [ran.said]
    return [line for line in lines if not any(part in line for part in _GONE)]


def read_json(text: str) -> dict[str, Mapping[str, Any]] | None:
    """Jobs by id with their attributes; None if that is no JSON. Nothing at all are no jobs."""
    if not text.strip():
        return {}
    try:
        document = json.loads(text, strict=False)
    except ValueError:
        return None
    jobs = document.get("Jobs", {}) if isinstance(document, Mapping) else None
    if not isinstance(jobs, Mapping):
        return None
    return {str(key): job for key, job in jobs.items() if isinstance(job, Mapping)}


def read_text(text: str) -> dict[str, Mapping[str, Any]]:
    """The same out of ``qstat -f``, where a line that begins with a tab goes on with the one before.

    >>> read_text("Job Id: 7.host\\n    job_state = R\\n    comment = Job run\\n\\t at noon\\n")
    {'7.host': {'job_state': 'R', 'comment': 'Job run at noon'}}
    """
    found: dict[str, Mapping[str, Any]] = {}
    attributes: dict[str, Any] = {}
    for line in text.replace("\n\t", "").splitlines():
        if match := re.match(r"Job Id:\s*(\S+)", line):
            found[match[1]] = attributes = {}
        elif match := re.match(r"\s+([\w.]+) = (.*)", line):
            attributes[match[1]] = match[2]
    return found


def read_queue(text: str) -> dict[str, str]:
    """What ``qstat -Q -f`` says of one queue."""
    return dict(re.findall(r"^\s+([\w.]+) = (.*)$", text, re.MULTILINE))


def job_of(attributes: Mapping[str, Any]) -> Job:
    """A job, as its attributes tell of it. In JSON, values may be numbers."""
    letter = str(attributes.get("job_state", ""))
    nodes = nodes_of(str(attributes.get("exec_host", "")))
    comment = str(attributes.get("comment", "")).strip()
    where = f"on {nodes}" if nodes else ""
    if letter in _ENDED:
        return _ended(attributes, comment, where)
    state = _STATES.get(letter)
    if state is None:
        log.warning("PBS says %r of a job, which is no state that is known here", letter)
        return Job(BlockState.UNKNOWN, f"PBS calls it {letter}")
    if state is BlockState.PENDING:
        reason = comment.removeprefix(_WAITS) if letter == "Q" or comment.startswith(_WAITS) else ""
        return Job(state, reason or _MEANINGS.get(letter, ""))
    return Job(state, ", ".join(filter(None, [_MEANINGS.get(letter, ""), where])))


def nodes_of(exec_host: str) -> str:
    """
    >>> nodes_of("n1/0*4+n2/0*4"), nodes_of("n1/0+n1/1")
    ('n1,n2', 'n1')
    """
    return ",".join(dict.fromkeys(part.partition("/")[0] for part in exec_host.split("+") if part))


def _ended(attributes: Mapping[str, Any], comment: str, where: str) -> Job:
    is_torque = "exit_status" in attributes
    status = _whole_number(attributes.get("Exit_status", attributes.get("exit_status")))
    by = re.search(r"terminated(?: by (\S+))?", comment)
    is_deleted = _whole_number(attributes.get("substate")) == _DELETED or by is not None
    said = how_it_ended(
        status, deleted_by=(by[1] if by and by[1] else "somebody") if is_deleted else "", is_torque=is_torque
    )
    return Job(BlockState.DONE if status == 0 else BlockState.FAILED, f"{said} {where}".strip())


def _whole_number(raw: Any) -> int | None:
    try:
        return int(raw)
    except (TypeError, ValueError):
        return None


def how_it_ended(status: int | None, *, deleted_by: str = "", is_torque: bool = False) -> str:
    """How a job ended, for people.

    >>> how_it_ended(3), how_it_ended(-29), how_it_ended(143, deleted_by="eve@host")
    ('exit status 3', 'its walltime was over (exit status -29)', 'cancelled by eve@host (exit status 143)')
    >>> how_it_ended(139), how_it_ended(271), how_it_ended(None, deleted_by="somebody")
    ('killed by SIGSEGV (exit status 139)', 'killed by SIGTERM (exit status 271)', 'cancelled by somebody')
    """
    status_said = "" if status is None else f" (exit status {status})"
    if deleted_by:
        return f"cancelled by {deleted_by}{status_said}"
    if status is None:
        return "ended, and PBS does not say how"
    known = (_TORQUE_STATUSES if is_torque else _PBSPRO_STATUSES).get(status)
    if known:
        return known + status_said
    # A shell reports 128 and the signal, and PBS itself, where no shell was between, 256 and the signal.
    number = status - 256 if status > 256 else status - 128
    if number in signal.valid_signals() and number > 0:
        return f"killed by {signal.Signals(number).name}{status_said}"
    return f"exit status {status}"
