"""Which PBS it is, and where its commands are."""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Callable, Sequence

from farcall_endpoint.provider import ProviderError
from farcall_endpoint.shell import NOT_FOUND, Ran

#: Where the commands are: in PATH, or where their packages put them. A shell that is reached through SSH often lacks
#: what a login shell has in its PATH.
DIRECTORIES = ("", "/opt/pbs/bin/", "/opt/pbs/default/bin/", "/usr/local/pbs/bin/", "/opt/torque/bin/")

#: What a shell says of a command that is there and cannot be run.
_NOT_EXECUTABLE = 126

#: The first PBS Pro in which the name of a job may have more than 15 characters, with a margin.
_LONG_NAMES_SINCE = 14


class Dialect(enum.Enum):
    """How nodes are asked for, and more."""

    PBSPRO = "pbspro"
    TORQUE = "torque"


@dataclasses.dataclass(frozen=True)
class Client:
    """The commands of PBS that were found."""

    dialect: Dialect
    #: What goes before a command's name.
    directory: str
    #: What they say of their version.
    said: str
    #: Whether names of jobs may be long; Torque, and PBS before it, take 15 characters.
    takes_long_names: bool

    def command(self, name: str, *arguments: str) -> list[str]:
        return [self.directory + name, *arguments]


def find(run: Callable[[Sequence[str]], Ran], wanted: Dialect | None, place: str) -> Client:
    """The first commands that are PBS's own, or any at all where it is known what they are.

    Raises ProviderError where there are none.
    """
    strangers = []
    for directory in DIRECTORIES:
        ran = run([f"{directory}qstat", "--version"])
        if ran.exit_code in (NOT_FOUND, _NOT_EXECUTABLE):
            continue
        client = _identified(ran, directory, wanted)
        if client is not None:
            return client
        strangers.append(f"{directory}qstat is there, but is not PBS's: to --version it says {ran.said!r}")
    if not strangers:
        raise ProviderError(
            f"there is no PBS on {place}: no qstat is in PATH, nor in {', '.join(filter(None, DIRECTORIES))}"
        )
    raise ProviderError(
        f"there is no PBS on {place}: {'; '.join(strangers)}. Slurm brings such commands for those who are used to "
        "Torque, and then the provider is 'slurm'; if this is PBS after all, set 'dialect' to pbspro or torque"
    )


def _identified(ran: Ran, directory: str, wanted: Dialect | None) -> Client | None:
    """
    >>> _identified(Ran(0, "pbs_version = 23.06.06", ""), "", None).takes_long_names
    True
    >>> _identified(Ran(0, "", "Version: 6.1.2"), "", None).dialect
    <Dialect.TORQUE: 'torque'>
    >>> _identified(Ran(2, "", "Unknown option: version"), "", None)
    """
    printed = f"{ran.stdout}\n{ran.stderr}".strip()
    said = printed.partition("\n")[0]
    if found := re.search(r"pbs_version\s*=\D*(\d+)", printed):
        dialect = wanted or Dialect.PBSPRO
        return Client(dialect, directory, said, dialect is Dialect.PBSPRO and int(found[1]) >= _LONG_NAMES_SINCE)
    if re.search(r"^version:\s*\d", printed, re.IGNORECASE | re.MULTILINE):
        return Client(wanted or Dialect.TORQUE, directory, said, False)
    return None if wanted is None else Client(wanted, directory, said, False)
