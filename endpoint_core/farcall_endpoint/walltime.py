"""When a block ends, as far as a node can know it."""

from __future__ import annotations

import os
from collections.abc import Mapping


def end_of_block(began: float, walltime_s: float | None, environment: Mapping[str, str] = os.environ) -> float | None:
    """Seconds since 1970, or None where that is not known; of what is known, the earlier counts.

    >>> end_of_block(1000.0, 60, {})
    1060.0
    >>> end_of_block(1000.0, 60, {"SLURM_JOB_END_TIME": "1050"})
    1050.0
    >>> end_of_block(1000.0, None, {"SLURM_JOB_END_TIME": "unknown"})
    """
    ends = [] if walltime_s is None else [began + walltime_s]
    try:
        told = float(environment["SLURM_JOB_END_TIME"])
    except (KeyError, ValueError):
        pass
    else:
        # A variable that somebody has brought from an earlier job says nothing about this one.
        ends += [told] if told > began else []
    return min(ends, default=None)
