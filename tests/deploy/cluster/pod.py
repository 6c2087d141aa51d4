"""One pod as a kubelet runs it: containers, probes, readiness, restarts, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.deploy.cluster import sandbox
from tests.deploy.cluster.network import Network
from tests.deploy.cluster.sandbox import Image, Manifest, Objects, Volumes

NOTICED_SECONDS = 1.0
"""How long after a change of a pod's readiness the Services know of it."""
PROBE = {"timeoutSeconds": 1, "periodSeconds": 10, "failureThreshold": 3, "successThreshold": 1}
"""Kubernetes' defaults."""
PROBE_KEYS = {*PROBE, "httpGet", "tcpSocket"}


@dataclass(frozen=True)
class Machine:
    """What all pods share."""

    network: Network
    objects: Objects
    images: Callable[[str], Image]
    folder: Path


class Pod:
    """A pod with one container, from its start to its end."""

    def __init__(self, name: str, node: str, template: Manifest, machine: Machine) -> None:
        self.name, self.node = name, node
        self.labels: dict[str, str] = template["metadata"]["labels"]
        self.spec: Manifest = template["spec"]
        self.is_ready = False
        self.is_terminating = False
        self.is_listed = False
        """Whether Services send requests to it."""
        self.restarts = 0
        self.exit_code: int | None = None
        self._machine = machine
        (self._container,) = self.spec["containers"]
        self._volumes = Volumes(name, self.spec, machine.folder, machine.objects)
        self._namespace, self.address = machine.network.add_pod()
        self._process_1 = 0
        self._changed = asyncio.Event()
        self._running = asyncio.create_task(self._run())
        self._listing = asyncio.create_task(self._list())

    async def _run(self) -> None:
        """Run the container, again and again if the pod's policy is to restart it."""
        while True:
            process = await self._start()
            probes = asyncio.create_task(self._probe())
            self.exit_code = await process.wait()
            probes.cancel()
            self._set_ready(False)
            if self.is_terminating or self.spec.get("restartPolicy") == "Never":
                return
            self.restarts += 1
            await asyncio.sleep(1)

    async def _start(self) -> asyncio.subprocess.Process:
        machine, image = self._machine, self._machine.images(self._container["image"])
        command = sandbox.command(
            self.name, self.spec, self._container, image, self._volumes, machine.objects
        )
        read, write = os.pipe()
        inside = ["nsenter", f"--net=/run/netns/{self._namespace}"]
        command[1:1] = ["--info-fd", str(write)]
        with (machine.folder / f"{self.name}.log").open("a") as log:
            process = await asyncio.create_subprocess_exec(
                *inside, *command, stdout=log, stderr=log, pass_fds=[write]
            )
        os.close(write)
        self._process_1 = await asyncio.to_thread(_process_1, read)
        os.close(read)
        return process

    async def _probe(self) -> None:
        """First the startup probe; then the two others at the same time."""
        probes = {name: self._container.get(f"{name}Probe") for name in ("startup", "liveness")}
        if probes["startup"]:
            await self._watch(probes["startup"], on_success=None, on_failure=self._kill)
        watched: list[Awaitable[None]] = []
        if readiness := self._container.get("readinessProbe"):
            watched.append(self._watch(readiness, self._set_ready, self._set_unready, ends=False))
        else:
            self._set_ready()
        if probes["liveness"]:
            watched.append(self._watch(probes["liveness"], None, self._kill, ends=False))
        await asyncio.gather(*watched)

    async def _watch(
        self,
        probe: Manifest,
        on_success: Callable[[], None] | None,
        on_failure: Callable[[], None],
        *,
        ends: bool = True,
    ) -> None:
        """Probe again and again by the probe's period and thresholds; `ends`: until it succeeds."""
        assert probe.keys() <= PROBE_KEYS, probe
        probe = PROBE | probe
        successes = failures = 0
        while True:
            if await self._succeeds(probe):
                successes, failures = successes + 1, 0
                if successes >= probe["successThreshold"]:
                    if on_success:
                        on_success()
                    if ends:
                        return
            else:
                successes, failures = 0, failures + 1
                if failures >= probe["failureThreshold"]:
                    on_failure()
                    failures = 0
            await asyncio.sleep(probe["periodSeconds"])

    async def _succeeds(self, probe: Manifest) -> bool:
        try:
            async with asyncio.timeout(probe["timeoutSeconds"]):
                if "tcpSocket" in probe:
                    port = self.port(probe["tcpSocket"]["port"])
                    _, writer = await asyncio.open_connection(self.address, port)
                    writer.close()
                    return True
                request = probe["httpGet"]
                url = f"http://{self.address}:{self.port(request['port'])}{request['path']}"
                async with httpx.AsyncClient(timeout=None) as http:
                    return 200 <= (await http.get(url)).status_code < 400
        except (OSError, TimeoutError, httpx.HTTPError):
            return False

    def port(self, name: str | int) -> int:
        """Return the number of a port that the container names."""
        if isinstance(name, int):
            return name
        return int(next(p["containerPort"] for p in self._container["ports"] if p["name"] == name))

    def _set_ready(self, is_ready: bool = True) -> None:
        if is_ready != self.is_ready:
            self.is_ready = is_ready
            self._changed.set()

    def _set_unready(self) -> None:
        self._set_ready(False)

    async def _list(self) -> None:
        """Have the Services follow, a while after each change."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            await asyncio.sleep(NOTICED_SECONDS)
            self.is_listed = self.is_ready and not self.is_terminating

    def _kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process_1, number)

    async def wait_until_ready(self, seconds: float) -> None:
        """Raise `TimeoutError` if the pod isn't ready in time, or AssertionError if it ended."""
        async with asyncio.timeout(seconds):
            while not self.is_ready:
                assert not self._running.done(), f"{self.name} ended: {self.exit_code}"
                await asyncio.sleep(0.05)

    async def wait_until_ended(self) -> None:
        await self._running
        self._listing.cancel()
        self._machine.network.remove_pod(self._namespace)

    async def delete(self) -> None:
        """preStop, SIGTERM, and SIGKILL when the grace period, which includes preStop, is over."""
        grace: float = self.spec.get("terminationGracePeriodSeconds", 30)
        self.is_terminating = True
        self._changed.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await asyncio.sleep(self._pre_stop())
                self._kill(signal.SIGTERM)
                await asyncio.shield(self._running)
        if not self._running.done():
            self._kill()
        await self.wait_until_ended()

    def _pre_stop(self) -> float:
        hook: Any = self._container.get("lifecycle", {}).get("preStop")
        if not hook:
            return 0
        assert hook.keys() == {"sleep"}, "other hooks aren't known here"
        return float(hook["sleep"]["seconds"])


def _process_1(info: int) -> int:
    """Return the number of the container's first process, which bubblewrap tells."""
    text = b""
    while b"}" not in text:
        part = os.read(info, 4096)
        assert part, "bubblewrap did not start the container"
        text += part
    return int(json.loads(text)["child-pid"])
