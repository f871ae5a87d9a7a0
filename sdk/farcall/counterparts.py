"""What of ours and of Globus Compute's SDK is the same, so that one side can read what only the other side has.

A pickle holds classes by name. A task that Globus's SDK wrote reaches our workers, which need not have that SDK, and
the results of its endpoints reach our clients; and the other way round.
"""

from __future__ import annotations

import copyreg
import importlib
import io
import pickle
from functools import cache
from typing import Any

#: The package whose names stand in pickles that need us.
PACKAGE = b"globus_compute_sdk"

_THEIRS = {
    ("farcall.shell", "ShellFunction"): "globus_compute_sdk.sdk.shell_function",
    ("farcall.shell", "ShellResult"): "globus_compute_sdk.sdk.shell_function",
    ("farcall.mpi", "MPIFunction"): "globus_compute_sdk.sdk.mpi_function",
}
_OURS = {
    **{(theirs, name): (ours, name) for (ours, name), theirs in _THEIRS.items()},
    ("globus_compute_sdk.sdk.hardware_report", "run_hardware_report"): ("farcall.hardware", "hardware_report"),
}

#: Evaluated where it is unpickled: the one piece of Python that both sides certainly have is the interpreter.
_NEW = (
    "(lambda load, find: object.__new__(load({ours!r} if find('farcall') else {theirs!r}).{name}))"
    "(__import__('importlib').import_module, __import__('importlib.util').util.find_spec)"
)


def reduced(instance: Any) -> tuple[Any, ...]:
    """For ``__reduce__``: the instance will be of our class where we are installed, else of theirs."""
    kind = type(instance)
    theirs = _THEIRS.get((kind.__module__, kind.__qualname__))
    if theirs is None:
        # A class that was derived from it is the user's own, and travels as such.
        return copyreg.__newobj__, (kind,), instance.__getstate__()  # type: ignore[attr-defined]  # the stubs lack it
    new = _NEW.format(ours=kind.__module__, theirs=theirs, name=kind.__qualname__)
    return eval, (new,), instance.__getstate__()


def load(pickled: bytes, *, with_dill: bool) -> Any:
    """Unpickle what names :data:`PACKAGE`."""
    return (_dill_reader() if with_dill else _Reader)(io.BytesIO(pickled)).load()


class _Reader(pickle.Unpickler):
    """Takes what is installed, and our counterpart of what is not."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except ImportError:
            ours = _OURS.get((module, name))
            if ours is None:
                raise
            return getattr(importlib.import_module(ours[0]), ours[1])


@cache
def _dill_reader() -> Any:
    import dill

    return type("_DillReader", (_Reader, dill.Unpickler), {})
