"""One side reads what only the other side has."""

from __future__ import annotations

import pickle
import subprocess
import sys

import dill
import pytest

from farcall import ShellFunction, ShellResult, pickling
from farcall.hardware import hardware_report


class GlobalsOf:
    """A class by the name that it has in the other SDK."""

    def __init__(self, module: str, name: str) -> None:
        self._named = type(name, (), {"__module__": module})

    def pickle(self, state: dict[str, object], *, with_dill: bool = False) -> bytes:
        module, name = self._named.__module__, self._named.__name__
        # The opcodes of a pickle of an instance: the class, an empty tuple, NEWOBJ, the state, BUILD.
        body = b"c" + module.encode() + b"\n" + name.encode() + b"\n)\x81"
        body += pickle.dumps(state, 2)[2:-1] + b"b."
        return b"\x80\x02" + (b"cdill._dill\n_load_type\n0" if with_dill else b"") + body


STATE = {"cmd": "true", "stdout": "", "stderr": "", "returncode": 0, "exception_name": None}


@pytest.mark.parametrize("with_dill", [False, True])
def test_their_shell_result_is_read_as_ours_where_theirs_is_not_installed(with_dill: bool) -> None:
    written = GlobalsOf("globus_compute_sdk.sdk.shell_function", "ShellResult").pickle(STATE, with_dill=with_dill)

    assert pickling.load(written) == ShellResult("true", "", "", 0)


def test_their_shell_function_runs_as_ours() -> None:
    state = {**vars(ShellFunction("echo {word}")), "cmd": "echo {word}"}
    written = GlobalsOf("globus_compute_sdk.sdk.shell_function", "ShellFunction").pickle(state)

    assert pickling.load(written)(word="hi").stdout == "hi\n"


def test_their_hardware_report_is_ours() -> None:
    written = b"cglobus_compute_sdk.sdk.hardware_report\nrun_hardware_report\n."

    assert pickling.load(written) is hardware_report


def test_what_has_no_counterpart_is_still_said_to_be_missing() -> None:
    with pytest.raises(ModuleNotFoundError, match="globus_compute_sdk"):
        pickling.load(b"cglobus_compute_sdk.sdk.client\nClient\n.")


@pytest.mark.parametrize("value", [ShellFunction("echo {x}", walltime=2.0), ShellResult("c", "o", "e", 1, "E")])
@pytest.mark.parametrize("dump", [pickle.dumps, dill.dumps, pickling.dump, pickling.dump_whole])
def test_ours_come_back_as_ours(value: object, dump) -> None:  # type: ignore[no-untyped-def]
    back = pickling.load(dump(value))

    assert type(back) is type(value)
    assert vars(back) == vars(value)


def test_ours_become_theirs_where_only_theirs_is_installed(tmp_path) -> None:  # type: ignore[no-untyped-def]
    module = tmp_path / "globus_compute_sdk" / "sdk" / "shell_function.py"
    module.parent.mkdir(parents=True)
    module.write_text("class ShellFunction:\n    pass\n")
    read = "import pickle, sys; print(vars(pickle.load(sys.stdin.buffer))['cmd'])"

    # -S leaves out installed packages, ours among them; -E what the environment would add.
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {read}"],
        input=pickle.dumps(ShellFunction("echo {x}")),
        capture_output=True,
        check=True,
        timeout=30,
    )

    assert done.stdout == b"echo {x}\n"


class Derived(ShellFunction):
    """A user's own."""


def test_a_derived_class_travels_as_the_users_own() -> None:
    back = pickling.load(pickling.dump(Derived("true")))

    assert type(back).__name__ == "Derived"
    assert back().returncode == 0
