"""The chart, run: its rendered pods as processes in network namespaces, under load.

The pods have the chart's environment, commands, users, volumes, probes and hooks. `make cluster`
runs it with the real engine, the chart's own seconds, a rolling update, then a node drain.
`CLUSTER="fake drain"` takes a fake engine, shorter seconds, and only the node drain.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import Any

import pytest

from tests.helm.programs import ROOT
from tests.postgres import programs

FORM = os.environ.get("CLUSTER", "").split()
NAMESPACES = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if not FORM:
        pytest.skip("it takes minutes: make cluster")
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap isn't installed (Debian's package bubblewrap)")
    if programs() is None:
        pytest.skip("PostgreSQL isn't installed (Debian's package postgresql)")
    if subprocess.run([*NAMESPACES, "true"], capture_output=True).returncode:
        pytest.skip("this user may not make network namespaces")
    folder = tmp_path_factory.mktemp("cluster")
    command = [*NAMESPACES, sys.executable, "-m", "tests.deploy.cluster", *FORM, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    logs = {log.name: log.read_text()[-2000:] for log in folder.glob("*.log")}
    assert done.returncode == 0, done.stderr + json.dumps(logs, indent=1)
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    print(json.dumps(found, indent=1))
    return found


def test_no_request_fails(report: dict[str, Any]) -> None:
    assert report["failures"] == []
    assert report["answered"] == report["asked"] > 50


def test_every_pod_is_replaced_and_none_restarts(report: dict[str, Any]) -> None:
    assert set(report["restarts"].values()) == {0}
    started = [line.split()[1] for line in report["log"] if " started on " in line]
    ready = [line.split()[1] for line in report["log"] if line.endswith(" is ready")]
    assert sorted(started) == sorted(ready)
    assert len(started) > len(report["restarts"]), "the pods of a node at least start again"


def test_servers_end_by_themselves(report: dict[str, Any]) -> None:
    ends = [line for line in report["log"] if " ended with " in line]
    assert ends
    assert all(line.endswith(" 0") for line in ends), "SIGTERM is enough: nobody is killed"


def test_the_hooks_ran(report: dict[str, Any]) -> None:
    assert report["log"][0].endswith("demo-loraplex-migration ran")
    assert any(line.endswith("demo-loraplex-test ran") for line in report["log"])
