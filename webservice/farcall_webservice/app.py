"""The Flask application, made of its parts."""

from __future__ import annotations

import uuid

from flask import Flask, Response, g, request
from werkzeug.middleware.proxy_fix import ProxyFix

from farcall_webservice import auth, cancelling, docs, endpoints, functions, logs, meta, tasks
from farcall_webservice.accounts import KEY as ACCOUNTS_KEY
from farcall_webservice.accounts import Accounts
from farcall_webservice.config import ServiceConfig
from farcall_webservice.database import Database
from farcall_webservice.errors import ApiError
from farcall_webservice.extensions import KEY, Outbox, Services, services
from farcall_webservice.fields import uuid_text
from farcall_webservice.ledger import Ledger
from farcall_webservice.oauth import pages, routes
from farcall_webservice.openapi import Api, IdConverter, OrjsonProvider
from farcall_webservice.result_queues import ResultQueues
from farcall_webservice.waiting import Waiting

BLUEPRINTS = (
    meta.blueprint,
    functions.blueprint,
    endpoints.blueprint,
    tasks.blueprint,
    cancelling.blueprint,
    logs.blueprint,
    routes.blueprint,
    pages.blueprint,
)

_DESCRIPTION = """Run Python functions on machines that are not the one in front of you.

Register a function, submit tasks to an endpoint, and wait for the results of their group. Values and code travel as
text that this service carries and never opens. Every answer has an `X-Request-Id`; every error is the same document.
"""


def create_app(
    config: ServiceConfig,
    database: Database,
    ledger: Ledger,
    dispatcher: Outbox,
    waiting: Waiting,
    *,
    accounts: Accounts,
) -> Flask:
    """Put the application together. Whoever calls this starts and stops what is passed in."""
    if config.broker_url is None:
        raise ValueError("the application needs to know its broker: config.broker_url is None")
    app = Flask(__name__, static_folder=None)
    app.json = OrjsonProvider(app)
    app.extensions[ACCOUNTS_KEY] = accounts
    result_queues = ResultQueues(config.broker_url, database)
    app.extensions[KEY] = Services(config, database, ledger, dispatcher, waiting, result_queues)
    app.config.update(
        MAX_CONTENT_LENGTH=config.max_request_bytes,
        # OPTIONS is answered like any other method that a route does not take.
        PROVIDE_AUTOMATIC_OPTIONS=False,
        API_TITLE="Farcall",
        API_VERSION=meta.VERSION,
        # The page's Swagger UI reads 3.0, not 3.1.
        OPENAPI_VERSION="3.0.3",
        API_SPEC_OPTIONS={
            "info": {"description": _DESCRIPTION, "license": {"name": "Apache-2.0"}},
            "security": [{"bearer": []}],
        },
    )
    app.url_map.converters["id"] = IdConverter
    if config.proxies:
        # Of the address alone: for the rest there is public_url, which nobody can fake.
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=config.proxies, x_proto=0, x_host=0)  # type: ignore[method-assign]
    app.before_request(_name_the_request)
    app.before_request(_authenticate)
    app.before_request(_check_ids)
    app.after_request(_show_request_id)

    api = Api(app)
    api.register_converter(IdConverter, lambda _: {"type": "string", "format": "uuid"})
    api.spec.components.security_scheme("bearer", {"type": "http", "scheme": "bearer"})
    api.spec.components.security_scheme("client", {"type": "http", "scheme": "basic"})
    for blueprint in BLUEPRINTS:
        api.register_blueprint(blueprint)
    app.register_blueprint(docs.make_blueprint(api))
    return app


_OPEN_VIEWS = frozenset(
    {"docs.openapi_document", "docs.page", "docs.asset"}.union(*(blueprint.open_views for blueprint in BLUEPRINTS))
)


def _name_the_request() -> None:
    g.request_id = str(uuid.uuid4())


def _authenticate() -> None:
    # Without a view the request ends in 404 or 405, whoever sent it.
    if request.endpoint is not None and request.endpoint not in _OPEN_VIEWS:
        g.caller = auth.check(services().database, request.headers.get("Authorization"))


def _check_ids() -> None:
    if not request.view_args:
        return
    for name, value in request.view_args.items():
        if name.endswith("_id"):
            checked = uuid_text(value)
            if checked is None:
                raise ApiError(400, "INVALID_UUID", f"{value!r} in the path is not a UUID")
            request.view_args[name] = checked


def _show_request_id(response: Response) -> Response:
    response.headers["X-Request-Id"] = g.request_id
    return response
