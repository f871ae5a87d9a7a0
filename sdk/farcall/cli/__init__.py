"""The ``farcall`` command: what can be done with tasks from a shell."""

from __future__ import annotations

from farcall.cli import account, tasks
from farcall.cli.app import app

__all__ = ["account", "app", "main", "tasks"]


def main() -> None:
    app(prog_name="farcall")
