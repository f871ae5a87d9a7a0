"""Which tasks an endpoint does not take, and what their submitters are told."""

from __future__ import annotations

from farcall.wire import BatchedTask

from . import mpi
from .attempts import timeout_s
from .config import EndpointConfig
from .failures import failure


def refusal(config: EndpointConfig, task: BatchedTask) -> tuple[str, str] | None:
    """The result of a task that will not be run here; None if it may be."""
    if config.allowed_functions is not None and task.function_id not in config.allowed_functions:
        message = f"Function {task.function_id} is not allowed to run on this endpoint"
        return failure(task.task_id, "FUNCTION_NOT_ALLOWED", message)
    engine = config.engine
    reason = mpi.refusal(
        mpi.specification_of(task.options), launcher=engine.mpi_launcher, most_nodes=engine.nodes_per_block
    )
    if reason is not None:
        return failure(task.task_id, "InvalidResourceSpecification", f"InvalidResourceSpecification: {reason}")
    limit_s = timeout_s(task.options)
    if limit_s is not None and engine.walltime_s is not None and limit_s > engine.walltime_s:
        message = (
            f"the task may take {limit_s:g} s (timeout_s), and a block of this endpoint lives for "
            f"{engine.walltime_s} s (walltime): ask for less, or have the endpoint's walltime raised"
        )
        return failure(task.task_id, "TimeLimitTooLong", message)
    return None
