"""The command `collect`: one process that brings results in. Any number may run at a time, on any machines."""

from __future__ import annotations

import logging
import signal
import sys

from farcall_webservice import larger, parts
from farcall_webservice.config import ServiceConfig

log = logging.getLogger(__name__)


def collect(config: ServiceConfig) -> None:
    """Run until SIGTERM or Ctrl-C, and then finish the round that is under way.

    Raises :class:`ConfigurationError` if it cannot start.
    """
    larger.check(config, "collect")
    larger.log_to_standard_error()
    ends = (signal.SIGTERM, signal.SIGINT)
    # Blocked before the threads are made, which inherit that: so a signal waits for whoever asks for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    with parts.collecting(config):
        log.info("collecting")
        sys.stdout.write("Farcall is ready to collect results\n")
        sys.stdout.flush()
        signal.sigwait(ends)
        log.info("stopping")
