"""Several texts as one, as Globus Compute packs them."""

from __future__ import annotations

from collections.abc import Iterable

from farcall.errors import WireError


def pack_buffers(buffers: Iterable[str]) -> str:
    r"""Join texts so that they can be told apart again, each preceded by its length in characters and a newline.

    >>> pack_buffers(["ab", ""])
    '2\nab0\n'
    """
    return "".join(f"{len(buffer)}\n{buffer}" for buffer in buffers)


def unpack_buffers(packed: str) -> list[str]:
    r"""Take apart what :func:`pack_buffers` joined. Raises :class:`WireError` for anything else.

    >>> unpack_buffers("2\nab0\n")
    ['ab', '']
    """
    buffers = []
    position = 0
    while position < len(packed):
        newline = packed.find("\n", position)
        length = packed[position:newline] if newline > 0 else ""
        # isdecimal() alone would let through digits of other scripts.
        if not (length.isascii() and length.isdecimal()) or len(length) > 18:
            raise WireError(f"packed buffers: no length at character {position}")
        start, end = newline + 1, newline + 1 + int(length)
        if end > len(packed):
            raise WireError(f"packed buffers: {length} characters were announced at {position}, fewer are there")
        buffers.append(packed[start:end])
        position = end
    return buffers
