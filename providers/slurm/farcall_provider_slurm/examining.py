"""What can be wrong with a Slurm, or with what an endpoint wants of it: for ``doctor``."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from farcall_endpoint.provider import Finding, SystemUnavailable
from farcall_endpoint.shell import Ran

from .config import SlurmConfig

#: Runs a command, with a script on its stdin for ``sbatch``.
Run = Callable[..., Ran]


def examined(config: SlurmConfig, place: str, run: Run, script: str) -> Iterator[Finding]:
    """Whether the controller answers, whether partition and account exist, and whether it would take ``script``."""
    cluster = [f"--clusters={config.clusters}"] if config.clusters else []
    try:
        partitions = run(["sinfo", "-h", *cluster, "-o", "%R|%a|%l|%D"])
        if partitions.exit_code:
            yield Finding(
                f"Slurm's controller, asked from {place}",
                False,
                partitions.said,
                "the controller may be down for a while; if not, ask the administrators why sinfo does not work here",
            )
            return
        yield _partition(config, partitions.stdout)
        if config.account is not None:
            yield _account(config.account, run)
        yield _accepted(run(["sbatch", "--test-only", *cluster], stdin=script.encode()))
    except SystemUnavailable as error:
        yield Finding("Slurm", False, str(error), "try again; if it stays so, make cmd_timeout longer")


def _partition(config: SlurmConfig, printed: str) -> Finding:
    """``printed`` has a line for each partition and limit: name, state, time limit and nodes."""
    rows = [line.split("|") for line in printed.splitlines() if line.count("|") == 3]
    there = {name: rest for name, *rest in rows}
    names = ", ".join(sorted(there)) or "none"
    if config.partition is None:
        return Finding("partition", bool(there), f"Slurm's default one; there are: {names}", "ask the administrators")
    wanted = config.partition.split(",")
    missing = [name for name in wanted if name not in there]
    if missing:
        said = f"there is no partition {', '.join(missing)} that you may see; there are: {names}"
        return Finding("partition", False, said, "correct partition under engine.provider in config.yaml")
    said = "; ".join("{} is {}, time limit {}, nodes: {}".format(name, *there[name]) for name in wanted)
    is_up = any(there[name][0] == "up" for name in wanted)
    return Finding("partition", is_up, said, "choose another partition, or ask the administrators when it is up again")


def _account(account: str, run: Run) -> Finding:
    ran = run(["sacctmgr", "-n", "-P", "show", "assoc", "where", f"user={_user(run)}", "format=cluster,account,qos"])
    if ran.exit_code:
        # That there is no accounting is nothing bad; Slurm then takes any account.
        return Finding("account", True, f"{account}; Slurm does not say which there are: {ran.said}")
    rows = [line.split("|") for line in ran.stdout.splitlines() if line.count("|") == 2]
    yours = {name for _, name, _ in rows}
    if account in yours:
        qualities = sorted({quality for _, name, listed in rows if name == account for quality in listed.split(",")})
        said = f"{account}, with the qualities of service: {', '.join(filter(None, qualities)) or 'none'}"
        return Finding("account", True, said)
    said = f"{account} is none of yours; yours are: {', '.join(sorted(yours)) or 'none'}"
    return Finding("account", False, said, "correct account under engine.provider in config.yaml")


def _user(run: Run) -> str:
    return run(["id", "-un"]).stdout.strip()


def _accepted(ran: Ran) -> Finding:
    said = next((line for line in ran.stderr.splitlines() if "to start at" in line), ran.said)
    return Finding(
        "a job like a block, with one node",
        ran.exit_code == 0,
        said.removeprefix("sbatch: "),
        "correct what Slurm names, under engine.provider in config.yaml",
    )
