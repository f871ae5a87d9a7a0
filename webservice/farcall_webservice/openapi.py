"""Routes and their documentation from one declaration each, over flask-smorest.

A view says what it takes, what it answers and how it can fail; from that come the checks of the request and the
operation in the OpenAPI document, so that the two cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any, NoReturn, TypeVar

import flask
import marshmallow as ma
import orjson
from flask.json.provider import JSONProvider
from flask_smorest import Api as SmorestApi  # type: ignore[import-untyped]
from flask_smorest import Blueprint as SmorestBlueprint
from webargs.flaskparser import FlaskParser
from werkzeug.routing import UnicodeConverter

from farcall_webservice.errors import ApiError, invalid, register_error_handlers
from farcall_webservice.schemas import ErrorSchema

View = TypeVar("View", bound=Callable[..., Any])


class OrjsonProvider(JSONProvider):
    """JSON by orjson, which is several times quicker than the standard library on bodies of thousands of tasks."""

    def dumps(self, obj: Any, **_: Any) -> str:
        return orjson.dumps(obj).decode()

    def loads(self, s: str | bytes, **_: Any) -> Any:
        return orjson.loads(s)

    def response(self, *args: Any, **kwargs: Any) -> flask.Response:
        body = self._prepare_response_obj(args, kwargs)
        return flask.Response(orjson.dumps(body), mimetype="application/json")


class IdConverter(UnicodeConverter):
    """A path segment that has to be a UUID; :mod:`farcall_webservice.app` checks it once the caller is known."""


class _Parser(FlaskParser):
    """Reads requests; whatever is wrong with one ends in the service's own error document."""

    # What is done with unknown keys is each schema's own to say.
    DEFAULT_UNKNOWN_BY_LOCATION: dict[str, str | None] = {"headers": ma.EXCLUDE}  # noqa: RUF012 -- as the base has it

    def _raw_load_json(self, req: flask.Request) -> Any:
        if not req.is_json:
            raise ApiError(415, "UNSUPPORTED_MEDIA_TYPE", "The request needs a body of Content-Type application/json")
        try:
            return orjson.loads(req.get_data())
        except orjson.JSONDecodeError as error:
            raise ApiError(400, "REQUEST_MALFORMED", f"The body is not JSON: {error}") from error

    def handle_error(self, error: ma.ValidationError, *_: Any, **__: Any) -> NoReturn:
        raise invalid("; ".join(_problems(error.messages))) from error


def _problems(messages: Any, path: str = "") -> Iterable[str]:
    """Each wrong field with its path: ``tasks.0b2d...: number 3 is 7, not a text``."""
    if isinstance(messages, dict):
        for key, inner in messages.items():
            # The location ("json", "query") is webargs' word, "_schema" marshmallow's for the body itself.
            if not path and key in ("json", "query", "headers") and isinstance(inner, dict):
                yield from _problems(inner)
            else:
                yield from _problems(inner, path if key == "_schema" else f"{path}.{key}" if path else str(key))
    else:
        text = " ".join(map(str, messages)) if isinstance(messages, list) else str(messages)
        yield f"{path or 'the body'}: {text}"


class Blueprint(SmorestBlueprint):  # type: ignore[misc]
    """Views of one resource."""

    ARGUMENTS_PARSER = _Parser()

    def __init__(self, name: str, import_name: str, *, description: str) -> None:
        super().__init__(name, import_name, description=description)
        #: Views that answer without a token, by their Flask names.
        self.open_views: set[str] = set()

    def operation(
        self,
        method: str,
        path: str,
        *,
        id: str,
        answer: type[ma.Schema] | ma.Schema | dict[str, Any],
        example: Any = None,
        body: type[ma.Schema] | None = None,
        body_example: Any = None,
        query: type[ma.Schema] | None = None,
        headers: type[ma.Schema] | None = None,
        failures: Iterable[int] = (),
        needs_token: bool = True,
        content_type: str = "application/json",
        described: Mapping[str, Any] | None = None,
    ) -> Callable[[View], View]:
        """Make a function the view of ``method path``.

        It is called with what was loaded by ``body``, ``query`` and ``headers``, in this order, and with the path's
        parameters by name. ``failures`` are the statuses beside those that every such operation can answer.
        ``described`` goes into the operation's documentation as it is, for what somebody else's code checks. A page
        (``content_type``) fails with pages too, but for the failure that nobody expects.
        """
        statuses = set(failures) | {500, 503}
        if needs_token:
            statuses.add(401)
        if "<id:" in path:
            statuses.add(400)
        if body is not None:
            statuses |= {400, 413, 415, 422}
        if query is not None or headers is not None:
            statuses.add(422)

        def decorate(view: View) -> View:
            wrapped: Any = self.response(
                200, answer, description="It worked.", example=example, content_type=content_type
            )(view)
            for schema, location in ((headers, "headers"), (query, "query")):
                if schema is not None:
                    wrapped = self.arguments(schema, location=location)(wrapped)
            if body is not None:
                wrapped = self.arguments(body, location="json", example=body_example)(wrapped)
            for status in sorted(statuses):
                if content_type == "application/json" or status == 500:
                    failure = self.alt_response(status, HTTPStatus(status).name)
                else:
                    failure = self.alt_response(status, schema=answer, content_type=content_type)
                wrapped = failure(wrapped)
            security: dict[str, Any] = {} if needs_token else {"security": []}
            wrapped = self.doc(operationId=id, **{**security, **(described or {})})(wrapped)
            self.route(path, methods=[method], endpoint=view.__name__)(wrapped)
            if not needs_token:
                self.open_views.add(f"{self.name}.{view.__name__}")
            return view

        return decorate


class Api(SmorestApi):  # type: ignore[misc]
    """The OpenAPI document and the blueprints in it."""

    ERROR_SCHEMA = ErrorSchema
    #: Each operation names its statuses one by one.
    DEFAULT_ERROR_RESPONSE_NAME = None

    def _register_error_handlers(self) -> None:
        register_error_handlers(self._app)
