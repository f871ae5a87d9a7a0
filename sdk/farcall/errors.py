"""What can go wrong, as one tree.

FarcallError
├── WireError (ValueError)                  a message or packed buffer that is not one
├── SerializationError (ValueError)         this value or function cannot be sent
├── DeserializationError (ValueError)       what came cannot be turned back into a value or function here
├── ConfigurationError (ValueError)         a setting is missing or wrong
├── TaskPending (RuntimeError)              the task has not ended yet
├── TaskExecutionFailed (RuntimeError)      the task ended without a value; carries the remote traceback
│   └── TaskCancelled (CancelledError)      somebody cancelled it
├── MaxResultSizeExceeded (ValueError)      raised on the worker: the result is too large to send back
├── VersionMismatch (RuntimeError)          the service no longer speaks with this version
└── ServiceError                            the service said no, or could not be reached
    ├── ServiceUnavailable (ConnectionError)    no answer, or one that a later try may better
    ├── Unauthenticated (PermissionError)       401: no token, a wrong one or an expired one
    ├── Forbidden (PermissionError)             403
    ├── NotFound (LookupError)                  404
    ├── Conflict                                409, 423
    ├── PayloadTooLarge (ValueError)            413
    └── BadRequest (ValueError)                 any other 4xx
"""

from __future__ import annotations

from concurrent.futures import CancelledError


class FarcallError(Exception):
    """The root of everything that Farcall raises on purpose."""


def described(error: BaseException) -> str:
    """Its class and what it says; the class alone where its own code fails to say it."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # the exception's own class decides what may happen here
        return type(error).__name__


class WireError(FarcallError, ValueError):
    """A message or packed buffer that is not one."""


class SerializationError(FarcallError, ValueError):
    """This value or function cannot be sent."""


class DeserializationError(FarcallError, ValueError):
    """What came cannot be turned back into a value or function here."""


class ConfigurationError(FarcallError, ValueError):
    """A setting is missing or wrong."""


class TaskPending(FarcallError, RuntimeError):
    """The task has not ended yet; ``reason`` is its state, such as ``waiting-for-ep``."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"Task is pending: {reason}")
        self.reason = reason


class TaskExecutionFailed(FarcallError, RuntimeError):
    """The task ended without a value.

    ``remote_data`` is the traceback, or what the endpoint said; ``completion_t`` is when it ended, in seconds since
    1970, as a text ("0" where it is not known).
    """

    def __init__(self, remote_data: str, completion_t: str = "0") -> None:
        super().__init__(remote_data, completion_t)
        self.remote_data = remote_data
        self.completion_t = completion_t

    def __str__(self) -> str:
        return "\n" + self.remote_data


class TaskCancelled(TaskExecutionFailed, CancelledError):
    """Somebody cancelled the task, so there is no value. A future of it raises the CancelledError of its module."""


class MaxResultSizeExceeded(FarcallError, ValueError):
    """The result is too large to send back; both sizes are in characters of the serialised text."""

    def __init__(self, result_size: int, result_size_limit: int) -> None:
        super().__init__(result_size, result_size_limit)
        self.result_size = result_size
        self.result_size_limit = result_size_limit

    def __str__(self) -> str:
        return (
            f"Task result of {self.result_size} characters exceeds the limit of {self.result_size_limit}: "
            "write it to a file on the endpoint and return the path, or return less"
        )


class VersionMismatch(FarcallError, RuntimeError):
    """The service no longer speaks with this version."""


class ServiceError(FarcallError):
    """The service said no, or could not be reached.

    ``http_status`` is None where no answer came. ``code`` is the service's word for programs, such as
    ``FUNCTION_NOT_FOUND``.
    """

    def __init__(
        self, message: str, *, http_status: int | None = None, code: str | None = None, request_id: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.http_status = http_status
        self.code = code
        self.request_id = request_id

    def __str__(self) -> str:
        return f"{self.message} [{self.http_status} {self.code}]" if self.code else self.message


class ServiceUnavailable(ServiceError, ConnectionError):
    """No answer, or one that a later try may better."""


class Unauthenticated(ServiceError, PermissionError):
    """No token, a wrong one or an expired one."""


class Forbidden(ServiceError, PermissionError):
    """The caller may not do this."""


class NotFound(ServiceError, LookupError):
    """The service knows no such thing."""


class Conflict(ServiceError):
    """The thing is in a state in which this cannot be done now."""


class PayloadTooLarge(ServiceError, ValueError):
    """Over one of the service's limits."""


class BadRequest(ServiceError, ValueError):
    """The service did not understand the request."""


def service_error(
    http_status: int, message: str, *, code: str | None = None, request_id: str | None = None
) -> ServiceError:
    """The class that fits an answer's status, made ready to raise."""
    if http_status in (429, 500, 502, 503, 504):
        kind: type[ServiceError] = ServiceUnavailable
    else:
        kind = _BY_STATUS.get(http_status, BadRequest if 400 <= http_status < 500 else ServiceError)
    return kind(message, http_status=http_status, code=code, request_id=request_id)


_BY_STATUS: dict[int, type[ServiceError]] = {
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: PayloadTooLarge,
    423: Conflict,
}
