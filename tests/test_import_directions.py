"""Imports point one way: who may know whom among our packages."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("farcall", "farcall_webservice", "farcall_endpoint", "farcall_provider_")
#: How a statement begins that changes a table, and where the ledger's are made.
WRITE_STATEMENTS = {"insert", "update", "delete"}
LEDGERS_OWN = "farcall_webservice.ledger.tables"
PROVIDER_MAY_IMPORT = {f"farcall_endpoint.{name}" for name in ("provider", "batch", "shell", "hookspecs", "testing")}


def imports_of(path: Path, package: str) -> Iterator[str]:
    """Every module that a file names, with the names taken from packages spelled out."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = f"{package}.{node.module or ''}".rstrip(".") if node.level else node.module or ""
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def modules_of(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def ours(imported: str) -> bool:
    return imported.split(".", maxsplit=1)[0].startswith(OURS)


def within(imported: str, *allowed: str) -> bool:
    return any(imported == name or imported.startswith(f"{name}.") for name in allowed)


@pytest.mark.parametrize(
    "path",
    [ROOT / "sdk/farcall/errors.py", *modules_of("sdk/farcall/wire")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_the_shared_vocabulary_imports_the_standard_library_alone(path: Path) -> None:
    imported = set(imports_of(path, ".".join(path.parent.relative_to(ROOT / "sdk").parts)))

    foreign = {
        each
        for each in imported
        if each.split(".")[0] not in sys.stdlib_module_names and not within(each, "farcall.wire", "farcall.errors")
    }

    assert not foreign


@pytest.mark.parametrize("path", modules_of("sdk/farcall"), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_sdk_knows_neither_service_nor_endpoint(path: Path) -> None:
    strangers = {each for each in imports_of(path, "farcall") if ours(each) and not within(each, "farcall")}

    assert not strangers


@pytest.mark.parametrize(
    "path", modules_of("webservice/farcall_webservice"), ids=lambda path: str(path.relative_to(ROOT))
)
def test_the_service_takes_only_the_vocabulary_and_can_therefore_not_unpickle(path: Path) -> None:
    allowed = ("farcall_webservice", "farcall.wire", "farcall.errors")
    imported = set(imports_of(path, "farcall_webservice"))

    strangers = {each for each in imported if ours(each) and not within(each, *allowed) and each != "farcall"}
    picklers = {each for each in imported if each.split(".")[0] in ("pickle", "dill", "cloudpickle", "marshal")}

    assert not strangers
    assert not picklers


@pytest.mark.parametrize(
    "path", modules_of("endpoint_core/farcall_endpoint"), ids=lambda path: str(path.relative_to(ROOT))
)
def test_the_endpoint_knows_neither_the_service_nor_any_provider_by_name(path: Path) -> None:
    allowed = ("farcall", "farcall_endpoint")

    strangers = {e for e in imports_of(path, "farcall_endpoint") if ours(e) and not within(e, *allowed)}

    assert not strangers


@pytest.mark.parametrize("path", modules_of("providers"), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_provider_stands_on_what_strangers_may_use(path: Path) -> None:
    own = next(part for part in path.parts if part.startswith("farcall_provider_"))

    strangers = {
        each
        for each in imports_of(path, own)
        if ours(each) and not within(each, own, *PROVIDER_MAY_IMPORT) and each != "farcall_endpoint"
    }

    assert not strangers


@pytest.mark.parametrize(
    "path",
    [path for path in modules_of("webservice/farcall_webservice") if path.parent.name not in ("ledger", "versions")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_the_ledger_alone_writes_what_is_known_of_tasks(path: Path) -> None:
    tables = {"Task", "TASKS", "_TASKS", "task"}

    written = {
        argument.id
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in WRITE_STATEMENTS
        for argument in call.args
        if isinstance(argument, ast.Name)
    }

    assert not written & tables
    assert not {name for name in imports_of(path, "farcall_webservice") if within(name, LEDGERS_OWN)}
