"""The exit codes of our commands: those of sysexits.h, which scripts around Globus Compute expect."""

from __future__ import annotations

import os

from farcall.errors import (
    BadRequest,
    ConfigurationError,
    Conflict,
    FarcallError,
    Forbidden,
    NotFound,
    PayloadTooLarge,
    ServiceUnavailable,
    TaskPending,
    Unauthenticated,
)

_BY_ERROR: tuple[tuple[type[FarcallError], int], ...] = (
    (BadRequest, os.EX_DATAERR),
    (PayloadTooLarge, os.EX_DATAERR),
    (NotFound, os.EX_UNAVAILABLE),
    (Conflict, os.EX_UNAVAILABLE),
    (ServiceUnavailable, os.EX_TEMPFAIL),
    (TaskPending, os.EX_TEMPFAIL),
    (Unauthenticated, os.EX_NOPERM),
    (Forbidden, os.EX_NOPERM),
    (ConfigurationError, os.EX_CONFIG),
)


def exit_code_of(error: FarcallError) -> int:
    """What a program that ended with this error should answer to its caller."""
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), 1)
