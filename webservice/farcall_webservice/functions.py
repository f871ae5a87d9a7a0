"""Functions: register, show, find, delete."""

from __future__ import annotations

import time
import uuid
from typing import Any

from flask import g
from sqlalchemy import Connection, Row, String, and_, cast, insert, or_, select, update
from sqlalchemy.sql import ColumnElement

from farcall.errors import WireError
from farcall.wire import pack_buffers, unpack_buffers
from farcall_webservice import access
from farcall_webservice.auth import Caller
from farcall_webservice.errors import ApiError, invalid
from farcall_webservice.extensions import services
from farcall_webservice.fields import iso
from farcall_webservice.models import Function
from farcall_webservice.openapi import Blueprint
from farcall_webservice.schemas import (
    EXAMPLE_ID,
    FunctionDocument,
    FunctionRegistered,
    FunctionRegistration,
    FunctionsAnswer,
    FunctionsQuery,
    ResultAnswer,
)

blueprint = Blueprint("functions", __name__, description="Registered callables.")

_EXAMPLE = {
    "function_name": "add",
    "function_code": pack_buffers(["st\nadd:def add(a, b):\n    return a + b\n"]),
    "serialized": True,
    "meta": {"python_version": "3.11.7", "serde_identifier": "st"},
    "description": "Adds two numbers.",
}


@blueprint.operation(
    "POST",
    "/v3/functions",
    id="registerFunction",
    body=FunctionRegistration,
    body_example=_EXAMPLE,
    answer=FunctionRegistered,
    example={"function_uuid": EXAMPLE_ID},
    failures=(403,),
)
def register_function(body: dict[str, Any]) -> dict[str, Any]:
    """Register a function; every registration makes a new id"""
    return {"function_uuid": _register(g.caller, body)}


@blueprint.operation(
    "POST",
    "/v2/functions",
    id="registerFunctionOld",
    body=FunctionRegistration,
    body_example=_EXAMPLE,
    answer=FunctionRegistered,
    example={"function_uuid": EXAMPLE_ID},
    failures=(403,),
)
def register_function_old(body: dict[str, Any]) -> dict[str, Any]:
    """Register a function, as older clients do"""
    return {"function_uuid": _register(g.caller, body)}


@blueprint.operation("GET", "/v2/functions", id="findFunctions", query=FunctionsQuery, answer=FunctionsAnswer)
def find_functions(query: dict[str, Any]) -> dict[str, Any]:
    """Functions that you may use, newest first"""
    caller: Caller = g.caller
    scopes = {
        "mine": Function.owner_id == caller.id,
        "shared": access.shared_functions_with(caller),
        "all": access.usable_functions_of(caller),
    }
    wanted = select(*_SUMMARY).where(scopes[query["scope"]], Function.deleted_at.is_(None))
    for word in (query["search"] or "").split():
        wanted = wanted.where(
            or_(
                Function.name.icontains(word, autoescape=True),
                Function.description.icontains(word, autoescape=True),
                cast(Function.details, String).icontains(word, autoescape=True),
            )
        )
    with services().database.reading() as connection:
        if query["after"] is not None:
            wanted = wanted.where(_older_than(connection, query["after"]))
        wanted = wanted.order_by(Function.created_at.desc(), Function.id.desc()).limit(query["limit"])
        rows = connection.execute(wanted).all()
    return {
        "functions": [_document(row) for row in rows],
        "next": rows[-1].id if len(rows) == query["limit"] else None,
    }


@blueprint.operation(
    "GET", "/v2/functions/<id:function_id>", id="getFunction", answer=FunctionDocument, failures=(403, 404)
)
def get_function(function_id: str) -> dict[str, Any]:
    """A function with its code"""
    with services().database.reading() as connection:
        row = access.usable_function(connection, g.caller, function_id)
    return {**_document(row), "function_code": row.code}


@blueprint.operation(
    "DELETE", "/v2/functions/<id:function_id>", id="deleteFunction", answer=ResultAnswer, failures=(403, 404)
)
def delete_function(function_id: str) -> dict[str, Any]:
    """Delete a function; tasks that were submitted before still run"""
    with services().database.writing() as connection:
        access.owned_function(connection, g.caller, function_id)
        connection.execute(update(Function).where(Function.id == function_id).values(deleted_at=time.time()))
    return {"result": 302}


def _register(caller: Caller, body: dict[str, Any]) -> str:
    if body["group"] is not None:
        access.check_group(caller, body["group"])
    function_id = str(uuid.uuid4())
    row = {
        "id": function_id,
        "owner_id": caller.id,
        "name": body["function_name"],
        "description": body["description"],
        "code": _packed_code(body),
        "details": body["meta"] or body["metadata"],
        "public": bool(body["public"]),
        "group_id": body["group"],
        "created_at": time.time(),
    }
    with services().database.writing() as connection:
        connection.execute(insert(Function), row)
    return function_id


def _packed_code(body: dict[str, Any]) -> str:
    code: str = body["function_code"]
    limit = services().config.max_function_bytes
    size = len(code.encode())
    if size > limit:
        raise ApiError(
            413,
            "FUNCTION_TOO_LARGE",
            f"Function {body['function_name']!r} takes {size} bytes, the limit is {limit}: "
            "keep large data out of the function and pass a path or arguments",
        )
    if not body["serialized"]:
        # The serialised form of plain source text: its identifier, the name, the text.
        return pack_buffers([f"st\n{body['function_name']}:{code}"])
    try:
        buffers = unpack_buffers(code)
    except WireError as error:
        raise invalid(f"function_code: {error}") from error
    if len(buffers) != 1:
        raise invalid(f"function_code: one packed buffer is needed, {len(buffers)} are there")
    return code


def _older_than(connection: Connection, cursor: str) -> ColumnElement[bool]:
    at = connection.execute(select(Function.created_at).where(Function.id == cursor)).scalar()
    if at is None:
        raise invalid("after: it has to be `next` of the answer before")
    return or_(Function.created_at < at, and_(Function.created_at == at, Function.id < cursor))


_SUMMARY = (
    Function.id,
    Function.owner_id,
    Function.name,
    Function.description,
    Function.details,
    Function.public,
    Function.group_id,
    Function.created_at,
)


def _document(row: Row[Any]) -> dict[str, Any]:
    return {
        "function_uuid": row.id,
        "function_name": row.name,
        "description": row.description,
        "metadata": row.details or {},
        "owner": row.owner_id,
        "public": row.public,
        "group": row.group_id,
        "created_at": iso(row.created_at),
    }
