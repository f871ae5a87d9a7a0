"""A batch system that outlives agents, and a provider for it: what the tests of wild blocks stand on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from farcall_endpoint.provider import BlockSpec, BlockState, Provider, ProviderConfig, ProviderError, SystemUnavailable


@dataclass
class Job:
    owner: str
    state: BlockState
    said: str = ""
    is_known: bool = True


class System:
    """Its jobs run nothing; what becomes of each is for the test to say. Counts what is asked of it."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.submits = 0
        #: What a job is from the beginning.
        self.fate = Job("", BlockState.PENDING)
        self.refusal = ""
        self.is_down = False
        self.loses_answers = False
        self.keeps_jobs = ""
        self._news = threading.Condition()

    @property
    def living(self) -> list[str]:
        return [key for key, job in self.jobs.items() if not job.state.has_ended]

    def wait_for(self, what: Callable[[], object], timeout_s: float = 60) -> None:
        with self._news:
            assert self._news.wait_for(what, timeout=timeout_s), f"in vain; {self.submits} submits, jobs: {self.jobs}"

    def submit(self, owner: str) -> str:
        with self._news:
            self.submits += 1
            self._news.notify_all()
            self._must_answer()
            if self.refusal:
                raise ProviderError(self.refusal)
            key = str(len(self.jobs) + 1)
            self.jobs[key] = Job(owner, self.fate.state, self.fate.said, self.fate.is_known)
            if self.loses_answers:
                raise SystemUnavailable("the answer to the submit did not come")
            return key

    def states(self, keys: Sequence[str]) -> dict[str, BlockState]:
        with self._news:
            self._must_answer()
            self._news.notify_all()
            found = {key: self.jobs.get(key) for key in keys}
            return {key: job.state if job and job.is_known else BlockState.UNKNOWN for key, job in found.items()}

    def cancel(self, keys: Sequence[str]) -> None:
        with self._news:
            self._must_answer()
            if self.keeps_jobs:
                raise ProviderError(self.keeps_jobs)
            for key in keys:
                if key in self.living:
                    self.jobs[key].state = BlockState.CANCELLED
            self._news.notify_all()

    def owned(self, owner: str) -> list[str]:
        with self._news:
            self._must_answer()
            return [key for key in self.living if self.jobs[key].owner == owner and self.jobs[key].is_known]

    def _must_answer(self) -> None:
        if self.is_down:
            raise SystemUnavailable("the scheduler does not answer")


class SystemProvider(Provider):
    """Its states are asked for often, so that tests are short."""

    needs_network = False
    poll_period_s = 1

    def __init__(self, system: System) -> None:
        super().__init__(ProviderConfig())
        self._system = system

    def submit(self, spec: BlockSpec) -> str:
        return self._system.submit(spec.owner)

    def states(self, block_ids: Sequence[str]) -> dict[str, BlockState]:
        return self._system.states(block_ids)

    def cancel(self, block_ids: Sequence[str]) -> None:
        self._system.cancel(block_ids)

    def owned(self, owner: str) -> list[str]:
        return self._system.owned(owner)

    def output(self, block_id: str) -> str:
        return self._system.jobs[block_id].said

    def reason(self, block_id: str) -> str:
        return self._system.jobs[block_id].said
