"""Blocks as pods, one each: asked for, known by what the cluster tells of them, and ended."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from farcall_endpoint.provider import (
    Access,
    BlockSpec,
    BlockState,
    Finding,
    Provider,
    ProviderError,
    SystemUnavailable,
)

from .addresses import address_for_pods
from .api import Api, Refused
from .config import K8sConfig
from .given import Given
from .pods import CONTAINER, OWNER, RUN_DIR, WORKING_DIR, name_for, pod_for
from .rights import examined
from .watching import Pods, Seen
from .words import Said, read

log = logging.getLogger(__name__)

#: Of what a block printed, for people: lines that are asked for, and characters that are kept.
LOG_LINES, LOG_CHARACTERS = 100, 4096

#: Pods that have ended stay in the cluster, for people who look there, until so many have come after them.
ENDED_KEPT = 10

#: Ended blocks that are remembered.
REMEMBERED = 50

#: Where the agent's pod says which one it is (deploy/kubernetes).
_POD_NAME, _POD_UID, _POD_NAMESPACE = "FARCALL_POD_NAME", "FARCALL_POD_UID", "FARCALL_POD_NAMESPACE"


#: A misspelt field of a patch is an error; clusters before 1.25 do not know that it can be, and drop the field.
_STRICTLY = {"fieldValidation": "Strict"}


@dataclass
class _Block:
    """What is remembered of a block beside what the cluster tells."""

    said: Said = field(default_factory=lambda: Said(BlockState.PENDING))
    is_cancelled: bool = False
    failing_since: float | None = None
    #: The words that said most of why it cannot start: later ones may only say that it is tried again.
    failure: str = ""
    printed: str | None = None


class K8sProvider(Provider):
    """Asks for pods and hears of them; see ``watching``."""

    Config = K8sConfig
    #: What the cluster tells is here already.
    poll_period_s = 1

    def __init__(self, config: K8sConfig) -> None:
        super().__init__(config)
        self.options = config
        # What may not be is said at the start, and not at the first block.
        pod_for(BlockSpec(command="", name="", run_dir=Path()), config, name="", namespace="")
        self._api = Api(config)
        self._pods = Pods(self._api, self._heard)
        self._given: Given | None = None
        self._lock = threading.Lock()
        self._blocks: dict[str, _Block] = {}

    def submit(self, spec: BlockSpec) -> str:
        if spec.nodes != 1:
            raise ProviderError(
                f"a block of the k8s provider is one pod on one node, not {spec.nodes}: pods start and end one by one, "
                "and nothing starts a block's command on several of them; set nodes_per_block to 1 and raise max_blocks"
            )
        # Before there is a pod that we could not follow.
        self._pods.follow(spec.owner)
        name, given = name_for(spec), self._given
        pod = pod_for(
            spec,
            self.options,
            name=name,
            namespace=self._api.namespace,
            agent_pod=self._agent_pod(),
            secret=(name, given.items) if given else None,
        )
        with self._lock:
            self._blocks[name] = _Block()
        try:
            made = self._create(pod)
        except ProviderError:
            with self._lock:
                del self._blocks[name]
            raise
        self._pods.note(made)
        if given:
            self._give(given, made)
        self._remove_old_pods(ENDED_KEPT)
        return name

    def states(self, block_ids: Sequence[str]) -> dict[str, BlockState]:
        found = {block_id: self._look(block_id) for block_id in block_ids}
        if any(not state.has_ended for state in found.values()) and self._pods.is_following:
            self._pods.check()
        return found

    def cancel(self, block_ids: Sequence[str]) -> None:
        for block_id in block_ids:
            seen = self._pods.get(block_id)
            # Only what is known to be ours: somebody else's pod may have any name.
            if seen is None or self._look(block_id).has_ended:
                continue
            with self._lock:
                block = self._blocks.setdefault(block_id, _Block())
                block.is_cancelled, before = True, block.is_cancelled
            try:
                self._delete(block_id, seen)
            except ProviderError:
                block.is_cancelled = before
                raise

    def owned(self, owner: str) -> list[str]:
        self._pods.follow(owner)
        names = [
            name
            for name, seen in self._pods.all().items()
            if seen.pod["metadata"].get("labels", {}).get(OWNER) == owner
        ]
        with self._lock:
            for name in names:
                self._blocks.setdefault(name, _Block())
        return [name for name in names if not self._look(name).has_ended]

    def give_access(self, run_dir: Path, ports: Sequence[int]) -> Access | None:
        given = Given.of(run_dir)
        self._given = given if given.items else None
        address = self.options.agent_address or address_for_pods(self._api)
        return Access(address, {port: port for port in ports}, RUN_DIR, WORKING_DIR)

    def examine(self) -> Iterator[Finding]:
        all_is_well = True
        for finding in examined(self._api):
            all_is_well = all_is_well and finding.is_well
            yield finding
        if all_is_well:
            yield self._tried()

    def reason(self, block_id: str) -> str:
        with self._lock:
            block = self._blocks.get(block_id)
            return block.said.words if block else ""

    def output(self, block_id: str) -> str:
        with self._lock:
            block = self._blocks.get(block_id)
            if block is None:
                return ""
            said, printed = block.said, block.printed
        if printed is None:
            printed = self._log(block_id, said)
            if said.state.has_ended:
                block.printed = printed
        ending = f"[{said.words}]" if said.state.has_ended and said.words else ""
        return "\n".join(part for part in (printed.rstrip("\n"), ending) if part)

    def close(self) -> None:
        try:
            if self._pods.is_following:
                self._remove_old_pods(0)
        finally:
            self._pods.close()
            self._api.close()

    # -- how a block is -----------------------------------------------------------------------------------------------

    def _look(self, block_id: str) -> BlockState:
        seen = self._pods.get(block_id)
        with self._lock:
            block = self._blocks.get(block_id)
            if block is None or block.said.state.has_ended:
                return block.said.state if block else BlockState.UNKNOWN
            if seen is None:
                return BlockState.UNKNOWN
            block.said = said = self._judged(block, seen)
            gives_up = said.state is BlockState.FAILED and not seen.is_gone and seen.pod["status"]["phase"] == "Pending"
        if gives_up:
            # It would be tried for ever.
            self._delete_if_possible(block_id, seen)
        return said.state

    def _heard(self, block_id: str) -> None:
        """Take note of what may be gone when the state is asked for: what was wrong before it was tried again."""
        seen = self._pods.get(block_id)
        with self._lock:
            block = self._blocks.get(block_id)
            if block is not None and seen is not None:
                self._read(block, seen)

    def _read(self, block: _Block, seen: Seen) -> Said:
        said = read(seen.pod, now=time.time())
        if said.is_failing:
            block.failure = max(block.failure, said.words, key=len)
            block.failing_since = block.failing_since or time.monotonic()
        elif said.state is not BlockState.PENDING:
            block.failing_since = None
        return said

    def _judged(self, block: _Block, seen: Seen) -> Said:
        said = self._read(block, seen)
        if said.is_failing and block.failing_since is not None:
            if time.monotonic() - block.failing_since > self.options.start_patience_s:
                words = f"given up after {self.options.start_patience_s:g} s: {block.failure}"
                said = Said(BlockState.FAILED, words, log_of=said.log_of)
            else:
                said = Said(said.state, block.failure, is_failing=True, log_of=said.log_of)
        if seen.is_gone and not said.state.has_ended:
            words = "the pod was deleted, and not by this agent"
            said = Said(BlockState.FAILED, f"{words}; it was {said.state.value} {said.words}".rstrip())
        if block.is_cancelled and said.state is BlockState.FAILED:
            said = Said(BlockState.CANCELLED)
        return said

    def _log(self, block_id: str, said: Said) -> str:
        if said.log_of is None:
            return ""
        query = {"container": said.log_of, "tailLines": LOG_LINES}
        try:
            text = self._api.text(f"pods/{block_id}/log", doing="get the log of a pod", query=query)
        except ProviderError as error:
            # The reason of the failure is more than the reason of not knowing more of it.
            seen = self._pods.get(block_id)
            is_gone = isinstance(error, Refused) and error.status == 404 and (seen is None or seen.is_gone)
            return "" if is_gone else f"(what it printed cannot be read: {error})"
        return text[-LOG_CHARACTERS:]

    # -- what the cluster is asked for --------------------------------------------------------------------------------

    def _create(self, pod: dict[str, object]) -> dict[str, object]:
        doing = f"create the pod of a block (image {self.options.image})"
        try:
            return self._api.request("POST", "pods", pod, doing=doing, query=_STRICTLY)
        except SystemUnavailable as error:
            # It may have been made all the same; whoever cares for this owner's pods will find it.
            log.debug("the pod was perhaps made: %s", error)
            raise

    def _give(self, given: Given, pod: dict[str, object]) -> None:
        """Only now is there a pod that the Secret can belong to; until it comes, the pod's node waits for it."""
        try:
            self._api.request("POST", "secrets", given.secret_for(pod), doing="create the secret of a block")
        except ProviderError:
            name = str(pod["metadata"]["name"])  # type: ignore[index]
            seen = self._pods.get(name)
            if seen is not None:
                self._delete_if_possible(name, seen)
            raise

    def _delete(self, name: str, seen: Seen) -> None:
        # Of this very pod, should there be another of its name by now.
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": seen.pod["metadata"]["uid"]},
        }
        try:
            self._api.request("DELETE", f"pods/{name}", options, doing="delete the pod of a block")
        except Refused as refused:
            if refused.status not in (404, 409):
                raise

    def _delete_if_possible(self, name: str, seen: Seen) -> None:
        try:
            self._delete(name, seen)
        except ProviderError as error:
            log.warning("the pod %s is left: %s", name, error)

    def _remove_old_pods(self, kept: int) -> None:
        """Delete pods that have ended, and forget the oldest of all blocks that have."""
        with self._lock:
            ended = [name for name, block in self._blocks.items() if block.said.state.has_ended]
            for name in ended[:-REMEMBERED]:
                del self._blocks[name]
        seen = {name: self._pods.get(name) for name in ended}
        still_there = [name for name in ended if (each := seen[name]) is not None and not each.is_gone]
        for name in still_there[: len(still_there) - kept]:
            # What it printed goes with it.
            self.output(name)
            pod = seen[name]
            if pod is not None:
                self._delete_if_possible(name, pod)
        for name in ended[:-REMEMBERED]:
            self._pods.forget(name)

    def _agent_pod(self) -> dict[str, str] | None:
        """The pod that we are in, if it is in the namespace of the blocks: only there can it own them."""
        name, uid = os.environ.get(_POD_NAME), os.environ.get(_POD_UID)
        if name and uid and os.environ.get(_POD_NAMESPACE) == self._api.namespace:
            return {"name": name, "uid": uid}
        return None

    def _tried(self) -> Finding:
        """Have the API server look at a pod without making it."""
        spec = BlockSpec(command="exit 0", name="farcall.doctor", run_dir=Path())
        pod = pod_for(spec, self.options, name=name_for(spec), namespace=self._api.namespace)
        subject, query = "a pod", {"dryRun": "All", **_STRICTLY}
        try:
            self._api.request("POST", "pods", pod, doing="take the pod of a block", query=query)
        except ProviderError as error:
            remedy = "correct what it complains of, among the options under engine.provider"
            return Finding(subject, False, str(error), remedy)
        return Finding(subject, True, f"the API server would take one with image {self.options.image} ({CONTAINER})")
