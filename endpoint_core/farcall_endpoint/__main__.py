"""``python -m farcall_endpoint`` is the ``farcall-endpoint`` command."""

from __future__ import annotations

from .cli import app

app(prog_name="farcall-endpoint")
