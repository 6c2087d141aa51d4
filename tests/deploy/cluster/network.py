"""The network of a cluster on one machine: a bridge, and a network namespace for each pod.

The process that makes it has a network namespace and a mount namespace of its own (`unshare`), so
nothing of it is seen outside, and all of it ends with that process.
"""

from __future__ import annotations

import itertools
import subprocess
from ipaddress import IPv4Address, IPv4Network

PODS = IPv4Network("10.244.0.0/16")
SERVICES = IPv4Network("10.96.0.0/16")
NODE = str(PODS[1])
"""The address of the bridge: where the name server, and what is outside the cluster, listens."""
BRIDGE = "bridge"


def ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True)


class Network:
    """Gives addresses to pods and Services."""

    def __init__(self) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
        for command in (
            "link set lo up",
            f"link add {BRIDGE} type bridge",
            f"addr add {NODE}/{PODS.prefixlen} dev {BRIDGE}",
            f"link set {BRIDGE} up",
        ):
            ip(command)
        self._numbers = itertools.count(2)
        self._services = itertools.count(10)

    def add_pod(self) -> tuple[str, str]:
        """Return the name and the address of a new network namespace on the bridge."""
        number = next(self._numbers)
        name, address = f"pod{number}", str(IPv4Address(int(PODS[0]) + number))
        for command in (
            f"netns add {name}",
            f"link add {name} type veth peer name eth0 netns {name}",
            f"link set {name} master {BRIDGE} up",
            f"-n {name} addr add {address}/{PODS.prefixlen} dev eth0",
            f"-n {name} link set lo up",
            f"-n {name} link set eth0 up",
            f"-n {name} route add default via {NODE}",
        ):
            ip(command)
        return name, address

    def remove_pod(self, name: str) -> None:
        ip(f"netns delete {name}")

    def add_service(self) -> str:
        """Return a new address that this process can listen on and all pods can reach."""
        address = str(IPv4Address(int(SERVICES[0]) + next(self._services)))
        ip(f"addr add {address}/32 dev {BRIDGE}")
        return address
