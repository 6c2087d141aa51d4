"""Runs the chart on a cluster of processes: `python -m tests.deploy.cluster fake drain FOLDER`.

It installs a release of two servers and two proxies with a fake or the real engine, runs
`helm test`, and then, while clients stream through the Service, updates all pods (`update`) or
drains a node (`drain`). With `plain` there are no proxies. FOLDER gets a report, and each pod's
log. `tests/deploy/test_cluster.py` starts it in namespaces of its own, which it needs.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.cluster.cluster import NODES, Cluster
from tests.deploy.cluster.network import NODE, Network
from tests.deploy.cluster.release import (
    FORMS,
    Form,
    keep_bundled_base,
    register,
    secrets,
    under_load,
)
from tests.helm.programs import fetch
from tests.postgres import LOOPBACK, Postgres, programs
from tests.s3_server import S3Server

VALUES = Path(__file__).with_name("values.yaml")


async def run(form: Form, steps: list[str], folder: Path, cluster: Cluster) -> dict[str, Any]:
    """Install the release, take the steps under load, and return the report."""
    if form.joined:
        keep_bundled_base(folder / "claims", cluster.claims())
    await cluster.install()
    await register(cluster, form, folder)
    await cluster.test()
    async with under_load(cluster, form) as load:
        if "update" in steps:
            await asyncio.gather(cluster.update_servers(), cluster.update_proxies())
            await load.more()
        if "drain" in steps:
            await cluster.drain(NODES[1])
            await load.more()
    return {
        "asked": load.num_asked,
        "answered": load.num_answered,
        "failures": load.failures,
        "restarts": {pod.name: pod.restarts for pod in cluster.pods.values()},
        "log": cluster.log,
    }


def main() -> None:
    """Write the report."""
    name, *steps, out = sys.argv[1:]
    form, folder = FORMS[name], Path(out)
    chosen = folder / "values.yaml"
    values = dict(form.values) | {"envoy": {"enabled": "plain" not in steps}}
    chosen.write_text(yaml.safe_dump(values))
    manifests = fetch(4).render("--values", str(VALUES), "--values", str(chosen))
    network = Network()
    found = programs()
    assert found is not None, "PostgreSQL isn't installed"
    with ExitStack() as ends:
        postgres = Postgres(found, addresses=(NODE,))
        ends.callback(postgres.stop)
        s3 = S3Server(NODE)
        ends.callback(s3.stop)
        database = postgres.new_database().replace(LOOPBACK, NODE)
        given = secrets(database, s3.environment)

        async def go() -> dict[str, Any]:
            cluster = Cluster(network, manifests, given, form.image, folder, form.ready_seconds)
            return await run(form, steps, folder, cluster)

        report = asyncio.run(go())
    (folder / "report.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
