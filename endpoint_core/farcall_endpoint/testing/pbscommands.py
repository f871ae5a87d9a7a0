"""``qsub``, ``qstat``, ``qselect`` and ``qdel`` over :mod:`jobs`, with the texts and exit codes of OpenPBS 23.06.

``python -m farcall_endpoint.testing.pbscommands FOLDER COMMAND ARGUMENTS``. With the dialect ``torque`` they are as
Torque's, with ``old`` as a PBS Pro that knows no JSON, and with ``slurm`` as the wrappers that Slurm brings for those
who are used to Torque.
"""

from __future__ import annotations

import getopt
import getpass
import re
import shlex
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from .jobs import ENDED, Job, Jobs
from .pbstext import SERVER, as_json, as_table, as_text

#: A node that no machine has; a job that asks for more waits for ever.
MOST_CORES = 512

_QUEUES = ("workq", "short")
_SHORT_S = 120
_RESOURCES = {
    "select",
    "place",
    "nodes",
    "walltime",
    "ncpus",
    "mem",
    "pmem",
    "vmem",
    "pvmem",
    "cput",
    "ngpus",
    "mpiprocs",
}
_QSUB_OPTIONS = "a:A:c:C:d:e:fhIj:J:k:l:m:M:N:o:p:P:q:r:R:S:u:v:VW:Xz"
_VERSIONS = {
    "": ("pbs_version = 23.06.06", 0),
    "old": ("pbs_version = 13.1.2.0", 0),
    "torque": ("Version: 6.1.2\nCommit: 661e092552de43a785c15d39a3634a541d86898e", 0),
    "slurm": (
        "Unknown option: version\nUsage:\n    qstat [-f] [-a|-i|-r] [-n [-1]] [-G|-M] [-u user_list] [job_id...]",
        2,
    ),
}


class Refused(Exception):
    """A command fails with this text on stderr, and this exit code."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.text = text
        self.code = code


def main(folder: Path, command: str, arguments: Sequence[str]) -> int:
    """Run one command. Returns its exit code."""
    jobs = Jobs(folder)
    jobs.note_call(command, arguments)
    jobs.wait_while_stalled(command)
    orders = jobs.orders()
    try:
        if list(arguments) == ["--version"]:
            return _version(orders.dialect)
        if command in orders.refusals:
            raise Refused(*orders.refusals[command])
        if command in orders.unreachable:
            code = 162 if command == "qsub" else 255
            raise Refused(f"Connection refused\n{command}: cannot connect to server {SERVER} (errno=111)", code)
        code = _COMMANDS[command](jobs, arguments)
        if command in orders.broken_off:
            raise Refused(f"{command}: Premature end of message", 183)
    except Refused as refused:
        print(refused.text, file=sys.stderr)
        return refused.code
    return code


def _version(dialect: str) -> int:
    said, code = _VERSIONS[dialect]
    print(said, file=sys.stderr if code else sys.stdout)
    return code


# -- qsub -------------------------------------------------------------------------------------------------------------


def _qsub(jobs: Jobs, arguments: Sequence[str]) -> int:
    options, operands = _options("qsub", _QSUB_OPTIONS, arguments)
    try:
        script = Path(operands[0]).read_text() if operands else sys.stdin.read()
    except OSError:
        raise Refused("qsub: script file:: No such file or directory", 1) from None
    directives, _ = _options("qsub", _QSUB_OPTIONS, list(_directives(script)))
    job = _job({**directives, **options}, Path(operands[0]).name if operands else "STDIN", jobs)
    jobs.submit(job, script, lambda accepted: accepted.environment.update(_places(jobs, accepted)))
    jobs.schedule()
    if "qsub" not in jobs.orders().broken_off:
        print(_id(job))
    return 0


def _directives(script: str) -> Iterable[str]:
    """What the ``#PBS`` lines say; they end at the first line that is a command."""
    for line in script.splitlines():
        if line.startswith("#PBS"):
            yield from shlex.split(line.removeprefix("#PBS"), comments=True)
        elif line.strip() and not line.startswith("#"):
            return


def _job(options: dict[str, str], script_name: str, jobs: Jobs) -> Job:
    resources = _resources(options.get("-l", ""))
    queue = options.get("-q", _QUEUES[0])
    if queue not in _QUEUES:
        raise Refused("qsub: Unknown queue", 170)
    walltime_s = _seconds(resources["walltime"]) if "walltime" in resources else None
    if queue == "short" and (walltime_s or 0) > _SHORT_S:
        raise Refused("qsub: Job violates queue and/or server resource limits", 188)
    most = 230 if not jobs.orders().dialect else 15
    name = options.get("-N", script_name[:most])
    if not re.fullmatch(r"[A-Za-z][\w.+-]*", name) or len(name) > most:
        raise Refused("qsub: illegal -N value\nusage: qsub [-a date_time] [-A account_string] [-c interval] ...", 2)
    asks = resources.get("select") or resources.get("nodes") or "1"
    cores = [int(found) for found in re.findall(r"(?:ncpus|ppn)=(\d+)", asks)]
    stdout, stderr = options.get("-o", "/dev/null"), options.get("-e", "/dev/null")
    return Job(
        name=name,
        stdout=stdout,
        stderr=stdout if options.get("-j") == "oe" else stderr,
        details={
            "queue": queue,
            "account": options.get("-A", ""),
            "user": getpass.getuser(),
            "rerunable": options.get("-r", "y") == "y",
            "resources": resources,
        },
        environment={**_variables(options.get("-v", "")), "PBS_JOBNAME": name, "PBS_QUEUE": queue},
        walltime_s=walltime_s,
        impossible="Not enough free nodes available" if max(cores, default=1) > MOST_CORES else "",
    )


def _resources(text: str) -> dict[str, str]:
    """What ``-l`` asks for: ``walltime=1:0:0,select=2:ncpus=4``."""
    found: dict[str, str] = {}
    for part in text.split(",") if text else ():
        name, _, value = part.partition("=")
        if name not in _RESOURCES:
            raise Refused(f"qsub: Unknown resource Resource_List.{name}", 187)
        found[name] = value
    clashing = [name for name in found if name in ("ncpus", "mem", "ngpus", "mpiprocs", "nodes")]
    if "select" in found and clashing:
        said = f'"-lresource=" cannot be used with "select" or "place", resource is: {clashing[0]}'
        raise Refused(f"qsub: {said}", 5)
    return found


def _seconds(text: str) -> float:
    if not re.fullmatch(r"(\d+:){0,2}\d+", text):
        raise Refused("qsub: Illegal attribute or resource value Resource_List.walltime", 166)
    seconds = 0
    for part in text.split(":"):
        seconds = 60 * seconds + int(part)
    return seconds


def _variables(text: str) -> dict[str, str]:
    pairs = (part.partition("=") for part in text.split(",") if part)
    return {name: value for name, _, value in pairs}


def _places(jobs: Jobs, job: Job) -> dict[str, str]:
    """What a job finds of itself in its environment, with the file of its nodes: all of them are this machine."""
    resources = job.details["resources"]
    asks = resources.get("select") or resources.get("nodes") or "1"
    count = int(found[0]) if (found := re.match(r"\d+", asks)) else 1
    ranks = int(found[1]) if (found := re.search(r"(?:mpiprocs|ppn)=(\d+)", asks)) else 1
    nodes = jobs.folder / f"{job.number}.nodes"
    nodes.write_text(f"{socket.gethostname()}\n" * count * ranks)
    return {"PBS_ENVIRONMENT": "PBS_BATCH", "PBS_JOBID": _id(job), "PBS_NODEFILE": str(nodes)}


# -- the others -------------------------------------------------------------------------------------------------------


def _qstat(jobs: Jobs, arguments: Sequence[str]) -> int:
    dialect = jobs.orders().dialect
    knows_json = dialect == ""
    options, operands = _options("qstat", f"BQfaxu:{'F:' if knows_json else ''}", arguments)
    if dialect == "torque" and "-x" in options:
        print("<Data></Data>")
        return 0
    if "-B" in options or "-Q" in options:
        return _server(options, operands)
    orders = jobs.orders()
    code = 0
    found = []
    for job_id in operands or [_id(job) for job in _known(jobs)]:
        job = _find(jobs, job_id)
        # Torque's list jobs that have ended for a while.
        shows_ended = "-x" in options or dialect == "torque"
        if "-x" in options and not orders.history:
            print(f"qstat: job_history_enable is set to false {_whole(job_id)}", file=sys.stderr)
        elif job is None or (job.state == ENDED and not orders.history):
            print(f"qstat: Unknown Job Id {_whole(job_id)}", file=sys.stderr)
            code = 153
        elif job.state == ENDED and not shows_ended:
            if operands:
                use = "Job has finished, use -x or -H to obtain historical job information"
                print(f"qstat: {_id(job)} {use}", file=sys.stderr)
                code = 35
        else:
            found.append(job)
    if found or not operands:
        show = as_json if options.get("-F") == "json" else as_text if "-f" in options else as_table
        sys.stdout.write(show(found, dialect))
    return code


def _server(options: dict[str, str], operands: list[str]) -> int:
    """Of the server, or of one of its queues."""
    if "-B" in options:
        print("Server             Max   Tot   Que   Run   Hld   Wat   Trn   Ext Status")
        print("---------------- ----- ----- ----- ----- ----- ----- ----- ----- -----------")
        print(f"{SERVER:17}    0     0     0     0     0     0     0     0 Active")
    for queue in operands:
        if queue not in _QUEUES:
            raise Refused(f"qstat: Unknown queue {queue}", 170)
        print(f"Queue: {queue}\n    queue_type = Execution\n    enabled = True\n    started = True\n")
    return 0


def _qselect(jobs: Jobs, arguments: Sequence[str]) -> int:
    options, _ = _options("qselect", "u:N:s:xH", arguments)
    for job in _known(jobs):
        wanted = {"user": options.get("-u", job.details["user"]), "name": options.get("-N", job.name)}
        if job.state != ENDED and wanted == {"user": job.details["user"], "name": job.name}:
            print(_id(job))
    return 0


def _qdel(jobs: Jobs, arguments: Sequence[str]) -> int:
    options, operands = _options("qdel", "xW:m:p", arguments)
    torque = jobs.orders().dialect == "torque"
    code = 0
    for job_id in operands:
        job = _find(jobs, job_id)
        if job is None:
            print(f"qdel: Unknown Job Id {_whole(job_id)}", file=sys.stderr)
            code = 153
        elif job.state == ENDED and "-x" in options:
            jobs.forget(job.number)
        elif job.state == ENDED or not jobs.end(job.number, "deleted"):
            invalid = "Request invalid for state of job MSG=invalid state for job - COMPLETE"
            print(f"qdel: {invalid if torque else 'Job has finished'} {_id(job)}", file=sys.stderr)
            code = 170 if torque else 35
    jobs.schedule()
    return code


def _known(jobs: Jobs) -> list[Job]:
    return [job for job in jobs.all() if not job.is_forgotten]


def _find(jobs: Jobs, job_id: str) -> Job | None:
    number, _, server = job_id.partition(".")
    job = jobs.get(int(number)) if number.isdecimal() and server in ("", SERVER) else None
    return None if job is None or job.is_forgotten else job


def _id(job: Job) -> str:
    return f"{job.number}.{SERVER}"


def _whole(job_id: str) -> str:
    return job_id if "." in job_id else f"{job_id}.{SERVER}"


def _options(command: str, known: str, arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The options and what is left. ``-l`` may come several times, and adds up."""
    try:
        pairs, operands = getopt.getopt(list(arguments), known)
    except getopt.GetoptError as error:
        raise Refused(f"{command}: invalid option -- '{error.opt}'\nusage: {command} [options]", 2) from None
    options: dict[str, str] = {}
    for name, value in pairs:
        options[name] = f"{options[name]},{value}" if name in ("-l", "-v") and name in options else value
    return options, operands


_COMMANDS: dict[str, Callable[[Jobs, Sequence[str]], int]] = {
    "qsub": _qsub,
    "qstat": _qstat,
    "qselect": _qselect,
    "qdel": _qdel,
}

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
