"""A function's source text, where the text alone is the whole function."""

from __future__ import annotations

import builtins
import zlib
from collections.abc import Callable, Collection, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

_LAZY_ANNOTATIONS = "from __future__ import annotations\n"


def self_contained_source(function: object) -> str | None:
    """The text of a plain ``def`` that needs nothing around it; None for everything else.

    Such a text works with any version of Python, which pickled code does not. A function that closes over a variable,
    uses its module's names, is decorated, or whose file changed since it was loaded, is more than its text.
    """
    if not isinstance(function, FunctionType) or function.__closure__ or hasattr(function, "__wrapped__"):
        return None
    source = _plain_def(function)
    if source is None or not global_names(function.__code__) <= {*vars(builtins), function.__name__}:
        return None
    return source


def function_from_source(name: str, source: str) -> Callable[..., Any]:
    """Run the text in a namespace of its own and take the function out of it."""
    # The name makes classes that the function defines travel back by value, as those of a script do.
    namespace: dict[str, Any] = {"__name__": "__main__"}
    # One file name for each text, so that a traceback shows the right lines.
    code = compile(source, f"<source of {name}, {zlib.crc32(source.encode()):08x}>", "exec", dont_inherit=True)
    _remember_lines(code.co_filename, source)
    exec(code, namespace)
    function: Callable[..., Any] = namespace[name]
    return function


def global_names(code: CodeType) -> set[str]:
    """Every name that the code, or code inside it, may look up among its module's globals."""
    import dis

    return {
        str(instruction.argval)
        for part in _with_inner(code)
        for instruction in dis.get_instructions(part)
        # A class body looks its names up in itself first.
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }


def _plain_def(function: FunctionType) -> str | None:
    import ast
    import inspect
    import textwrap

    try:
        source = textwrap.dedent(inspect.getsource(function))
        (statement,) = ast.parse(source).body
    except (OSError, TypeError, SyntaxError, ValueError, IndexError):
        return None
    if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef) or statement.decorator_list:
        return None
    if statement.name != function.__name__ or not _defaults_are_literals(statement.args):
        return None
    # An annotation may name what only the module knows. Nothing here evaluates it.
    source = _LAZY_ANNOTATIONS + source
    return source if _is_text_of(source, function) else None


def _defaults_are_literals(arguments: Any) -> bool:
    import ast

    try:
        for default in (*arguments.defaults, *(default for default in arguments.kw_defaults if default is not None)):
            ast.literal_eval(default)
    except ValueError:
        return False
    return True


def _is_text_of(source: str, function: FunctionType) -> bool:
    """Whether compiling the text gives the function's own code: the file may have changed since it was loaded."""
    wanted = function.__code__
    # The compiler writes `time.sleep` otherwise in a module that has imported `time` itself, even where the function's
    # own import hides that one. What else the module has imported cannot be seen, so either is tried.
    local_names = {name for part in _with_inner(wanted) for name in part.co_varnames}
    hidden = {name for name in local_names if name in function.__globals__}
    modules = {name for name in hidden if isinstance(function.__globals__[name], ModuleType)}
    return any(_same_code(code, wanted) for names in (modules, hidden) for code in _compiled(source, names))


def _compiled(source: str, imported: Collection[str]) -> Iterator[CodeType]:
    """The codes that stand in a module with this text, and with an import of these names for the comparison alone."""
    if imported:
        source = f"{source}\nimport {', '.join(sorted(imported))}\n"
    module = compile(source, "<source>", "exec", dont_inherit=True)
    return (code for code in module.co_consts if isinstance(code, CodeType))


def _same_code(one: CodeType, other: CodeType) -> bool:
    if (one.co_name, one.co_code, one.co_names) != (other.co_name, other.co_code, other.co_names):
        return False
    if len(one.co_consts) != len(other.co_consts):
        return False
    return all(map(_same_constant, one.co_consts, other.co_consts))


def _same_constant(one: object, other: object) -> bool:
    if isinstance(one, CodeType) and isinstance(other, CodeType):
        return _same_code(one, other)
    return type(one) is type(other) and one == other


def _with_inner(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_inner(constant)


def _remember_lines(filename: str, source: str) -> None:
    """Let tracebacks show the lines of code that has no file."""
    import linecache

    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
