"""Two servers, one PostgreSQL, one bucket: no version changes state without cause, nothing is lost.

`make chaos` goes on for ten minutes and prints what was done; here it is `CHAOS_SECONDS`, or 30.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

from adapters_registry.check.base import BaseSpec
from adapters_registry.content.store import ContentStore
from adapters_registry.registry import Registry
from server.auth import Keys
from tests.deploy.chaos import Driver, Trouble, run_all
from tests.deploy.outage import Switch
from tests.deploy.proxies import free_port
from tests.deploy.replica import Replica
from tests.postgres import Postgres
from tests.s3_server import S3Server
from tests.tiny import TINY_BASE

DEFAULT_SECONDS = 30.0
NUM_ADAPTERS = 3
ORIGIN = "s3://test/chaos"


def admin_key(url: str, folder: Path) -> str:
    base = BaseSpec.from_config("tiny", TINY_BASE, max_rank=8)
    registry = Registry(url, ContentStore(folder / "first"), base)
    key = Keys(registry).create("default", ["admin", "inference"])
    registry.close()
    return key


def test_chaos(postgres: Postgres, s3_server: S3Server, tmp_path: Path) -> None:
    seconds = float(os.environ.get("CHAOS_SECONDS", DEFAULT_SECONDS))
    seed = int(os.environ.get("CHAOS_SEED", random.randrange(1 << 30)))
    print(f"\nCHAOS_SEED={seed}")
    url, bucket = postgres.new_database(), Switch(s3_server.endpoint)
    key = admin_key(url, tmp_path)
    environment = {**s3_server.environment, "AWS_ENDPOINT_URL": bucket.url}
    replicas = [
        Replica(free_port(), url, tmp_path / name / "content", ORIGIN, environment)
        for name in ("a", "b")
    ]
    try:
        for replica in replicas:
            replica.wait_until_ready()
        until, urls = time.monotonic() + seconds, [replica.url for replica in replicas]
        drivers = [
            Driver(f"adapter{number}", key, urls, tmp_path, seed + number, until)
            for number in range(NUM_ADAPTERS)
        ]
        trouble = Trouble(replicas, bucket, seed, until)
        run_all([*drivers, trouble])
        for driver in drivers:
            driver.settle()
            print(driver.name, driver.counts, len(driver.versions), "versions")
        print(trouble.counts)
        assert all(len(driver.versions) > 1 for driver in drivers)
        assert trouble.counts.operations
    finally:
        for replica in replicas:
            replica.kill()
        bucket.stop()
