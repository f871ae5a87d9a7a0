"""Which GPUs the workers of a node are pinned to, one each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

#: Where a batch system says which devices of a node a block has been given.
_GIVEN = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")


def given_to_us(wanted: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """The names of the GPUs that the workers get.

    Numbers count among those that the block has been given: on a node that is shared, the block's first GPU may well be
    the node's third. No worker gets one that is not the block's.

    >>> given_to_us(["0", "1", "2"], {"CUDA_VISIBLE_DEVICES": "2,3"})
    ['2', '3']
    >>> given_to_us(["0", "1"], {})
    ['0', '1']
    """
    given = next((environment[name].split(",") for name in _GIVEN if environment.get(name)), None)
    if given is None or not all(name.isdecimal() for name in wanted):
        return list(wanted)
    return [given[int(name)] for name in wanted if int(name) < len(given)]
