"""Runs blocks as jobs of PBS Pro, OpenPBS or Torque."""

from __future__ import annotations

from farcall_endpoint.hookspecs import hookimpl
from farcall_endpoint.provider import Provider

from .config import PbsConfig
from .provider import PbsProvider

__all__ = ["PbsConfig", "PbsProvider", "farcall_providers"]


@hookimpl
def farcall_providers() -> dict[str, type[Provider]]:
    return {"pbs": PbsProvider}
