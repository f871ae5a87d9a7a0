"""What the agent remembers when its files were cut, lost or emptied: all of it, what it knew earlier, or a clear no."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from farcall.wire import BatchedTask, FunctionCode, TaskBatch
from farcall_endpoint import journalfile
from farcall_endpoint.attempts import Attempt
from farcall_endpoint.journal import Journal, JournalError, Unfinished

NAME = "journal.sqlite"
WAL, SHM = f"{NAME}-wal", f"{NAME}-shm"

#: More than fits onto a page, so that there are pages of nothing but payload.
PAYLOADS = {f"task-{n}": f"payload {n} " * (3000 if n % 5 == 0 else 3) for n in range(40)}


def batch(first: int, last: int) -> TaskBatch:
    ids = list(PAYLOADS)[first:last]
    return TaskBatch({"f": FunctionCode("code " * 2000)}, [BatchedTask(key, "f", PAYLOADS[key]) for key in ids])


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files as an agent leaves them that was killed: some tasks in the main file, the later ones beside it."""
    directory = tmp_path_factory.mktemp("killed")
    journal = Journal(directory / NAME)
    journal.accept(batch(0, 20))
    journal._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for first in range(20, 40, 4):
        journal.accept(batch(first, first + 4))
    journal.hand_over(["task-1", "task-2"])
    left = tmp_path_factory.mktemp("left")
    for name in (NAME, WAL, SHM):
        shutil.copy(directory / name, left / name)
    journal.close()
    return left


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file as an agent leaves it that was stopped in order."""
    directory = tmp_path_factory.mktemp("stopped")
    journal = Journal(directory / NAME)
    journal.accept(batch(0, 40))
    journal.close()
    assert [path.name for path in directory.iterdir()] == [NAME]
    return directory


def copied(source: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target / NAME


def found_in(path: Path) -> tuple[dict[str, str], bool]:
    """The tasks that a journal knows, and whether it says that some may be missing. Raises JournalError."""
    journal = Journal(path)
    try:
        return {each.task.task_id: each.task.payload for each in journal.unfinished()[1]}, journal.doubt is not None
    finally:
        journal.close()


def cuts(size: int, seed: int) -> Iterator[int]:
    """Some places at the end of a page, and some others."""
    chance = random.Random(seed)
    whole_pages = range(0, size, 4096)
    yield from sorted({0, 1, 511, 512, *chance.sample(whole_pages, 15), *(chance.randrange(size) for _ in range(15))})


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_main_file_cut_anywhere_is_refused_with_advice_unless_what_it_lacks_is_in_the_other(
    how: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source: Path = request.getfixturevalue(how)
    refusals = 0
    for cut in cuts((source / NAME).stat().st_size, 1):
        path = copied(source, tmp_path / "copy")
        with path.open("r+b") as file:
            file.truncate(cut)

        # Looking at it does not make it look well.
        for _ in range(2):
            try:
                assert found_in(path) == (PAYLOADS, False), f"cut at {cut}"
            except JournalError as error:
                refusals += 1
                assert "start again: the service sends the tasks again" in str(error), f"cut at {cut}"
    assert refusals > 10


def test_a_wal_file_cut_anywhere_leaves_what_was_known_earlier_and_a_doubt(killed: Path, tmp_path: Path) -> None:
    size = (killed / WAL).stat().st_size
    seen = set()
    for cut in cuts(size, 2):
        path = copied(killed, tmp_path / "copy")
        with (tmp_path / "copy" / WAL).open("r+b") as file:
            file.truncate(cut)

        known, doubted = found_in(path)

        assert known == {key: PAYLOADS[key] for key in list(PAYLOADS)[: len(known)]}, f"cut at {cut}"
        assert len(known) >= 20, f"cut at {cut}"
        assert doubted, f"cut at {cut}"
        seen.add(len(known))
    assert len(seen) > 3


@pytest.mark.parametrize("harm", ["removed", "emptied", "zeroed", "with its index"])
def test_a_lost_wal_file_leaves_what_was_known_earlier_and_a_doubt(killed: Path, tmp_path: Path, harm: str) -> None:
    path = copied(killed, tmp_path / "copy")
    wal = tmp_path / "copy" / WAL
    if harm == "emptied":
        wal.write_bytes(b"")
    elif harm == "zeroed":
        wal.write_bytes(bytes(wal.stat().st_size))
    else:
        wal.unlink()
        if harm == "with its index":
            (tmp_path / "copy" / SHM).unlink()

    known, doubted = found_in(path)

    assert known == {key: PAYLOADS[key] for key in list(PAYLOADS)[:20]}
    assert doubted


def test_what_a_kill_leaves_is_all_there_and_beyond_doubt(killed: Path, tmp_path: Path) -> None:
    assert found_in(copied(killed, tmp_path / "copy")) == (PAYLOADS, False)


def test_a_kill_right_after_the_start_is_beyond_doubt(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    journal = Journal(tmp_path / "first" / NAME)
    path = copied(tmp_path / "first", tmp_path / "copy")
    journal.close()

    assert found_in(path) == ({}, False)


def test_what_must_not_start_twice_counts_as_started_where_there_is_doubt(
    killed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copied(killed, tmp_path / "copy")
    boot = tmp_path / "boot_id"
    boot.write_text("another\n")
    monkeypatch.setattr(journalfile, "_BOOT_ID", boot)

    journal = Journal(path)

    assert "the machine was started again" in (journal.doubt or "")
    assert all(each.handed_over for each in journal.unfinished()[1])
    journal.close()


def test_pages_that_became_zeros_are_noticed(stopped: Path, tmp_path: Path) -> None:
    size = (stopped / NAME).stat().st_size
    for page in range(0, size, 3 * 4096):
        path = copied(stopped, tmp_path / "copy")
        with path.open("r+b") as file:
            file.seek(page)
            file.write(bytes(4096))

        with pytest.raises(JournalError, match="start again"):
            found_in(path)


def test_a_main_file_that_is_gone_while_the_other_is_there_is_refused(killed: Path, tmp_path: Path) -> None:
    path = copied(killed, tmp_path / "copy")
    path.unlink()

    with pytest.raises(JournalError, match=r"there is a journal\.sqlite-wal without it"):
        Journal(path)

    assert (tmp_path / "copy" / WAL).exists()


def test_an_unfinished_attempt_to_make_a_journal_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.new").write_bytes(b"half of one")

    assert found_in(tmp_path / NAME) == ({}, False)


FIRST_VERSION = """
CREATE TABLE tasks (
    id INTEGER PRIMARY KEY,
    task_id TEXT NOT NULL UNIQUE,
    function_id TEXT NOT NULL,
    payload BLOB NOT NULL,
    options TEXT,
    attempts INTEGER NOT NULL DEFAULT 0,
    state INTEGER NOT NULL DEFAULT 0,
    result TEXT,
    sent_at REAL
);
CREATE INDEX held ON tasks (function_id) WHERE state = 0;
CREATE INDEX finished ON tasks (id) WHERE state = 1;
CREATE INDEX sent ON tasks (sent_at, length(result)) WHERE state = 2;
CREATE TABLE functions (function_id TEXT PRIMARY KEY, code BLOB NOT NULL, python_version TEXT);
INSERT INTO functions VALUES ('f', x'636f6465', '3.11.7');
INSERT INTO tasks (task_id, function_id, payload, options, attempts) VALUES ('a', 'f', x'61', '{"x": 1}', 1);
INSERT INTO tasks (task_id, function_id, payload, state, result) VALUES ('b', 'f', x'', 1, 'result of b');
INSERT INTO tasks (task_id, function_id, payload, state, result, sent_at) VALUES ('c', 'f', x'', 2, 'result of c', 1.0);
PRAGMA user_version = 1;
"""


def test_a_journal_of_the_first_version_is_brought_up_to_date_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / NAME
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode = WAL")
    db.executescript(FIRST_VERSION)
    db.close()

    journal = Journal(path)
    functions, tasks = journal.unfinished()
    journal.attempted([Attempt("a", 5, "attempt 2 of 3 ended")])
    again = journal.accept(TaskBatch({"f": FunctionCode("code")}, [BatchedTask("c", "f", "payload")]))

    assert functions == {"f": FunctionCode("code", "3.11.7")}
    assert tasks == [Unfinished(BatchedTask("a", "f", "a", {"x": 1}), 1)]
    assert journal.doubt is None
    assert again == []
    assert journal.unsent(most=10, most_bytes=1000) == [("b", "result of b"), ("c", "result of c")]
    journal.close()
    assert Journal(path).unfinished()[1][0].notes == (Attempt("a", 5, "attempt 2 of 3 ended"),)


def test_every_version_leads_to_the_same_tables(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / NAME)
    db.executescript(FIRST_VERSION)
    db.close()
    old, new = Journal(tmp_path / NAME), Journal(tmp_path / "new.sqlite")

    def tables(journal: Journal) -> list[tuple[str, list[tuple[object, ...]]]]:
        names = [name for (name,) in journal._db.execute("SELECT name FROM sqlite_master ORDER BY name")]
        return [(name, journal._db.execute(f"PRAGMA table_info('{name}')").fetchall()) for name in names]

    assert tables(old) == tables(new)
