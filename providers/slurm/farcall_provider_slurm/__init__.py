"""Runs blocks as jobs of Slurm."""

from __future__ import annotations

from farcall_endpoint.hookspecs import hookimpl
from farcall_endpoint.provider import Provider

from .config import SlurmConfig
from .provider import SlurmProvider

__all__ = ["SlurmConfig", "SlurmProvider", "farcall_providers"]


@hookimpl
def farcall_providers() -> dict[str, type[Provider]]:
    return {"slurm": SlurmProvider}
