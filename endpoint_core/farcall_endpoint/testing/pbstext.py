"""What ``qstat`` prints of jobs: JSON, text and a table, as OpenPBS 23.06 and Torque do."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from .jobs import ENDED, QUEUED, RUNNING, Job

SERVER = "pbshost"

#: How wide a line of text may be.
_WIDTH = 79

_LETTERS = {QUEUED: "Q", RUNNING: "R"}
_ENDINGS = {"walltime": "exceeded resource walltime", "node": "failed"}


def as_json(jobs: Sequence[Job], dialect: str) -> str:
    document = {
        "timestamp": int(time.time()),
        "pbs_version": "23.06.06",
        "pbs_server": SERVER,
        "Jobs": {f"{job.number}.{SERVER}": _attributes(job, dialect) for job in jobs},
    }
    return json.dumps(document, indent="\t", separators=(",", ":\t")) + "\n"


def as_text(jobs: Sequence[Job], dialect: str) -> str:
    lines = []
    for job in jobs:
        lines.append(f"Job Id: {job.number}.{SERVER}")
        for name, value in _attributes(job, dialect).items():
            if name == "Variable_List":
                lines += _folded(f"    {name} = " + ",".join(f"{key}={one}" for key, one in value.items()))
            elif isinstance(value, dict):
                lines += [line for key, one in value.items() for line in _folded(f"    {name}.{key} = {one}")]
            else:
                lines += _folded(f"    {name} = {value}")
        lines.append("")
    return "\n".join(lines) + "\n"


def as_table(jobs: Sequence[Job], dialect: str) -> str:
    if not jobs:
        return ""
    lines = [
        "Job id            Name             User              Time Use S Queue",
        "----------------  ---------------- ----------------  -------- - -----",
    ]
    for job in jobs:
        attributes = _attributes(job, dialect)
        job_id = f"{job.number}.{SERVER}"
        queue, user = job.details["queue"], job.details["user"]
        lines.append(f"{job_id:17} {job.name[:16]:16} {user:16} {0:9} {attributes['job_state']} {queue:16}")
    return "\n".join(lines) + "\n"


def _attributes(job: Job, dialect: str) -> dict[str, Any]:
    is_torque = dialect == "torque"
    found: dict[str, Any] = {
        "Job_Name": job.name,
        "Job_Owner": f"{job.details['user']}@{SERVER}",
        "job_state": _LETTERS.get(job.state, "C" if is_torque else "F"),
        "queue": job.details["queue"],
        "server": SERVER,
        "ctime": time.ctime(job.submitted),
        "Error_Path": f"{SERVER}:{job.stderr}",
        "Output_Path": f"{SERVER}:{job.stdout}",
        "Rerunable": str(job.details["rerunable"]),
        "Resource_List": job.details["resources"],
        "Variable_List": {key: int(one) if one.isdecimal() else one for key, one in job.environment.items()},
    }
    if job.details["account"]:
        found["Account_Name"] = job.details["account"]
    if job.started is not None:
        found["exec_host"] = f"{SERVER}/0"
    comment = _comment(job)
    if comment:
        found["comment"] = comment
    if job.state == ENDED:
        code = _exit_status(job)
        if not is_torque:
            found["substate"] = 91 if job.ended_by == "deleted" else 92 if code == 0 else 93
        if code is not None:
            found["exit_status" if is_torque else "Exit_status"] = code
    return found


def _comment(job: Job) -> str:
    if job.state == QUEUED:
        return f"Not Running: {job.reason}" if job.reason else ""
    if job.started is None:
        return ""
    began = time.strftime("Job run at %a %b %d at %H:%M", time.localtime(job.started)) + f" on ({SERVER}:ncpus=1)"
    if job.state == RUNNING:
        return began
    ending = "finished" if job.exit_code == 0 else "failed"
    deleted = f"terminated by {job.details['user']}@{SERVER}"
    return f"{began} and {deleted if job.ended_by == 'deleted' else _ENDINGS.get(job.ended_by, ending)}"


def _exit_status(job: Job) -> int | None:
    return {"walltime": -29, "node": -4}.get(job.ended_by, job.exit_code)


def _folded(line: str) -> list[str]:
    """A long line goes on after a tab, as words and lists allow."""
    lines = []
    while len(line) > _WIDTH:
        at = max(line.rfind(mark, 20, _WIDTH) for mark in ", ") + 1 or _WIDTH
        lines.append(line[:at])
        line = "\t" + line[at:]
    return [*lines, line]
