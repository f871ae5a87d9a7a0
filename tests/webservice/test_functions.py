"""Functions over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from farcall.wire import unpack_buffers
from farcall_webservice import auth

if TYPE_CHECKING:
    from conftest import Person, Service


def test_a_registered_function_can_be_shown_with_its_code(ada: Person) -> None:
    function_id = ada.function(meta={"python_version": "3.11.7"}, description="Adds", sent_by_a_newer_client=1)

    body = ada.get(f"/v2/functions/{function_id}").done()

    assert body["function_uuid"] == function_id
    assert body["function_code"] == "4\nst\nx"
    assert body["metadata"] == {"python_version": "3.11.7"}
    assert (body["description"], body["owner"], body["public"]) == ("Adds", ada.id, False)


def test_each_registration_makes_a_new_id(ada: Person) -> None:
    assert ada.function() != ada.function()


def test_the_older_route_takes_the_older_fields(ada: Person) -> None:
    body = {
        "function_name": "add",
        "function_code": "4\nst\nx",
        "container_uuid": None,
        "entry_point": "add",
        "description": None,
        "public": False,
        "group": None,
    }

    function_id = ada.post("/v2/functions", body).done()["function_uuid"]

    assert ada.get(f"/v2/functions/{function_id}").done()["function_name"] == "add"


def test_source_text_is_packed_by_the_service(ada: Person) -> None:
    source = "def add(a, b):\n    return a + b\n"

    function_id = ada.function(function_code=source, serialized=False)

    (code,) = unpack_buffers(ada.get(f"/v2/functions/{function_id}").done()["function_code"])
    assert code == f"st\nadd:{source}"


@pytest.mark.parametrize("code", ["no length", "9\nshort", "1\na1\nb", "4\nst\nx trailing"])
def test_code_that_is_not_one_packed_buffer_is_invalid(ada: Person, code: str) -> None:
    answer = ada.post("/v3/functions", {"function_name": "add", "function_code": code})

    assert "function_code:" in answer.refused(422, "SEMANTICALLY_INVALID")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"function_name": None}, "function_name:"),
        ({"function_name": "a\0b"}, "function_name: the character NUL is not allowed in text"),
        ({"public": "yes"}, "public: 'yes' is neither true nor false"),
        ({"group": "analysts"}, "group: 'analysts' is not a UUID"),
        ({"meta": [1]}, "meta: [1] is not an object"),
    ],
)
def test_a_wrong_field_is_named_with_what_is_wrong(ada: Person, wrong: dict[str, Any], words: str) -> None:
    answer = ada.post("/v3/functions", {"function_name": "add", "function_code": "4\nst\nx", **wrong})

    assert words in answer.refused(422, "SEMANTICALLY_INVALID")


def test_a_function_over_the_limit_is_told_both_sizes(ada: Person) -> None:
    code = "x" * 1200

    answer = ada.post("/v3/functions", {"function_name": "big", "function_code": code, "serialized": False})

    message = answer.refused(413, "FUNCTION_TOO_LARGE")
    assert "1200" in message and "1000" in message


def test_unknown_and_foreign_functions_are_told_apart(ada: Person, bob: Person, unknown_id: str) -> None:
    function_id = ada.function()

    ada.get(f"/v2/functions/{unknown_id}").refused(404, "FUNCTION_NOT_FOUND")
    bob.get(f"/v2/functions/{function_id}").refused(403, "FUNCTION_ACCESS_FORBIDDEN")
    bob.delete(f"/v2/functions/{function_id}").refused(403, "FUNCTION_ACCESS_FORBIDDEN")


def test_a_public_function_may_be_used_but_not_deleted_by_others(ada: Person, bob: Person) -> None:
    function_id = ada.function(public=True)

    bob.get(f"/v2/functions/{function_id}").done()
    bob.delete(f"/v2/functions/{function_id}").refused(403, "FUNCTION_ACCESS_FORBIDDEN")


def test_a_function_is_shared_with_a_group_by_its_members_alone(service: Service, ada: Person, bob: Person) -> None:
    group_id = auth.create_group(service.database, "analysts")
    body = {"function_name": "add", "function_code": "4\nst\nx", "group": group_id}
    ada.post("/v3/functions", body).refused(403, "GROUP_ACCESS_FORBIDDEN")
    auth.add_to_group(service.database, "analysts", "ada")

    function_id = ada.post("/v3/functions", body).done()["function_uuid"]

    bob.get(f"/v2/functions/{function_id}").refused(403, "FUNCTION_ACCESS_FORBIDDEN")
    auth.add_to_group(service.database, "analysts", "bob")
    bob.get(f"/v2/functions/{function_id}").done()


def test_a_deleted_function_is_gone_and_says_so(ada: Person) -> None:
    function_id = ada.function()

    ada.delete(f"/v2/functions/{function_id}").done()

    assert "was deleted" in ada.get(f"/v2/functions/{function_id}").refused(404, "FUNCTION_NOT_FOUND")
    assert ada.get("/v2/functions").done()["functions"] == []


def test_functions_are_found_by_words_of_name_description_and_metadata(ada: Person) -> None:
    wanted = ada.function(function_name="fit", description="Least squares, 100%", meta={"field": "optics"})
    ada.function(function_name="plot")

    for search in ("FIT", "squares least", "optics", "100%"):
        found = ada.get("/v2/functions", query_string={"search": search}).done()["functions"]
        assert [each["function_uuid"] for each in found] == [wanted], search
    assert ada.get("/v2/functions?search=1_0").done()["functions"] == []


def test_scopes_tell_my_functions_from_shared_ones(ada: Person, bob: Person) -> None:
    mine, shared = ada.function(), bob.function(public=True)
    bob.function()

    found = {
        scope: {each["function_uuid"] for each in ada.get(f"/v2/functions?scope={scope}").done()["functions"]}
        for scope in ("mine", "shared", "all")
    }

    assert found == {"mine": {mine}, "shared": {shared}, "all": {mine, shared}}


def test_pages_follow_each_other_without_gap_or_overlap(ada: Person) -> None:
    ids = [ada.function() for _ in range(5)]

    seen: list[str] = []
    query: dict[str, Any] = {"limit": 2}
    while True:
        page = ada.get("/v2/functions", query_string=query).done()
        seen += [each["function_uuid"] for each in page["functions"]]
        if page["next"] is None:
            break
        query["after"] = page["next"]

    assert seen == ids[::-1]


@pytest.mark.parametrize("query", ["after=nonsense", "limit=0", "limit=1001", "limit=x", "scope=theirs", "search=%00"])
def test_a_wrong_parameter_is_named(ada: Person, query: str) -> None:
    message = ada.get(f"/v2/functions?{query}").refused(422, "SEMANTICALLY_INVALID")

    assert f"{query.partition('=')[0]}:" in message
