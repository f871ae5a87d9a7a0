"""What waits in the engine: a queue for each kind of task, and what is known of the functions.

Not for several threads at a time.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from farcall.wire import FunctionCode

from . import chunking
from .held import Held, Kind

#: Functions whose run time is remembered, and whose code is kept although no task of theirs is here.
MOST_ESTIMATES = 10_000
MOST_FUNCTIONS = 500


class Backlog:
    """Tasks that have not been handed over, in the order in which they came or came back."""

    def __init__(self) -> None:
        self._functions: dict[str, FunctionCode] = {}
        self._queues: OrderedDict[Kind, deque[Held]] = OrderedDict()
        self._estimates: OrderedDict[str, float] = OrderedDict()
        self._number = 0

    def __len__(self) -> int:
        return self._number

    def __iter__(self) -> Iterator[Held]:
        return (held for queue in self._queues.values() for held in queue)

    @property
    def kinds(self) -> Collection[Kind]:
        """Of all that waits; the first has waited for its turn for the longest time."""
        return self._queues.keys()

    def waiting(self, kind: Kind) -> int:
        return len(self._queues.get(kind, ()))

    def code(self, kind: Kind) -> FunctionCode:
        return self._functions[kind.function_id]

    def learn(self, functions: Mapping[str, FunctionCode], *, in_use: Callable[[], Collection[str]]) -> None:
        """Keep the code of functions; that of others is forgotten in time, but for those that are in use."""
        self._functions.update(functions)
        if len(self._functions) > MOST_FUNCTIONS:
            needed = {*functions, *in_use(), *(kind.function_id for kind in self._queues)}
            self._functions = {key: code for key, code in self._functions.items() if key in needed}

    def observe(self, function_id: str, sample_s: float) -> None:
        """A task of that function took so long."""
        self._estimates[function_id] = chunking.estimate(self._estimates.get(function_id), sample_s)
        self._estimates.move_to_end(function_id)
        if len(self._estimates) > MOST_ESTIMATES:
            self._estimates.popitem(last=False)

    def add(self, held: Held) -> None:
        self._queue(held.kind).append(held)
        self._number += 1

    def put_back(self, kind: Kind, code: FunctionCode, tasks: Sequence[Held]) -> None:
        """To the front of their queue, in their order."""
        if tasks:
            # While the call was on its way to its end, nobody seemed to need its function.
            self._functions.setdefault(kind.function_id, code)
            self._queue(kind).extendleft(reversed(tasks))
            self._number += len(tasks)

    def take(self, kind: Kind, *, free_calls: int) -> list[Held]:
        """The tasks of the next call."""
        queue = self._queues[kind]
        number = 1
        if not (queue[0].alone or kind.once):
            estimate = self._estimates.get(kind.function_id)
            number = chunking.tasks_per_call(estimate, waiting=len(queue), free_calls=free_calls)
            number = chunking.within_bytes([len(queue[n].task.payload) for n in range(min(number, len(queue)))])
        taken: list[Held] = []
        while queue and len(taken) < number and not (taken and queue[0].alone):
            taken.append(queue.popleft())
        self._number -= len(taken)
        if not queue:
            del self._queues[kind]
        return taken

    def let_others_go_first(self, kind: Kind) -> None:
        """So that a long queue of one does not keep out all others."""
        if kind in self._queues:
            self._queues.move_to_end(kind)

    def remove(self, task_ids: Collection[str]) -> list[Held]:
        """Take out those of these that wait here."""
        removed: list[Held] = []
        for kind, queue in list(self._queues.items()):
            found = [held for held in queue if held.task.task_id in task_ids]
            if found:
                removed += found
                self._queues[kind] = deque(held for held in queue if held.task.task_id not in task_ids)
                if not self._queues[kind]:
                    del self._queues[kind]
        self._number -= len(removed)
        return removed

    def clear(self) -> list[Held]:
        """Take out everything."""
        removed = list(self)
        self._queues.clear()
        self._number = 0
        return removed

    def _queue(self, kind: Kind) -> deque[Held]:
        return self._queues.setdefault(kind, deque())
