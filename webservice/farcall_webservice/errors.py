"""What a request is told when it is refused: one document for every error, whoever noticed it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, cast

from flask import Flask, Response, current_app, g, request
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.exceptions import HTTPException

from farcall_webservice.database import UNAVAILABLE, cause_of, is_full

log = logging.getLogger(__name__)


class ApiError(Exception):
    """A request is refused with this status, a code for programs and a message for people."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = dict(headers or {})


def not_found(code: str, message: str) -> ApiError:
    return ApiError(404, code, message)


def forbidden(code: str, message: str) -> ApiError:
    return ApiError(403, code, message)


def invalid(message: str) -> ApiError:
    """The body or a parameter was understood, but does not mean anything here."""
    return ApiError(422, "SEMANTICALLY_INVALID", f"Request payload failed validation: {message}")


def broker_unavailable(message: str) -> ApiError:
    return ApiError(503, "BROKER_UNAVAILABLE", message, {"Retry-After": "2"})


def document(error: ApiError) -> dict[str, Any]:
    return {
        "code": error.code,
        "message": error.message,
        "request_id": g.get("request_id", ""),
        "status": "Failed",
        "reason": error.message,
        "http_status_code": error.status,
        "error_args": [],
    }


def register_error_handlers(app: Flask) -> None:
    app.register_error_handler(ApiError, answer)
    app.register_error_handler(HTTPException, lambda error: answer(of_http_exception(error)))
    for unavailable in UNAVAILABLE:
        app.register_error_handler(unavailable, lambda error: answer(database_unavailable(error)))
    app.register_error_handler(Exception, _answer_unexpected)


def answer(error: ApiError, /, **more: str) -> Response:
    """The error's document, with more in it."""
    response = cast(Response, current_app.json.response({**document(error), **more}))
    response.status_code = error.status
    response.headers.update(error.headers)
    return response


def of_http_exception(error: HTTPException) -> ApiError:
    status = error.code or 500
    headers = {name: value for name, value in error.get_headers() if name in ("Allow", "Retry-After")}
    return ApiError(status, _HTTP_CODES.get(status, "REQUEST_MALFORMED"), _http_message(error), headers)


def _http_message(error: HTTPException) -> str:
    if error.code == 404:
        return f"There is nothing at {request.path}: see /docs for what there is"
    if error.code == 405:
        return f"{request.path} does not take {request.method}: see the Allow header for what it takes"
    if error.code == 413:
        limit = current_app.config["MAX_CONTENT_LENGTH"]
        return (
            f"The request is larger than this service's limit of {limit} bytes: send fewer tasks at once, "
            "or put large data where the endpoint can read it and send its path"
        )
    return error.description or error.name


def database_unavailable(error: SQLAlchemyError) -> ApiError:
    """What is answered when the database cannot be used; its cause is logged."""
    log.error("request %s: the database cannot be used: %s", g.get("request_id"), cause_of(error))
    if is_full(error):
        message = (
            "The disk of the service's database is full, so nothing can be written: try again when its administrator "
            "has made room. Nothing of this request was kept"
        )
        return ApiError(503, "STORAGE_FULL", message, {"Retry-After": "10"})
    return ApiError(
        503, "DATABASE_UNAVAILABLE", "The service cannot use its database now: try again", {"Retry-After": "2"}
    )


def _answer_unexpected(error: Exception) -> Response:
    log.error("request %s: %s %s failed", g.get("request_id"), request.method, request.path, exc_info=error)
    message = "The service failed to answer; its log says more under this request_id"
    return answer(ApiError(500, "INTERNAL_ERROR", message))


_HTTP_CODES = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED", 413: "REQUEST_TOO_LARGE", 415: "UNSUPPORTED_MEDIA_TYPE"}
