"""The ledger: what was asked, what became of it. The only package that changes a task's state.

Everything comes and goes in batches; a single task is a batch of one. Nothing here talks to the broker: `dispatch`
carries tasks out after their rows are committed, `collector` brings results in.
"""

from __future__ import annotations

from farcall_webservice.ledger.book import CLAIM_S, IDS_PER_QUERY
from farcall_webservice.ledger.collecting import Collecting
from farcall_webservice.ledger.printing import Printing
from farcall_webservice.ledger.removing import Removing
from farcall_webservice.ledger.submitting import Submitting
from farcall_webservice.ledger.values import (
    Cancelled,
    GroupExists,
    KeyReused,
    Load,
    LogPart,
    Outgoing,
    Receipt,
    Request,
    TaskFilter,
    Unaccounted,
    UnknownGroup,
)

__all__ = [
    "CLAIM_S",
    "IDS_PER_QUERY",
    "Cancelled",
    "GroupExists",
    "KeyReused",
    "Ledger",
    "Load",
    "LogPart",
    "Outgoing",
    "Receipt",
    "Request",
    "TaskFilter",
    "Unaccounted",
    "UnknownGroup",
]


class Ledger(Submitting, Removing, Collecting, Printing):
    """Tasks and their groups, over one database. Each process has one; what it writes, its dispatcher publishes."""
