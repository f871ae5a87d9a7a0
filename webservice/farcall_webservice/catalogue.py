"""What the dispatcher has to know of functions and endpoints, and how tasks are put into messages."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from farcall import wire
from farcall_webservice import foreign
from farcall_webservice.database import Database
from farcall_webservice.models import Endpoint, Function

#: A message holds at most this many tasks, and about this many characters of payload and code.
TASKS_PER_MESSAGE = 1000
CHARACTERS_PER_MESSAGE = 4 * 1024 * 1024
#: So many functions' code is remembered.
FUNCTIONS_REMEMBERED = 1000


@dataclass(frozen=True)
class TaskMessage:
    """A message for a runner's queue."""

    body: bytes
    headers: Mapping[str, Any] | None
    task_ids: Sequence[str]


@dataclass(frozen=True)
class Runner:
    """Who runs tasks."""

    takes_batches: bool
    is_child: bool


class Catalogue:
    """Functions and endpoints, without asking the database for each task."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._codes: OrderedDict[str, wire.FunctionCode] = OrderedDict()

    def codes(self, function_ids: set[str]) -> dict[str, wire.FunctionCode]:
        """Code by function id. It never changes, so what was read once is remembered."""
        found = {function_id: self._codes[function_id] for function_id in function_ids if function_id in self._codes}
        missing = [function_id for function_id in function_ids if function_id not in found]
        if missing:
            with self._database.reading() as connection:
                rows = connection.execute(
                    select(Function.id, Function.code, Function.details).where(Function.id.in_(missing))
                )
                for row in rows:
                    version = (row.details or {}).get("python_version")
                    found[row.id] = wire.FunctionCode(row.code, version if isinstance(version, str) else None)
            self._codes.update({function_id: found[function_id] for function_id in missing})
        for function_id in function_ids:
            self._codes.move_to_end(function_id)
        while len(self._codes) > FUNCTIONS_REMEMBERED:
            self._codes.popitem(last=False)
        return found

    def runner(self, runner_id: str) -> Runner:
        """How a runner wants its tasks. Asked each time: another agent may have taken over."""
        with self._database.reading() as connection:
            row = connection.execute(select(Endpoint.details, Endpoint.parent_id).where(Endpoint.id == runner_id)).one()
        return Runner(foreign.takes_batches(row.details), row.parent_id is not None)

    def messages(self, runner: Runner, tasks: Sequence[wire.BatchedTask]) -> Iterator[TaskMessage]:
        """These tasks in messages that the runner reads."""
        codes = self.codes({task.function_id for task in tasks})
        if runner.takes_batches:
            for part in _parts(tasks, codes):
                functions = {task.function_id: codes[task.function_id] for task in part}
                body = wire.encode(wire.TaskBatch(functions, part))
                yield TaskMessage(body, None, [task.task_id for task in part])
        else:
            for task in tasks:
                yield TaskMessage(*foreign.task_message(task, codes[task.function_id].code), [task.task_id])


def _parts(
    tasks: Sequence[wire.BatchedTask], codes: Mapping[str, wire.FunctionCode]
) -> Iterator[list[wire.BatchedTask]]:
    part: list[wire.BatchedTask] = []
    functions: set[str] = set()
    characters = 0
    for task in tasks:
        added = len(task.payload) + (0 if task.function_id in functions else len(codes[task.function_id].code))
        if part and (len(part) == TASKS_PER_MESSAGE or characters + added > CHARACTERS_PER_MESSAGE):
            yield part
            part, functions, characters = [], set(), 0
            added = len(task.payload) + len(codes[task.function_id].code)
        part.append(task)
        functions.add(task.function_id)
        characters += added
    if part:
        yield part
