"""Every operation of the interface, with invented requests: each answer is one that the OpenAPI document promises.

With the service's own broker, and with one that is not there. ``FARCALL_TEST_EXAMPLES`` lets it try more.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from fuzzing import examples
from hypothesis import given
from hypothesis.errors import Unsatisfiable
from running import running_service
from schemathesis import GenerationMode, checks
from schemathesis.core.failures import FailureGroup

from farcall_webservice.valkey import Valkey

# Seconds where nothing else runs.
pytestmark = pytest.mark.timeout(600)

PROMISES = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
]
#: Two arguments and no keyword arguments, packed.
PAYLOAD = "9\n11\n[1, 2]5\n11\n{}"
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
#: The examples are few, and drawn from the whole of what the document allows and forbids.
CONFIGURATION = {"phases": {"coverage": {"enabled": False}}}


@dataclass
class Known:
    """Things that are there, put in the place of half of the invented ids."""

    ids: dict[str, str] = field(default_factory=dict)

    def put_into(self, value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            return {self._known(key, "function"): self.put_into(each, key) for key, each in value.items()}
        if isinstance(value, list):
            return [self.put_into(each, name) for each in value]
        # A list under a function's id is of arguments, which the document only calls texts.
        return PAYLOAD if UUID.fullmatch(name) and isinstance(value, str) else self._known(value, name)

    def _known(self, value: Any, name: str) -> Any:
        if not isinstance(value, str) or not UUID.fullmatch(value) or int(value[0], 16) % 2:
            return value
        return next((known for kind, known in self.ids.items() if kind in name), value)


@dataclass
class Api:
    """A service to send requests to, and what it has."""

    schema: Any
    headers: dict[str, str]
    known: Known

    def broken_promises(self, promises: list[Any], count: int) -> list[str]:
        """What was wrong, operation by operation, with requests that are as the document wants them and with others."""
        broken = []
        operations = [result.ok() for result in self.schema.get_all_operations()]
        # What takes away the things that are there comes last.
        for operation in sorted(operations, key=lambda each: (each.method == "delete", each.path.endswith("/lock"))):
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                try:
                    self._try(operation, mode, promises, count)
                except Unsatisfiable:
                    # There is nothing to be said in the wrong way.
                    assert mode == GenerationMode.NEGATIVE
                except (Exception, FailureGroup) as error:
                    broken.append(f"{operation.label} ({mode.value}): {error}")
        return broken

    def _try(self, operation: Any, mode: GenerationMode, promises: list[Any], count: int) -> None:
        @examples(count)
        @given(operation.as_strategy(generation_mode=mode))
        def check(case: schemathesis.Case) -> None:
            case.path_parameters = self.known.put_into(case.path_parameters)
            case.body = self.known.put_into(case.body)
            if isinstance(case.query, dict) and "wait" in case.query:
                # Nothing comes for which it could wait.
                case.query["wait"] = "0"
            response = case.call(headers=self.headers)
            case.validate_response(response, checks=promises)

        check()


@contextmanager
def api_of(home: Path, **environment: str) -> Iterator[Api]:
    """A whole service as a user starts it, in which there is one of everything."""
    with running_service(home, **environment) as service:
        headers = {"Authorization": f"Bearer {service.token}"}

        def ask(path: str, body: Any) -> Any:
            response = requests.post(service.url + path, json=body, headers=headers, timeout=30)
            response.raise_for_status()
            return response.json()

        function = ask("/v3/functions", {"function_name": "f", "function_code": "4\nst\nx"})["function_uuid"]
        endpoint = ask("/v3/endpoints", {"endpoint_name": "here"})["endpoint_id"]
        submitted = ask(f"/v3/endpoints/{endpoint}/submit", {"tasks": {function: [PAYLOAD] * 3}})
        ids = {
            "function": function,
            "endpoint": endpoint,
            "task_group": submitted["task_group_id"],
            "task": submitted["tasks"][function][0],
        }
        schema = schemathesis.openapi.from_url(
            f"{service.url}/openapi.json", config=schemathesis.Config.from_dict(CONFIGURATION)
        )
        yield Api(schema, headers, Known(ids))


def test_every_answer_is_as_the_document_says(tmp_path: Path) -> None:
    with api_of(tmp_path) as api:
        broken = api.broken_promises([checks.not_a_server_error, *PROMISES], count=6)

    assert not broken, "\n\n".join(broken)


def only_503(_context: Any, response: Any, _case: schemathesis.Case) -> None:
    """A broker that is away is the one reason for which the service may fail."""
    assert response.status_code < 500 or response.status_code == 503, response.text


def test_every_answer_is_as_the_document_says_while_the_broker_is_away(tmp_path: Path) -> None:
    broker = Valkey(tmp_path / "valkey", "127.0.0.1")
    broker.start()
    with contextlib.ExitStack() as stack:
        stack.callback(broker.stop)
        api = stack.enter_context(api_of(tmp_path / "home", FARCALL_BROKER_URL=broker.url))
        broker.stop()

        broken = api.broken_promises([only_503, *PROMISES], count=3)

    assert not broken, "\n\n".join(broken)
