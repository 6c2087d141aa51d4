"""Faults of networks: servers cut off from the database, proxies killed."""

from __future__ import annotations

import os
import subprocess

from tests.chaos.fault import Fault
from tests.chaos.outage import Switch
from tests.chaos.readers import Place
from tests.chaos.site import Site
from tests.deploy.proxies import Proxy, free_port, start_haproxy
from tests.deploy.replica import Replica


class Cable:
    """Two networks of two addresses each between this machine and a namespace with a server.

    Clients use one, the server reaches database and bucket by the other.
    """

    def __init__(self, number: int) -> None:
        self.namespace = f"chaos{os.getpid()}x{number}"
        self._data = f"cd{os.getpid()}x{number}"
        self._clients = f"cc{os.getpid()}x{number}"
        data, clients = (
            f"10.{128 + os.getpid() % 120}.{third}" for third in (number, 100 + number)
        )
        self.data_address, self.server_address = f"{data}.1", f"{clients}.2"
        _ip("netns", "add", self.namespace)
        for device, network in ((self._data, data), (self._clients, clients)):
            inner = f"i{device}"
            _ip("link", "add", device, "type", "veth", "peer", "name", inner)
            _ip("link", "set", inner, "netns", self.namespace)
            _ip("address", "add", f"{network}.1/24", "dev", device)
            _ip("link", "set", device, "up")
            self._within("address", "add", f"{network}.2/24", "dev", inner)
            self._within("link", "set", inner, "up")
        self._within("link", "set", "lo", "up")

    def cut(self) -> None:
        """Lose every packet between the server and database and bucket, without a word."""
        _ip("link", "set", self._data, "down")

    def join(self) -> None:
        _ip("link", "set", self._data, "up")

    def remove(self) -> None:
        _ip("link", "delete", self._data)
        _ip("link", "delete", self._clients)
        _ip("netns", "delete", self.namespace)

    def _within(self, *arguments: str) -> None:
        _ip("-n", self.namespace, *arguments)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


class Partition(Fault):
    name = "server cut off from the database"
    promise = (
        "it answers with what it knows, and refuses changes with 503; the others go on; nothing "
        "acknowledged is lost, and the one that was cut off catches up"
    )
    done = (
        "each server in a network namespace of its own; one loses, or both lose, every packet to "
        "and from PostgreSQL and bucket"
    )
    seconds = 1.0, 15.0

    def open(self, site: Site) -> None:
        self.cables = {name: Cable(number) for number, name in enumerate("ab", 1)}
        for cable in self.cables.values():
            site.stack.callback(cable.remove)
        addresses = tuple(cable.data_address for cable in self.cables.values())
        site.postgres(addresses=addresses)
        bucket = site.bucket()
        self._cut: list[Cable] = []

        def start(name: str) -> Replica:
            cable = self.cables[name]
            door = Switch(bucket.endpoint, cable.data_address)
            site.stack.callback(door.stop)
            url = site.url.replace("127.0.0.1", cable.data_address)
            return Replica(
                free_port(),
                url,
                site.folder / name / "content",
                "s3://test/chaos",
                {**bucket.environment, "AWS_ENDPOINT_URL": door.url},
                host=cable.server_address,
                prefix=("ip", "netns", "exec", cable.namespace),
            )

        site.start(start)

    def inject(self, site: Site) -> None:
        self._cut = site.random.sample(list(self.cables.values()), site.random.choice([1, 1, 2]))
        for cable in self._cut:
            cable.cut()

    def check(self, site: Site) -> None:
        for replica in site.replicas:
            if any(cable.server_address in replica.url for cable in self._cut):
                site.refuses_changes(replica.url)

    def heal(self, site: Site) -> None:
        for cable in self._cut:
            cable.join()


class ProxyKilled(Fault):
    name = "proxy killed"
    promise = "only answers under way through it fail; another proxy goes on"
    done = "one of two HAProxies before two servers gets SIGKILL and starts again"
    seconds = 0.5, 2.0

    def open(self, site: Site) -> None:
        site.postgres()
        environment = site.bucket().environment
        site.places = [Place(""), Place("")]
        self.proxies: list[Proxy] = []

        def start(name: str) -> Replica:
            return site.replica(name, environment)

        site.start(start)
        for place in site.places:
            servers = [each for each in site.replicas if isinstance(each, Replica)]
            proxy = start_haproxy(site.folder, servers)
            site.stack.callback(proxy.kill)
            self.proxies.append(proxy)
            place.url = proxy.url
        for place in site.places:
            site.wait_until_found(place.url)

    def inject(self, site: Site) -> None:
        self._which = site.random.randrange(2)
        site.places[self._which].excuse(True)
        self.proxies[self._which].kill()

    def heal(self, site: Site) -> None:
        self.proxies[self._which].start()
        site.wait_until_found(site.places[self._which].url)
