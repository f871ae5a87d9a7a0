"""Blocks as jobs of PBS: its commands, and what is made of their answers."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from farcall_endpoint.batch import BatchProvider, Files, Job
from farcall_endpoint.provider import BlockSpec, Finding, ProviderError, SystemUnavailable
from farcall_endpoint.shell import NOT_FOUND, Ran, Shell

from . import client, words
from .client import Client, Dialect
from .config import PbsConfig, head, is_of

log = logging.getLogger(__name__)


class PbsProvider(BatchProvider):
    """Asks ``qstat`` for all blocks at once: as JSON with history, or as text where that is all there is."""

    Config = PbsConfig
    launcher = "mpiexec"
    poll_period_s = 5

    def __init__(self, config: PbsConfig, shell: Shell | None = None) -> None:
        super().__init__(config, shell)
        self._config = config
        self._client: Client | None = None
        self._finding = threading.Lock()
        # Until it turns out otherwise.
        self._has_json = True
        self._has_history = True

    @property
    def client(self) -> Client:
        """The commands of PBS. Raises ProviderError if there are none."""
        with self._finding:
            if self._client is None:
                self._client = client.find(self.run, self._config.wanted_dialect, self.shell.place)
                log.info("PBS on %s: %s (%s)", self.shell.place, self._client.said, self._client.dialect.value)
            return self._client

    def head(self, spec: BlockSpec, files: Files) -> Sequence[str]:
        return head(self._config, self.client, spec)

    def submit_command(self, files: Files) -> Sequence[str]:
        return self.client.command("qsub", "-o", files.stdout, "-e", files.stderr, files.script)

    def block_id(self, printed: str) -> str:
        found = re.search(r"^(\d+(?:\.\S+)?)\s*$", printed, re.MULTILINE)
        if found is None:
            raise ValueError(printed)
        return found[1]

    def look(self, block_ids: Sequence[str]) -> Mapping[str, Job]:
        # PBS may write more or less of its server's name than it did when the job was asked for.
        by_number = {_number(key): attributes for key, attributes in self._told(block_ids).items()}
        return {key: words.job_of(by_number[_number(key)]) for key in block_ids if _number(key) in by_number}

    def cancel_command(self, block_ids: Sequence[str]) -> Sequence[str]:
        return self.client.command("qdel", *block_ids)

    def end(self, block_ids: Sequence[str]) -> None:
        ran = self.run(self.cancel_command(block_ids))
        # It ends the others, too, if one of them is gone.
        if ran.exit_code and (ran.exit_code == NOT_FOUND or words.complaints(ran)):
            raise self._failure("qdel", ran)

    def is_refusal(self, ran: Ran) -> bool:
        return not words.is_silence(ran.stderr + ran.stdout)

    def owned(self, owner: str) -> list[str]:
        # Of a site with ten thousand jobs, only this user's are worth more than a line.
        ran = self.run(["sh", "-c", '"$1" -u "$(id -un)"', "sh", *self.client.command("qselect")])
        if ran.exit_code == NOT_FOUND:
            found = self._told([])
        elif ran.exit_code:
            raise self._failure("qselect", ran)
        else:
            ids = ran.stdout.split()
            found = self._told(ids) if ids else {}
        return [
            key
            for key, attributes in found.items()
            if is_of(owner, str(attributes.get("Job_Name", ""))) and not words.job_of(attributes).state.has_ended
        ]

    def examine(self) -> Iterator[Finding]:
        yield from super().examine()
        try:
            found = self.client
        except ProviderError as error:
            yield Finding("PBS", False, str(error), "put the folder with PBS's qsub and qstat into PATH")
            return
        where = found.directory.rstrip("/") or "PATH"
        yield Finding("PBS", True, f"{found.said} ({found.dialect.value}), in {where} of {self.shell.place}")
        yield self._examined_queue() if self._config.queue else self._examined_server()

    # -- asking -------------------------------------------------------------------------------------------------------

    def _told(self, block_ids: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        """The attributes of these jobs, or of all that have not ended; of those that are not known there are none."""
        has_json = self._has_json and self.client.dialect is Dialect.PBSPRO
        # To Torque, -x means XML.
        has_history = self._has_history and self.client.dialect is Dialect.PBSPRO and bool(block_ids)
        options = ["-f", *(["-F", "json"] if has_json else []), *(["-x"] if has_history else [])]
        ran = self.run(self.client.command("qstat", *options, *block_ids))
        if has_json and ran.exit_code and words.is_usage(ran):
            self._has_json = False
            return self._told(block_ids)
        if has_history and words.has_no_history(ran):
            self._has_history = False
            return self._told(block_ids)
        found = words.read_json(ran.stdout) if has_json else words.read_text(ran.stdout)
        if found is None:
            # Some versions do not quote what jobs have in their environment.
            log.info("qstat on %s printed no JSON, so it is asked for text from now on", self.shell.place)
            self._has_json = False
            return self._told(block_ids)
        if ran.exit_code and (ran.exit_code == NOT_FOUND or words.complaints(ran)):
            raise self._failure("qstat", ran)
        return found

    def _failure(self, name: str, ran: Ran) -> ProviderError:
        sentence = f"{name} on {self.shell.place} failed: {ran.said}"
        return ProviderError(sentence) if self.is_refusal(ran) else SystemUnavailable(sentence)

    # -- for doctor ---------------------------------------------------------------------------------------------------

    def _examined_server(self) -> Finding:
        ran = self.run(self.client.command("qstat", "-B"))
        lines = ran.stdout.strip().splitlines()
        said = lines[-1].split(maxsplit=1)[0] if lines and not ran.exit_code else ran.said
        return Finding("server of PBS", not ran.exit_code, said, "ask those who run PBS there")

    def _examined_queue(self) -> Finding:
        queue = str(self._config.queue)
        subject = f"queue {queue}"
        ran = self.run(self.client.command("qstat", "-Q", "-f", queue))
        if ran.exit_code:
            return Finding(subject, False, ran.said, "`qstat -Q` lists the queues; set one of them in config.yaml")
        told = words.read_queue(ran.stdout)
        closed = [word for word in ("enabled", "started") if told.get(word, "True") != "True"]
        said = f"it is not {' and not '.join(closed)}" if closed else "it takes jobs and starts them"
        return Finding(subject, not closed, said, "choose another queue, or ask those who run PBS there")


def _number(block_id: str) -> str:
    return block_id.partition(".")[0]
