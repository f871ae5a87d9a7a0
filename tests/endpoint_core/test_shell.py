"""Commands run alike on this machine and on one that is reached over SSH."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from servers import needs
from sshd import PrivateSshd, missing_sshd, private_sshd

from farcall_endpoint.provider import SystemUnavailable
from farcall_endpoint.shell import LocalShell, Shell

LARGE = 5_000_000
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateSshd]:
    needs("ssh", missing_sshd)
    with private_sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture(scope="module", params=["here", "over SSH"])
def shell(request: pytest.FixtureRequest) -> Iterator[Shell]:
    if request.param == "here":
        yield LocalShell()
        return
    from farcall_endpoint.ssh import SshShell
    from farcall_endpoint.sshoptions import SshOptions

    shell = SshShell(SshOptions(**request.getfixturevalue("sshd").options))
    yield shell
    shell.close()


def test_a_command_ends_with_its_exit_code_and_what_it_printed(shell: Shell) -> None:
    ran = shell.run(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout_s=PATIENCE_S)

    assert (ran.exit_code, ran.stdout, ran.stderr) == (3, "out\n", "err\n")
    assert ran.said == "err [exit code 3]"


def test_arguments_are_taken_as_they_are(shell: Shell) -> None:
    odd = ["a  b", "$HOME", "`id`", "it's", '"', "*", "a;b", "line\nline", "~", ""]

    ran = shell.run(["printf", "%s|", *odd], timeout_s=PATIENCE_S)

    assert ran.stdout.split("|")[:-1] == odd


def test_a_command_that_is_not_there_is_said_to_be_missing(shell: Shell) -> None:
    ran = shell.run(["no-such-command", "x"], timeout_s=PATIENCE_S)

    assert ran.exit_code == 127
    assert "no-such-command" in ran.said


def test_what_may_not_be_run_ends_with_126(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("no program")

    assert shell.run([str(tmp_path / "plain")], timeout_s=PATIENCE_S).exit_code == 126


def test_a_signal_that_kills_a_command_is_in_its_exit_code(shell: Shell) -> None:
    ran = shell.run(["sh", "-c", "kill -SEGV $$"], timeout_s=PATIENCE_S)

    assert ran.exit_code == 128 + 11


def test_a_command_without_input_finds_it_at_its_end(shell: Shell) -> None:
    assert shell.run(["cat"], timeout_s=PATIENCE_S).stdout == ""


def test_a_large_input_comes_back_whole(shell: Shell) -> None:
    text = ("0123456789" * (LARGE // 10)).encode()

    assert shell.run(["cat"], stdin=text, timeout_s=PATIENCE_S).stdout.encode() == text


def test_a_command_that_does_not_want_all_of_its_input_is_no_error(shell: Shell) -> None:
    ran = shell.run(["sh", "-c", "head -c 3; exit 4"], stdin=b"x" * LARGE, timeout_s=PATIENCE_S)

    assert (ran.exit_code, ran.stdout) == (4, "xxx")


def test_both_streams_are_drained_whichever_is_filled_first(shell: Shell) -> None:
    for first, second in (("", ">&2"), (">&2", "")):
        script = f"head -c {LARGE} /dev/zero {first}; head -c {LARGE} /dev/zero {second}"

        ran = shell.run(["sh", "-c", script], timeout_s=PATIENCE_S)

        assert (len(ran.stdout), len(ran.stderr)) == (LARGE, LARGE)


def test_what_is_no_text_is_shown_as_well_as_can_be(shell: Shell) -> None:
    assert shell.run(["printf", r"\377a"], timeout_s=PATIENCE_S).stdout == "\N{REPLACEMENT CHARACTER}a"


def test_a_command_that_takes_too_long_is_killed_with_what_it_has_started(shell: Shell, tmp_path: Path) -> None:
    fifo = tmp_path / "alive"
    shell.run(["mkfifo", str(fifo)], timeout_s=PATIENCE_S)
    # Both hold the pipe open for writing as long as they live; its reader sees the end when the last has gone.
    script = f"exec 9>{fifo}; sleep 600 & sleep 600"

    with ThreadPoolExecutor() as threads:
        reader = threads.submit(fifo.read_bytes)
        with pytest.raises(SystemUnavailable, match=r"sh on .* did not end"):
            shell.run(["sh", "-c", script], timeout_s=0.5)

        assert reader.result(PATIENCE_S) == b""


def test_short_commands_with_and_without_input_do_not_disturb_each_other(shell: Shell) -> None:
    # Each is over before its input has been said to end, or taken.
    with ThreadPoolExecutor(8) as threads:
        for _ in range(20):
            runs = [
                threads.submit(shell.run, [name], stdin=b"x" * size, timeout_s=PATIENCE_S)
                for name in ("true", "cat")
                for size in (0, 10, 100_000, 1_000_000)
            ]

            assert [len(run.result().stdout) for run in runs] == [0, 0, 0, 0, 0, 10, 100_000, 1_000_000]


def test_many_commands_run_at_a_time(shell: Shell) -> None:
    with ThreadPoolExecutor(25) as threads:
        runs = [threads.submit(shell.run, ["echo", str(number)], timeout_s=PATIENCE_S) for number in range(25)]

        assert [run.result().stdout for run in runs] == [f"{number}\n" for number in range(25)]


def test_a_file_is_written_for_its_owner_alone_with_the_directories_above_it(shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "new directory" / "it's a file"

    shell.write(str(path), b"\0content\n")

    assert path.read_bytes() == b"\0content\n"
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_file_that_cannot_be_written_is_named_with_the_reason(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(SystemUnavailable, match=f"{tmp_path}/file/x cannot be written on .*file"):
        shell.write(f"{tmp_path}/file/x", b"")


def test_the_end_of_a_file_is_read_and_no_file_is_empty(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("first\nlast\n")

    assert shell.tail(f"{tmp_path}/file", 5) == "last\n"
    assert shell.tail(f"{tmp_path}/none", 5) == ""


def test_removing_what_is_not_there_is_no_error(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    shell.remove([f"{tmp_path}/file", f"{tmp_path}/none"])
    shell.remove([])

    assert not (tmp_path / "file").exists()
