"""A release of the chart on a cluster of processes: install, rolling update, node drain.

It does what Kubernetes' controllers do with the rendered objects: pods of the StatefulSet and of
the Deployment, spread over two nodes; Services; the Jobs that are hooks of Helm.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path

from tests.deploy.cluster.network import NODE, Network
from tests.deploy.cluster.pod import Machine, Pod
from tests.deploy.cluster.sandbox import Image, Manifest, Objects
from tests.deploy.cluster.services import Names, ServicePort
from tests.helm.conftest import Manifests

NODES = ("node-a", "node-b")
HOOK = "helm.sh/hook"
NAMESPACE = "models"


class Cluster:
    """The pods of one release, by name."""

    def __init__(
        self,
        network: Network,
        manifests: Manifests,
        secrets: Mapping[str, Mapping[str, str]],
        images: Callable[[str], Image],
        folder: Path,
        ready_seconds: float,
    ) -> None:
        config_maps = {m["metadata"]["name"]: m["data"] for m in self._of(manifests, "ConfigMap")}
        objects = Objects(config_maps, secrets)
        self._network = network
        self._machine = Machine(network, objects, images, folder)
        self._manifests, self._ready_seconds = manifests, ready_seconds
        self.pods: dict[str, Pod] = {}
        self.log: list[str] = []
        self._number = 0
        self.addresses: dict[str, str] = {}
        """Of each Service that has one of its own."""

    @staticmethod
    def _of(manifests: Manifests, kind: str) -> Manifests:
        return [m for m in manifests if m["kind"] == kind]

    def _only(self, kind: str) -> Manifest:
        (found,) = (m for m in self._of(self._manifests, kind) if HOOK not in _annotations(m))
        return found

    def _note(self, what: str) -> None:
        self.log.append(f"{time.monotonic():.1f} {what}")

    def claims(self) -> list[str]:
        """Return the names of the volumes that the StatefulSet makes for its pods."""
        servers = self._only("StatefulSet")
        (template,) = servers["spec"]["volumeClaimTemplates"]
        name = f"{template['metadata']['name']}-{servers['metadata']['name']}"
        return [f"{name}-{number}" for number in range(servers["spec"]["replicas"])]

    def servers(self) -> list[Pod]:
        """Return the StatefulSet's pods."""
        chosen = self._only("StatefulSet")["spec"]["selector"]["matchLabels"].items()
        return [pod for pod in self.pods.values() if chosen <= pod.labels.items()]

    async def install(self) -> None:
        """Run the hooks before, then start everything and wait until all pods are ready."""
        await self._serve_names()
        for job in self._of(self._manifests, "Job"):
            await self.run_to_its_end(job["metadata"]["name"], job["spec"]["template"])
        servers = self._only("StatefulSet")
        for number in range(servers["spec"]["replicas"]):
            self._start(f"{servers['metadata']['name']}-{number}", servers, NODES[number % 2])
        for proxies in self._of(self._manifests, "Deployment"):
            for number in range(proxies["spec"]["replicas"]):
                self._start(self._new_name(proxies), proxies, NODES[number % 2])
        await asyncio.gather(*map(self._ready, self.pods.values()))

    async def run_to_its_end(self, name: str, template: Manifest) -> None:
        """Run a pod once; fail if its container does."""
        pod = Pod(name, NODES[0], template, self._machine)
        await pod.wait_until_ended()
        text = (self._machine.folder / f"{name}.log").read_text()
        assert pod.exit_code == 0, f"{name} ended with {pod.exit_code}: {text}"
        self._note(f"{name} ran")

    async def test(self) -> None:
        """`helm test`."""
        for pod in self._of(self._manifests, "Pod"):
            await self.run_to_its_end(pod["metadata"]["name"], pod)

    async def update_servers(self) -> None:
        """Replace the servers one by one from the last, as a StatefulSet's rolling update does."""
        servers = deepcopy(self._only("StatefulSet"))
        servers["spec"]["template"]["metadata"]["annotations"]["checksum/settings"] = "changed"
        for number in reversed(range(servers["spec"]["replicas"])):
            name = f"{servers['metadata']['name']}-{number}"
            node = self.pods[name].node
            await self._end(name)
            await self._ready(self._start(name, servers, node))

    async def update_proxies(self) -> None:
        """Replace the proxies with one more than there should be, as a Deployment does."""
        servers = self.servers()
        for pod in [pod for pod in self.pods.values() if pod not in servers]:
            proxies = self._only("Deployment")
            new = self._start(self._new_name(proxies), proxies, pod.node)
            await self._ready(new)
            await self._end(pod.name)

    async def drain(self, node: str) -> None:
        """Evict a node's pods, no more servers at a time than the PodDisruptionBudget allows."""
        (elsewhere,) = set(NODES) - {node}
        budget = self._only("PodDisruptionBudget")["spec"]
        chosen = budget["selector"]["matchLabels"].items()
        evicted = [pod for pod in self.pods.values() if pod.node == node]
        bounded = [pod for pod in evicted if chosen <= pod.labels.items()]
        assert len(bounded) <= budget["maxUnavailable"], "more would have to wait for each other"
        await asyncio.gather(*(self._evict(pod, elsewhere) for pod in evicted))

    async def _evict(self, pod: Pod, elsewhere: str) -> None:
        if pod in self.servers():  # it keeps its name, so the old one must be gone first
            await self._end(pod.name)
            await self._ready(self._start(pod.name, self._only("StatefulSet"), elsewhere))
        else:
            proxies = self._only("Deployment")
            new = self._start(self._new_name(proxies), proxies, elsewhere)
            await asyncio.gather(self._end(pod.name), self._ready(new))

    def _start(self, name: str, owner: Manifest, node: str) -> Pod:
        self.pods[name] = Pod(name, node, owner["spec"]["template"], self._machine)
        self._note(f"{name} started on {node}")
        return self.pods[name]

    async def _ready(self, pod: Pod) -> None:
        await pod.wait_until_ready(self._ready_seconds)
        self._note(f"{pod.name} is ready")

    async def _end(self, name: str) -> None:
        pod = self.pods[name]
        await pod.delete()
        self._note(f"{name} ended with {pod.exit_code}")
        if self.pods[name] is pod:
            del self.pods[name]

    def _new_name(self, owner: Manifest) -> str:
        self._number += 1
        return f"{owner['metadata']['name']}-{self._number}"

    async def _serve_names(self) -> None:
        """Start the name server, and give each Service that wants one an address."""
        known: dict[str, Callable[[], list[str]]] = {}
        for service in self._of(self._manifests, "Service"):
            name, spec = f"{service['metadata']['name']}.{NAMESPACE}", service["spec"]
            pods = partial(self._listed, spec["selector"])
            if spec.get("clusterIP") == "None":
                known[name] = partial(_addresses, pods)
                continue
            address = self._network.add_service()
            self.addresses[service["metadata"]["name"]] = address
            known[name] = partial(list, [address])
            for port in spec["ports"]:
                await ServicePort(pods, port["targetPort"]).listen(address, port["port"])
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(lambda: Names(known), local_addr=(NODE, 53))

    def _listed(self, selector: Mapping[str, str]) -> list[Pod]:
        """Return the pods that a Service sends requests to."""
        chosen = selector.items()
        return [pod for pod in self.pods.values() if pod.is_listed and chosen <= pod.labels.items()]


def _addresses(pods: Callable[[], list[Pod]]) -> list[str]:
    return [pod.address for pod in pods()]


def _annotations(manifest: Manifest) -> dict[str, str]:
    found: dict[str, str] = manifest["metadata"].get("annotations", {})
    return found
