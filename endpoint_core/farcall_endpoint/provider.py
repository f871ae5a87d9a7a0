"""What a provider is: it starts, watches and stops blocks on one kind of system, and knows nothing of tasks.

Everything a plugin needs to import is here and in ``hookspecs``. How many blocks there should be is the engine's
decision; a provider is only asked for one more or told to stop some.
"""

from __future__ import annotations

import dataclasses
import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from farcall.errors import FarcallError


class ProviderError(FarcallError, RuntimeError):
    """The system refused a block; the message is what it said, for the people who wait for their tasks."""


class SystemUnavailable(ProviderError):
    """The system could not be asked. It may answer later, and says nothing against the block that was wanted."""


class BlockState(enum.Enum):
    """Where a block is."""

    #: Asked for and not running yet, such as a batch job in its queue.
    PENDING = "pending"
    RUNNING = "running"
    #: Ended with exit code 0.
    DONE = "done"
    #: Ended in any other way, without having been asked to.
    FAILED = "failed"
    #: Ended because of :meth:`Provider.cancel`.
    CANCELLED = "cancelled"
    #: The system says nothing of it. That is not the same as having ended.
    UNKNOWN = "unknown"

    @property
    def has_ended(self) -> bool:
        return self in (BlockState.DONE, BlockState.FAILED, BlockState.CANCELLED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockSpec:
    """One block to be started."""

    #: A line for ``sh``; it runs once a block, and starts the managers on the block's nodes by itself.
    command: str
    #: What people see in the system's lists; letters, digits, ``.``, ``_`` and ``-``. Need not be unique.
    name: str
    #: A directory of the agent for the block's files. It may not exist yet.
    run_dir: Path
    #: Who asks: letters and digits, at most 12, the same for all blocks of an endpoint and for nobody else's.
    owner: str = ""
    nodes: int = 1
    #: How long the block may live; None leaves it to the system.
    walltime_s: int | None = None
    #: Shell lines that run before the command, in the same shell, such as ``module load python``.
    worker_init: str = ""


@dataclasses.dataclass(frozen=True)
class Access:
    """How the nodes of a provider reach the agent, where they do not see its files or its addresses."""

    #: Where they connect to; several addresses, of which one will do, with commas between them.
    address: str
    #: What they connect to there, by the agent's port that is meant.
    ports: Mapping[int, int]
    #: The directory, as the nodes see it, that has the same files as the agent's ``run_dir`` had.
    directory: str
    #: Where tasks run unless the administrator says; empty if that is in ``directory``.
    working_dir: str = ""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at for ``doctor``. ``remedy`` is what to do where it is not well."""

    subject: str
    is_well: bool
    said: str
    remedy: str = ""


@dataclasses.dataclass(frozen=True)
class ProviderConfig:
    """The options of one provider; subclasses add their fields, each with a default or not, as :func:`setting`.

    An administrator writes them beside ``type`` under ``engine.provider`` in ``config.yaml``.
    """


def setting(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    key: str | None = None,
    section: str | None = None,
    minimum: float | None = None,
    parse: Callable[[Any], Any] | None = None,
) -> Any:
    """A dataclass field that an administrator can set: ``help`` becomes the comment above it in ``config.yaml``.

    ``key`` is its name there, where that differs from the field's. ``parse`` turns what stands in the file into the
    value, where the field's type does not say how; it raises ValueError with a sentence for the administrator.
    ``section`` is for the endpoint's own settings.
    """
    metadata = {"help": help, "key": key, "section": section, "minimum": minimum, "parse": parse}
    return dataclasses.field(default=default, metadata=metadata)


class Provider(ABC):
    """Starts, watches and stops blocks. Its methods are called from several threads."""

    #: The dataclass of its options.
    Config: ClassVar[type[ProviderConfig]] = ProviderConfig

    #: Whether blocks need an address of the agent's machine, as they may be elsewhere; if not, all that they talk to is
    #: on 127.0.0.1, or brought there by :meth:`give_access`.
    needs_network: bool = True

    #: What starts the workers on each node of a block with several, unless the administrator says: see ``blocks``.
    launcher: ClassVar[str] = "single"

    #: Seconds between two questions for the states of blocks; None is the period of the scaling strategy.
    poll_period_s: ClassVar[int | None] = None

    def __init__(self, config: ProviderConfig) -> None:
        self.config = config

    @abstractmethod
    def submit(self, spec: BlockSpec) -> str:
        """Ask for a block and return its id, which no later block gets again.

        Raises :class:`ProviderError` with what the system said if it says no.
        """

    @abstractmethod
    def states(self, block_ids: Sequence[str]) -> dict[str, BlockState]:
        """The state of each, of all in one go. A block that the provider has never seen is UNKNOWN."""

    @abstractmethod
    def cancel(self, block_ids: Sequence[str]) -> None:
        """Stop blocks, with everything they started. Stopping one that has ended or is unknown is no error."""

    def owned(self, owner: str) -> list[str]:
        """The ids of all blocks asked for by this owner that may not have ended, also those of an earlier agent.

        Where no block outlives its agent, as here, there are none but this agent's, and nobody needs to be told of
        them. Raises :class:`SystemUnavailable` if the system cannot say.
        """
        return []

    def give_access(self, run_dir: Path, ports: Sequence[int]) -> Access | None:
        """Let the nodes of coming blocks reach these TCP ports of the agent, and read what is in ``run_dir`` now.

        None, as here, if they can do so without help. Called before the first block, and again when the engine has
        been started again, with another directory and other ports; the earlier ones are of no use then. Raises
        :class:`ProviderError`.
        """
        return None

    @property
    def access_is_lost(self) -> bool:
        """Whether what :meth:`give_access` has given last will not work again; it is asked for anew then."""
        return False

    def examine(self) -> Iterator[Finding]:
        """What can be wrong with the system or the way to it, for ``doctor``; no block is asked for."""
        return iter(())

    def reason(self, block_id: str) -> str:
        """What the system says of a block that has not ended: why it waits, or on which nodes it runs.

        It is what :meth:`states` has found out, and may be empty; nobody is asked for it.
        """
        return ""

    def output(self, block_id: str) -> str:
        """The end of what a block printed and how it ended, for people who wonder why; empty if nothing is known."""
        return ""

    def close(self) -> None:  # noqa: B027 - most providers hold nothing
        """Let go of whatever the provider holds; the agent is about to end. Blocks have been cancelled by then."""
