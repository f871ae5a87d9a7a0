"""The life of a pod on a test node: its containers one after the other, and what is said of them meanwhile."""

from __future__ import annotations

import datetime
import signal
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import psutil
from urllib3.exceptions import HTTPError

from .apiclient import ApiAnswer, Object
from .volumes import NotYet

#: How often is tried again what a container waits for.
_RETRY_S = 0.1


class Images:
    """Names of images with which something is the matter."""

    ABSENT = "registry.invalid/absent:1"
    OF_ROOT = "registry.invalid/of-root:1"


class Host(Protocol):
    """The node, as its pods need it."""

    def say(self, pod: Object, status: Object) -> None:
        """Tell the API server how a pod is."""

    def gone(self, pod: Object) -> None:
        """Tell that nothing is left of it."""

    def start_container(self, pod: Object, container: Object, folder: Path) -> subprocess.Popen[bytes]:
        """Raises ApiAnswer or NotYet while something is missing that it needs."""


class PodLife:
    """One pod on a node, from its first container to its last."""

    def __init__(self, node: Host, pod: Object, folder: Path) -> None:
        self.pod = pod
        self.folder = folder
        self._node = node
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._states: dict[str, Object] = {}

    def run(self) -> None:
        self.folder.mkdir(parents=True)
        spec = self.pod["spec"]
        if not all(self._has_image(container) for container in spec["containers"]):
            return
        deadline = spec.get("activeDeadlineSeconds")
        timer = threading.Timer(deadline, self._overdue) if deadline else None
        if timer is not None:
            timer.daemon = True
            timer.start()
        try:
            for container in spec.get("initContainers") or ():
                if self._run(container) != 0:
                    self._tell("Failed")
                    return
            threads = [threading.Thread(target=self._run, args=(each,)) for each in spec["containers"]]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            if timer is not None:
                timer.cancel()
        if not self._ending.is_set():
            codes = [self._states[each["name"]]["terminated"]["exitCode"] for each in spec["containers"]]
            self._tell("Failed" if any(codes) else "Succeeded")

    def end(self, pod: Object) -> None:
        """It is to be deleted; what it runs has its grace. Returns at once."""
        if not self._ending.is_set():
            self._ending.set()
            grace = pod["metadata"].get("deletionGracePeriodSeconds") or 0
            threading.Thread(target=self._end, args=(grace,), daemon=True).start()

    def kill(self) -> None:
        self._ending.set()
        self._signal(signal.SIGKILL)
        for process in self._running():
            process.wait()

    def _end(self, grace_s: float) -> None:
        running = self._running()
        self._signal(signal.SIGTERM)
        for process in running:
            with suppress(subprocess.TimeoutExpired):
                process.wait(grace_s)
        self.kill()
        self._node.gone(self.pod)

    def _overdue(self) -> None:
        self._ending.set()
        self._signal(signal.SIGKILL)
        said = {
            "reason": "DeadlineExceeded",
            "message": "Pod was active on the node longer than the specified deadline",
        }
        self._node.say(self.pod, {"phase": "Failed", **said})

    def _run(self, container: Object) -> int:
        """A container from its start to its end; its exit code."""
        name = container["name"]
        process = None
        while process is None:
            if self._ending.is_set():
                return 137
            try:
                process = self._node.start_container(self.pod, container, self.folder)
            except (ApiAnswer, NotYet, HTTPError) as error:
                self._wait(container, "ContainerCreating", str(error))
                self._ending.wait(_RETRY_S)
        with self._lock:
            self._processes[name] = process
        begun = now()
        self._states[name] = {"running": {"startedAt": begun}}
        self._tell("Running" if name in [each["name"] for each in self.pod["spec"]["containers"]] else "Pending")
        code = process.wait()
        code = 128 - code if code < 0 else code
        reason = "Completed" if code == 0 else "Error"
        ended = {"exitCode": code, "reason": reason, "startedAt": begun, "finishedAt": now()}
        self._states[name] = {"terminated": ended}
        return code

    def _has_image(self, container: Object) -> bool:
        image = container["image"]
        if image == Images.ABSENT and container.get("imagePullPolicy") == "Never":
            self._wait(
                container, "ErrImageNeverPull", f'Container image "{image}" is not present with pull policy of Never'
            )
            return False
        if image == Images.ABSENT:
            said = f'rpc error: code = NotFound desc = failed to pull and unpack image "{image}": not found'
            self._wait(container, "ErrImagePull", said)
            self._wait(container, "ImagePullBackOff", f'Back-off pulling image "{image}"')
            return False
        context = {**(self.pod["spec"].get("securityContext") or {}), **(container.get("securityContext") or {})}
        if image == Images.OF_ROOT and context.get("runAsNonRoot") and context.get("runAsUser") is None:
            said = "container has runAsNonRoot and image will run as root"
            self._wait(container, "CreateContainerConfigError", said)
            return False
        return True

    def _wait(self, container: Object, reason: str, message: str) -> None:
        state = {"waiting": {"reason": reason, "message": message}}
        if self._states.get(container["name"]) != state:
            self._states[container["name"]] = state
            self._tell("Pending")

    def _tell(self, phase: str) -> None:
        spec = self.pod["spec"]

        def statuses(key: str) -> list[Object]:
            return [
                {
                    "name": each["name"],
                    "image": each["image"],
                    "imageID": "",
                    "ready": "running" in self._states[each["name"]],
                    "restartCount": 0,
                    "state": self._states[each["name"]],
                }
                for each in spec.get(key) or ()
                if each["name"] in self._states
            ]

        ready = "True" if phase == "Running" else "False"
        conditions = [
            {"type": kind, "status": status, "lastTransitionTime": now()}
            for kind, status in (("PodScheduled", "True"), ("Ready", ready))
        ]
        self._node.say(
            self.pod,
            {
                "phase": phase,
                "conditions": conditions,
                "containerStatuses": statuses("containers"),
                "initContainerStatuses": statuses("initContainers"),
            },
        )

    def _running(self) -> list[subprocess.Popen[bytes]]:
        with self._lock:
            return [process for process in self._processes.values() if process.poll() is None]

    def _signal(self, number: signal.Signals) -> None:
        """To the first process of each container; the kernel ends the others with it."""
        for process in self._running():
            with suppress(psutil.NoSuchProcess):
                if number is signal.SIGKILL:
                    psutil.Process(process.pid).kill()
                for first in psutil.Process(process.pid).children():
                    first.send_signal(number)


def path_of(pod: Object) -> str:
    return f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
