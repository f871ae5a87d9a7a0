"""A ledger's file that was cut or replaced: recovered from, or refused with instructions and left as it is."""

from __future__ import annotations

import random
import shutil
import subprocess
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest
from running import BIN, environment_for, running_service
from sqlalchemy import insert

from farcall.errors import ConfigurationError
from farcall_webservice import soundness
from farcall_webservice.database import Database
from farcall_webservice.ledger import Ledger
from farcall_webservice.models import User

ENDPOINT, FUNCTION = str(uuid.uuid4()), str(uuid.uuid4())
SUBMISSIONS, TASKS_EACH = 5, 20


@dataclass
class Used:
    """The files of a ledger that was in use when its service was killed."""

    folder: Path
    path: Path

    def copy_to(self, folder: Path) -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.folder, folder)
        return folder / self.path.name


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Used:
    working, kept = (tmp_path_factory.mktemp(name) for name in ("working", "kept"))
    path = working / "ledger.sqlite"
    database = Database(f"sqlite:///{path}")
    database.migrate()
    owner = str(uuid.uuid4())
    with database.writing() as connection:
        connection.execute(insert(User), {"id": owner, "name": "owner", "created_at": time.time()})
    database.checkpoint()
    ledger = Ledger(database)
    for _ in range(SUBMISSIONS):
        ledger.submit(owner_id=owner, endpoint_id=ENDPOINT, payloads={FUNCTION: ["p" * 50] * TASKS_EACH})
    for each in working.glob("ledger.sqlite*"):
        if not each.name.endswith("-shm"):
            shutil.copy(each, kept)
    database.close()
    return Used(kept, kept / path.name)


def cuts(size: int) -> list[int]:
    """Places at which something may be different, and others."""
    edges = {0, 1, 15, 16, 17, 31, 32, 33, 99, 100, 101, size - 2, size - 1}
    pages = {place + shift for place in range(0, size, 4096) for shift in (0, 1)}
    frames = {32 + place for place in range(0, size, 4120)}
    chance = {random.Random(4).randrange(size) for _ in range(50)}
    return sorted(place for place in edges | set(random.Random(5).sample(sorted(pages | frames), 60)) | chance)


def files_of(path: Path) -> dict[str, bytes]:
    """What is in the files; that SQLite makes an empty one beside them changes nothing."""
    files = {each.name: each.read_bytes() for each in path.parent.iterdir() if not each.name.endswith("-shm")}
    return {name: content for name, content in files.items() if content or name == path.name}


def what_is_left(path: Path) -> tuple[int, int] | None:
    """How many users and tasks are in the ledger; None if it was refused, as it should be."""
    before = files_of(path)
    try:
        soundness.check(path, was_used=True)
    except ConfigurationError as error:
        assert str(path) in str(error)
        assert "backup" in str(error)
        assert files_of(path) == before
        return None
    database = Database(f"sqlite:///{path}")
    database.migrate()
    with database.reading() as connection:
        users = int(connection.exec_driver_sql("SELECT count(*) FROM users").scalar_one())
    tasks = Ledger(database).count_unfinished(ENDPOINT)
    database.close()
    return users, tasks


def test_what_a_killed_service_leaves_is_recovered(used: Used, tmp_path: Path) -> None:
    assert what_is_left(used.copy_to(tmp_path / "l")) == (1, SUBMISSIONS * TASKS_EACH)


def test_a_file_that_was_cut_anywhere_is_refused_or_whole(used: Used, tmp_path: Path) -> None:
    size = used.path.stat().st_size
    found = set()
    for cut in cuts(size):
        path = used.copy_to(tmp_path / "l")
        path.write_bytes(path.read_bytes()[:cut])
        found.add(what_is_left(path))

    assert found <= {None, (1, SUBMISSIONS * TASKS_EACH)}
    assert None in found


def test_of_changes_that_were_cut_anywhere_whole_transactions_are_left(used: Used, tmp_path: Path) -> None:
    name = f"{used.path.name}-wal"
    size = (used.folder / name).stat().st_size
    found = set()
    for cut in cuts(size):
        path = used.copy_to(tmp_path / "l")
        changes = path.with_name(name)
        changes.write_bytes(changes.read_bytes()[:cut])
        found.add(what_is_left(path))

    assert found <= {(1, number * TASKS_EACH) for number in range(SUBMISSIONS + 1)}
    assert len(found) > 3


@pytest.mark.parametrize("which", ["ledger.sqlite", "ledger.sqlite-wal"])
def test_garbage_in_its_place_is_refused(used: Used, tmp_path: Path, which: str) -> None:
    chance = random.Random(1)
    for content in (b"\0" * 10_000, b"PK\x03\x04" + chance.randbytes(5000), chance.randbytes(100_000), b"{}" * 100):
        path = used.copy_to(tmp_path / "l")
        path.with_name(which).write_bytes(content)

        assert what_is_left(path) is None


def test_garbage_in_the_middle_is_refused(used: Used, tmp_path: Path) -> None:
    path = used.copy_to(tmp_path / "l")
    path.with_name("ledger.sqlite-wal").unlink()
    content = bytearray(path.read_bytes())
    content[8192:40960] = random.Random(2).randbytes(32768)
    path.write_bytes(content)

    assert what_is_left(path) is None


def test_a_new_ledger_may_be_missing_or_empty_but_a_used_one_not_empty(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    soundness.check(path, was_used=False)
    soundness.check(path, was_used=True)
    path.touch()
    soundness.check(path, was_used=False)
    with pytest.raises(ConfigurationError, match="it is empty"):
        soundness.check(path, was_used=True)


def test_the_service_says_what_to_do_and_does_not_start_on_a_damaged_ledger(tmp_path: Path) -> None:
    with running_service(tmp_path) as service:
        path = service.home / "service" / "ledger.sqlite"
    content = path.read_bytes()
    for damaged in (b"", content[:-5000], b"garbage" * 1000):
        path.write_bytes(damaged)

        refused = subprocess.run(
            [BIN / "farcall-webservice", "serve", "--port", "0"],
            env=environment_for(tmp_path),
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )

        assert refused.returncode != 0
        assert "is damaged" in refused.stderr
        assert "Traceback" not in refused.stderr
        assert path.read_bytes() == damaged
    path.write_bytes(content)
    with running_service(tmp_path):
        pass
