"""MPI programs as functions: a command that an endpoint starts as ranks on as many nodes as the task asks for."""

from __future__ import annotations

import os
from typing import Any

from farcall.errors import ConfigurationError
from farcall.shell import ShellFunction

#: Where an MPI-capable endpoint leaves the command that starts ranks on the task's nodes.
PREFIX_VARIABLE = "PARSL_MPI_PREFIX"


class MPIFunction(ShellFunction):
    """A command line that runs as MPI ranks; how many, and where, says the executor's ``resource_specification``.

    >>> from farcall import Executor, MPIFunction
    >>> with Executor(endpoint_id="4b116d3c-1703-4f8f-9f6f-39921e5864df") as executor:  # doctest: +SKIP
    ...     executor.resource_specification = {"num_nodes": 2, "ranks_per_node": 4}
    ...     print(executor.submit(MPIFunction("./simulate --steps {steps}"), steps=100).result())

    It takes what :class:`ShellFunction` takes, and needs an endpoint whose engine is a ``GlobusMPIEngine``.
    """

    def _command_line(self, **kwargs: Any) -> str:
        if not os.environ.get(PREFIX_VARIABLE):
            raise ConfigurationError(
                f"{self.__name__} cannot start its ranks: {PREFIX_VARIABLE} is not set here. It needs an endpoint "
                'whose engine.type is GlobusMPIEngine, and a resource_specification such as {"num_nodes": 1, '
                '"ranks_per_node": 2} on the executor that submits it'
            )
        return f"${PREFIX_VARIABLE} {super()._command_line(**kwargs)}"
