"""By which address pods reach the agent."""

from __future__ import annotations

import ipaddress
import socket

from farcall_endpoint.provider import SystemUnavailable

from .api import Api


def address_for_pods(api: Api) -> str:
    """The address from which this machine reaches the cluster: answers find their way back to it.

    Raises SystemUnavailable where there is none that others could use.
    """
    address = api.own_address()
    if not ipaddress.ip_address(address).is_loopback:
        return address
    # A cluster on this machine, or a tunnel to one. Nothing is sent: the kernel only says which address it would use.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError as error:
            raise SystemUnavailable(
                f"this machine has no address that pods could reach ({error}); set agent_address of the k8s provider"
            ) from error
