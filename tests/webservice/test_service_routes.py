"""The application as a whole: version, health, documentation, and errors that no view raises."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from openapi_spec_validator import validate
from sqlalchemy.exc import OperationalError

from farcall_webservice import meta

if TYPE_CHECKING:
    from conftest import Person, Service

JSON = {"Content-Type": "application/json"}


def test_the_version_is_a_text_or_all_that_clients_check(ada: Person) -> None:
    assert ada.get("/v2/version").done() == meta.VERSION
    assert set(ada.get("/v2/version?service=all").done()) == {
        "api",
        "min_sdk_version",
        "min_ep_version",
        "min_farcall_version",
    }


def test_health_is_good_while_database_and_broker_answer(ada: Person) -> None:
    assert ada.get("/healthz").done() == {"status": "ok", "database": "ok", "broker": "ok"}


def test_health_says_which_part_fails(ada: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(_url: str) -> None:
        raise ConnectionRefusedError

    monkeypatch.setattr(meta.queues, "connect", lost)

    assert ada.get("/healthz").refused(503, "UNHEALTHY") == "The database ok; the broker fails"


def test_limits_are_those_of_the_settings(service: Service, ada: Person) -> None:
    assert ada.get("/v2/limits").done()["max_batch_tasks"] == service.config.max_batch_tasks


def test_the_openapi_document_is_valid_and_complete(ada: Person) -> None:
    document = ada.get("/openapi.json").done()

    validate(document)
    operations = [
        operation for path in document["paths"].values() for name, operation in path.items() if name != "parameters"
    ]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    for operation in operations:
        assert operation["summary"] and operation["tags"]
        if operation.get("security") != []:
            assert "401" in operation["responses"], operation["operationId"]
        if "requestBody" in operation:
            ((kind, described),) = operation["requestBody"]["content"].items()
            refusals = {"400", "413", "415", "422"} if kind == "application/json" else {"400", "413"}
            assert refusals <= set(operation["responses"]), operation["operationId"]
            assert "example" in described, operation["operationId"]


def test_every_route_of_the_api_is_in_the_document(service: Service, ada: Person) -> None:
    documented = set(ada.get("/openapi.json").done()["paths"])

    routes = {
        rule.rule.replace("<id:", "{").replace(">", "}")
        for rule in service.app.url_map.iter_rules()
        if not rule.endpoint.startswith("docs.")
    }

    assert routes == documented


def test_the_docs_page_loads_nothing_from_elsewhere(ada: Person) -> None:
    page = ada.get("/docs")

    assert page.status == 200
    assert "http" not in page.text
    assert "script-src 'self';" in page.headers["Content-Security-Policy"]
    for name in ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png", "start.js"):
        assert f"/docs/{name}" in page.text
        assert ada.get(f"/docs/{name}").status == 200


@pytest.mark.parametrize("name", ["index.html", "..%2f__init__.py", "swagger-ui.js.map"])
def test_no_other_file_is_served(ada: Person, name: str) -> None:
    ada.get(f"/docs/{name}").refused(404, "NOT_FOUND")


def test_an_unknown_path_and_a_wrong_method_are_the_error_document(ada: Person) -> None:
    ada.get("/v2/nothing").refused(404, "NOT_FOUND")
    answer = ada.delete("/v2/tasks")

    answer.refused(405, "METHOD_NOT_ALLOWED")
    assert "GET" in answer.headers["Allow"]


def test_an_id_that_is_none_is_told_apart_from_an_unknown_one(ada: Person, unknown_id: str) -> None:
    assert "'nonsense'" in ada.get("/v2/tasks/nonsense").refused(400, "INVALID_UUID")
    assert unknown_id in ada.get(f"/v2/tasks/{unknown_id.upper()}").refused(404, "TASK_NOT_FOUND")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nonsense", b'{"a": NaN}', b'"\\ud800"', b"\xff\xfe", b"[" * 5000, b'{"a": 1e999}', b"\xef\xbb\xbf{}"],
)
def test_a_body_that_is_not_json_is_malformed(ada: Person, body: bytes) -> None:
    ada.ask("POST", "/v3/functions", data=body, headers=JSON).refused(400, "REQUEST_MALFORMED")


@pytest.mark.parametrize("body", [[], "text", 7, None, True])
def test_a_body_that_is_no_object_is_invalid(ada: Person, body: object) -> None:
    answer = ada.ask("POST", "/v3/functions", data=json.dumps(body), headers=JSON)

    answer.refused(422, "SEMANTICALLY_INVALID")


def test_a_body_of_another_type_is_refused(ada: Person) -> None:
    ada.ask("POST", "/v3/functions", data=b"a=1").refused(415, "UNSUPPORTED_MEDIA_TYPE")


def test_a_body_over_the_limit_is_refused_with_the_limit(service: Service, ada: Person) -> None:
    message = ada.post("/v3/functions", {"function_name": "x" * 30_000}).refused(413, "REQUEST_TOO_LARGE")

    assert str(service.config.max_request_bytes) in message


def test_an_object_that_is_nested_too_deeply_is_invalid(ada: Person) -> None:
    body = b'{"endpoint_name": "e", "metadata": {"a": ' + b"[" * 900 + b"]" * 900 + b"}}"

    message = ada.ask("POST", "/v3/endpoints", data=body, headers=JSON).refused(422, "SEMANTICALLY_INVALID")

    assert "metadata: the object is nested too deeply" in message


def test_what_nobody_foresaw_is_logged_and_names_its_request(
    service: Service, ada: Person, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("out of cheese")

    monkeypatch.setattr(service.ledger, "tasks", broken)

    answer = ada.post("/v2/batch_status", {"task_ids": []})

    message = answer.refused(500, "INTERNAL_ERROR")
    assert "cheese" not in message
    assert "cheese" in caplog.text
    assert answer.headers["X-Request-Id"] in caplog.text


def test_a_database_that_is_away_is_a_reason_to_try_again(
    service: Service, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OperationalError("SELECT", None, Exception("gone"))

    monkeypatch.setattr(service.ledger, "tasks", broken)

    answer = ada.post("/v2/batch_status", {"task_ids": []})

    answer.refused(503, "DATABASE_UNAVAILABLE")
    assert answer.headers["Retry-After"]
