"""The program on a login node that lets compute nodes reach an agent; it is sent there over SSH, and run from memory.

Python 3.6 and its standard library are all that is there; nothing is installed. It comes twice: as the relay, which
listens for the nodes and outlives a connection that breaks, for a while; and once for each connection, to bring the
relay its pipes.
"""

import array
import fcntl
import json
import os
import selectors
import signal
import socket
import struct
import sys
from typing import Any, Dict, List, Sequence

from farcall_endpoint.relay import Session

#: Begins the only line that is printed before the first frame; what login scripts print comes before it.
GREETING = "farcall-relay "


def main(request: Dict[str, Any]) -> None:
    """Bring the pipes that we were started with to the relay of this ``token``, which is started if it may be."""
    name = "\0farcall-relay-" + request["token"]
    plug = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    facts: Dict[str, Any] = {}
    try:
        plug.connect(name)
    except OSError:
        if request["resume"]:
            _say(error="the relay has ended")
            return
        try:
            facts = _start(name, request)
        except OSError as error:
            _say(error="it cannot listen on {}: {}".format(request["address"] or "any address", error))
            return
        plug.connect(name)
    if _peer(plug) != os.getuid():
        _say(error="somebody else has the name of the relay")
        return
    _say(**facts)
    plug.sendmsg([b"."], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1]))])
    # The connection's program must live as long as the connection is used.
    plug.recv(1)


def _say(**facts: Any) -> None:
    sys.stdout.write(GREETING + json.dumps(facts) + "\n")
    sys.stdout.flush()


def _peer(sock: socket.socket) -> int:
    """The user at the other end."""
    _, uid, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII")))
    return int(uid)


def _start(name: str, request: Dict[str, Any]) -> Dict[str, Any]:
    """Start the relay as a process of its own, which outlives a connection that breaks; what there is to know of it."""
    plugs = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    plugs.bind(name)
    plugs.listen(5)
    listeners: List[socket.socket] = []
    for _ in range(request["ports"]):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.bind((request["address"] or "", 0))
        listener.listen(512)
        listeners.append(listener)
    addresses = [request["address"]] if request["address"] else _own_addresses()
    facts: Dict[str, Any] = {
        "host": socket.gethostname(),
        "addresses": addresses,
        "ports": [listener.getsockname()[1] for listener in listeners],
    }
    pid = os.fork()
    if pid == 0:
        try:
            _serve(plugs, listeners)
        finally:
            os._exit(0)
    for sock in [plugs, *listeners]:
        sock.close()
    facts["pid"] = pid
    return facts


def _serve(plugs: socket.socket, listeners: Sequence[socket.socket]) -> None:
    os.setsid()
    os.chdir("/")
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)
    session = Session()
    session.selector.register(plugs, selectors.EVENT_READ, lambda mask: _take_plug(plugs, session))
    for index, listener in enumerate(listeners):
        listener.setblocking(False)

        def accept(mask: int, listener: socket.socket = listener, index: int = index) -> None:
            session.accept(listener, index)

        session.selector.register(listener, selectors.EVENT_READ, accept)
    session.run(waits_for_pipes=True)


def _take_plug(plugs: socket.socket, session: Session) -> None:
    plug = plugs.accept()[0]
    plug.settimeout(5)
    fds = array.array("i")
    try:
        if _peer(plug) == os.getuid():
            _, found, _, _ = plug.recvmsg(1, socket.CMSG_SPACE(2 * fds.itemsize))
            for _level, _kind, data in found:
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    except OSError:
        pass
    if len(fds) == 2:
        session.attach(fds[0], fds[1], plug.close)
    else:
        plug.close()


def _own_addresses() -> List[str]:
    """By which others may reach this machine."""
    found: List[str] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                # SIOCGIFADDR
                answer = fcntl.ioctl(probe.fileno(), 0x8915, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue
            found.append(socket.inet_ntoa(answer[20:24]))
    return [address for address in found if not address.startswith("127.")] or ["127.0.0.1"]
