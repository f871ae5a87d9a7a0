"""What tasks have printed: pieces of their streams, of which the last part is kept."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from farcall.wire import Output
from farcall_webservice import notices
from farcall_webservice.fields import uuid_text
from farcall_webservice.ledger.book import Book, in_parts, log
from farcall_webservice.ledger.tables import IDS, OUTPUT, TASKS, output, task
from farcall_webservice.ledger.values import LogPart

#: What no database takes. Places are counted in characters, so each is replaced by one.
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
#: Beyond every place that a task can have printed to; a database takes no number that is much larger.
FARTHEST = 2**60


class Printing(Book):
    """See the module."""

    def record_output(self, runner_id: str, pieces: Sequence[Output]) -> set[str]:
        """Keep what a runner's tasks have printed. Returns the ids of the tasks of which there is more to read.

        A piece that comes twice, or overlaps another one, does no harm. Pieces of others' tasks are refused, and
        logged. Of each stream of a task the last :attr:`max_log_characters` are kept.
        """
        rows = _rows(pieces, self.max_log_characters)
        if not rows:
            return set()
        with self._database.writing() as connection:
            known = _known(connection, runner_id, {task_id for task_id, _, _ in rows})
            # Always in the same order, so that two collectors cannot wait for each other.
            kept = [row for (task_id, _, _), row in sorted(rows.items()) if task_id in known]
            if kept:
                connection.execute(_KEEP_SQLITE if self._database.is_sqlite else _KEEP_POSTGRES, kept)
            ends = {(row["task_id"], row["stream"]): row["until"] for row in kept}
            old = [
                {"of": task_id, "from": stream, "before": until - self.max_log_characters}
                for (task_id, stream), until in ends.items()
                if until > self.max_log_characters
            ]
            if old:
                connection.execute(_FORGET_OLD, old)
            if known and not self._database.is_sqlite:
                notices.announce(connection, known)
        return known

    def log_part(self, task_id: str, stream: str, after: int) -> LogPart:
        """What a task has printed, from the first kept character at or after a place, as far as none is missing."""
        question = {"of": task_id, "from": stream, "after": after}
        with self._database.reading() as connection:
            # First whether it has ended: nothing is printed after that.
            has_ended = connection.execute(_COMPLETED_AT, {"of": task_id}).scalar_one_or_none() is not None
            pieces = list(connection.execute(_PIECES, question))
        start = until = after
        texts: list[str] = []
        for piece in pieces:
            if not texts:
                start = until = max(after, piece.start)
            if piece.start > until:
                # Something is missing here. Whoever goes on reading sees it, as this part ends where that begins.
                return LogPart(start, until, "".join(texts), is_all=False)
            if piece.until > until:
                texts.append(piece.text[until - piece.start :])
                until = piece.until
        return LogPart(start, until, "".join(texts), is_all=has_ended)


def _rows(pieces: Sequence[Output], limit: int) -> dict[tuple[str, str, int], dict[str, Any]]:
    """The rows by their keys; of two pieces that begin at the same place the longer one."""
    rows: dict[tuple[str, str, int], dict[str, Any]] = {}
    for piece in pieces:
        task_id = uuid_text(piece.task_id)
        if task_id is None or not piece.text or piece.start > FARTHEST:
            continue
        text = _UNSTORABLE.sub("\ufffd", piece.text[-limit:])
        until = piece.start + len(piece.text)
        key = task_id, piece.stream, until - len(text)
        if key not in rows or rows[key]["until"] < until:
            rows[key] = {"task_id": task_id, "stream": piece.stream, "start": key[2], "until": until, "text": text}
    return rows


def _known(connection: Connection, runner_id: str, task_ids: Collection[str]) -> set[str]:
    """Those of these tasks that the runner has."""
    known = set()
    query = _RUNNER_OF if connection.dialect.name == "sqlite" else _RUNNER_OF_LOCKED
    for some in in_parts(sorted(task_ids)):
        for row in connection.execute(query, {"ids": some}):
            if row.runner_id == runner_id:
                known.add(row.id)
            else:
                log.warning("endpoint %s sent output of task %s, which is not its task", runner_id, row.id)
    return known


_RUNNER_OF = select(task.id, task.runner_id).where(task.id.in_(IDS))
#: So that they are not removed before their output is there, which would stay then.
_RUNNER_OF_LOCKED = _RUNNER_OF.order_by(task.id).with_for_update(read=True, key_share=True)
_sqlite, _postgres = sqlite.insert(OUTPUT), postgresql.insert(OUTPUT)
_KEY = [output.task_id, output.stream, output.start]
_KEEP_SQLITE = _sqlite.on_conflict_do_update(
    index_elements=_KEY,
    set_={"until": _sqlite.excluded.until, "text": _sqlite.excluded.text},
    where=output.until < _sqlite.excluded.until,
)
_KEEP_POSTGRES = _postgres.on_conflict_do_update(
    index_elements=_KEY,
    set_={"until": _postgres.excluded.until, "text": _postgres.excluded.text},
    where=output.until < _postgres.excluded.until,
)
_OF_STREAM = (output.task_id == bindparam("of"), output.stream == bindparam("from"))
_FORGET_OLD = delete(OUTPUT).where(*_OF_STREAM, output.until <= bindparam("before"))
_PIECES = (
    select(output.start, output.until, output.text)
    .where(*_OF_STREAM, output.until > bindparam("after"))
    .order_by(output.start)
)
_COMPLETED_AT = select(TASKS.c.completed_at).where(task.id == bindparam("of"))
