"""The OpenAPI document, and a page that shows it. Everything on the page comes from this service."""

from __future__ import annotations

from flask import Blueprint, Response, send_from_directory
from swagger_ui_bundle import swagger_ui_path

from farcall_webservice.documents import answer
from farcall_webservice.errors import not_found
from farcall_webservice.openapi import Api

#: What the page may load, and from where: from here. Swagger UI sets styles on elements, and its icons are data: URLs.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_ASSETS = frozenset({"swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png"})

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <title>Farcall: the API</title>
  <link rel="stylesheet" href="/docs/swagger-ui.css">
  <link rel="icon" type="image/png" href="/docs/favicon-32x32.png">
</head>
<body>
  <div id="api"></div>
  <script src="/docs/swagger-ui-bundle.js"></script>
  <script src="/docs/start.js"></script>
</body>
</html>
"""

# A file of its own, because the policy forbids inline scripts. Without `validatorUrl: null` the page asks another host.
_START = """SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#api",
  validatorUrl: null,
  persistAuthorization: false,
  deepLinking: true
});
"""


def make_blueprint(api: Api) -> Blueprint:
    """The routes outside the API: ``/openapi.json`` and ``/docs``."""
    blueprint = Blueprint("docs", __name__)
    # The document cannot change while the service runs.
    document = api.spec.to_dict()

    @blueprint.get("/openapi.json")
    def openapi_document() -> Response:
        return answer(document)

    @blueprint.get("/docs")
    def page() -> Response:
        return _guarded(Response(_PAGE, mimetype="text/html"))

    @blueprint.get("/docs/<name>")
    def asset(name: str) -> Response:
        if name == "start.js":
            return _guarded(Response(_START, mimetype="text/javascript"))
        if name not in _ASSETS:
            raise not_found("NOT_FOUND", f"There is no {name!r} among the files of the docs page")
        return _guarded(send_from_directory(str(swagger_ui_path), name, max_age=3600))

    return blueprint


def _guarded(response: Response) -> Response:
    response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    return response
