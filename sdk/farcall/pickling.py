"""Python objects as bytes: by reference where that is enough, whole where the other side could not import them."""

from __future__ import annotations

import io
import pickle
import sys
from functools import cache
from types import CellType, FunctionType
from typing import Any

from farcall import counterparts
from farcall.source import global_names

PROTOCOL = 4  # what every Python since 3.4 reads
_BY_VALUE_MODULES = (None, "__main__")


def dump(value: Any) -> bytes:
    """Pickle anything that pickle or dill can. Functions and classes of a script or notebook go along whole."""
    buffer = io.BytesIO()
    try:
        _ByReference(buffer, protocol=PROTOCOL).dump(value)
    except Exception:  # whatever pickle cannot do is dill's to do or to explain
        return dump_whole(value)
    return buffer.getvalue()


def dump_whole(value: Any) -> bytes:
    """As :func:`dump`, for what is known to need dill."""
    buffer = io.BytesIO()
    _dill_pickler()(buffer).dump(value)
    return buffer.getvalue()


def load(pickled: bytes) -> Any:
    # dill's own loader is written in Python and slow; it is needed only for what dill alone can write.
    needs_dill = b"dill" in pickled or b"__builtin__" in pickled or b"__main__" in pickled
    if counterparts.PACKAGE in pickled:
        return counterparts.load(pickled, with_dill=needs_dill)
    if not needs_dill:
        return pickle.loads(pickled)
    import dill

    return dill.loads(pickled)


class _ByReference(pickle.Pickler):
    """The standard pickler, which gives up at the first thing that the other side could not import."""

    def reducer_override(self, obj: Any) -> Any:
        named = obj if isinstance(obj, type | FunctionType) else type(obj)
        if getattr(named, "__module__", None) in _BY_VALUE_MODULES:
            raise pickle.PicklingError("must travel by value")
        return NotImplemented


@cache
def _dill_pickler() -> Any:
    import dill

    class WholeFunctions(dill.Pickler):  # type: ignore[misc]  # dill has no types
        """dill's pickler, which sends of a function's globals those that the function uses.

        dill by itself sends none of a script's globals, or, told to ``recurse``, does not end with two functions that
        call each other. So it is handed a stand-in for each function whose globals are only those.
        """

        dispatch = type(dill.Pickler.dispatch)(dill.Pickler.dispatch)

        def __init__(self, file: io.BytesIO) -> None:
            super().__init__(file, protocol=PROTOCOL, byref=False, recurse=False)
            self.stand_ins = _StandIns()

    save_function = dill.Pickler.dispatch[FunctionType]

    def save(pickler: Any, function: FunctionType) -> None:
        if pickler.stand_ins.has(function):
            save_function(pickler, function)
        elif _is_importable(function):
            pickler.save_global(function, name=function.__qualname__)
        else:
            # The stand-in comes back here, unless the pickler has seen it before.
            pickler.save(pickler.stand_ins.of(function))

    WholeFunctions.dispatch[FunctionType] = save
    return WholeFunctions


class _StandIns:
    """For each function of one pickle a copy with small globals; functions that know each other keep doing so."""

    def __init__(self) -> None:
        self._by_original: dict[int, FunctionType] = {}
        self._ids: set[int] = set()
        self._cells: dict[int, CellType] = {}
        # An id is only good while its object lives.
        self._kept: list[object] = []

    def has(self, function: FunctionType) -> bool:
        return id(function) in self._ids

    def of(self, function: FunctionType) -> FunctionType:
        stand_in = self._by_original.get(id(function))
        return stand_in if stand_in is not None else self._make(function)

    def _make(self, function: FunctionType) -> FunctionType:
        available = function.__globals__
        small = {name: available[name] for name in sorted(global_names(function.__code__)) if name in available}
        closure = function.__closure__ and tuple(self._cell(cell) for cell in function.__closure__)
        stand_in = FunctionType(function.__code__, small, function.__name__, function.__defaults__, closure)
        stand_in.__qualname__ = function.__qualname__
        stand_in.__module__ = function.__module__
        stand_in.__doc__ = function.__doc__
        stand_in.__kwdefaults__ = function.__kwdefaults__
        stand_in.__annotations__ = function.__annotations__
        stand_in.__dict__.update(function.__dict__)
        self._by_original[id(function)] = stand_in
        self._ids.add(id(stand_in))
        self._kept += function, stand_in
        self._fill(function.__closure__ or ())
        return stand_in

    def _cell(self, cell: CellType) -> CellType:
        """The cell itself, or an empty one of the stand-ins where it holds a function that will have one."""
        if not _holds_function(cell):
            return cell
        if id(cell) not in self._cells:
            self._cells[id(cell)] = CellType()
            self._kept.append(cell)
        return self._cells[id(cell)]

    def _fill(self, cells: tuple[CellType, ...]) -> None:
        for cell in cells:
            own = self._cells.get(id(cell))
            if own is not None and not _is_filled(own):
                own.cell_contents = self.of(cell.cell_contents)


def _holds_function(cell: CellType) -> bool:
    if not _is_filled(cell) or not isinstance(cell.cell_contents, FunctionType):
        return False
    return not _is_importable(cell.cell_contents)


def _is_filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018  # an empty cell has no other way to say so
    except ValueError:
        return False
    return True


def _is_importable(function: FunctionType) -> bool:
    if function.__module__ in _BY_VALUE_MODULES:
        return False
    found: Any = sys.modules.get(function.__module__)
    for name in function.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is function
