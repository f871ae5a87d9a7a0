"""The ledger: what was asked, what became of it. The only package that changes a task's state.

Everything comes and goes in batches; a single task is a batch of one. Nothing here talks to the broker: `dispatch`
carries tasks out after their rows are committed, `collector` brings results in.
"""

from __future__ import annotations

from farcall_webservice.ledger.book import CLAIM_S, IDS_PER_QUERY
from farcall_webservice.ledger.collecting import Collecting
from farcall_webservice.ledger.holding import Holding
from farcall_webservice.ledger.submitting import Submitting
from farcall_webservice.ledger.values import (
    GroupExists,
    KeyReused,
    Load,
    Outgoing,
    Receipt,
    Request,
    TaskFilter,
    Unaccounted,
)

__all__ = [
    "CLAIM_S",
    "IDS_PER_QUERY",
    "GroupExists",
    "KeyReused",
    "Ledger",
    "Load",
    "Outgoing",
    "Receipt",
    "Request",
    "TaskFilter",
    "Unaccounted",
]


class Ledger(Submitting, Holding, Collecting):
    """Tasks and their groups, over one database. Each process has one; what it writes, its dispatcher publishes."""
