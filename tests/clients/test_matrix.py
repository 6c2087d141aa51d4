"""The matrix of clients is whole: pinned, locked, shown, and run by CI. `make clients` runs it."""

from __future__ import annotations

import json

import pytest
import yaml

from tests.clients.matrix import EXAMPLES, LOCKS, RESULTS, ROOT, Client, clients

each_client = pytest.mark.parametrize("client", clients(), ids=lambda client: client.name)


@each_client
def test_what_a_person_installs_is_what_the_lock_pins(client: Client) -> None:
    if client.is_node:
        asked = json.loads((LOCKS / client.name / "package.json").read_text())["dependencies"]
        assert [f"{name}@{version}" for name, version in asked.items()] == sorted(client.packages)
        locked = json.loads((LOCKS / client.name / "package-lock.json").read_text())["packages"]
        for name, version in asked.items():
            assert locked[f"node_modules/{name}"]["version"] == version
        return
    lines = (LOCKS / f"{client.name}.txt").read_text().splitlines()
    assert all("==" in line for line in lines), "a lock names exact versions"
    for package in client.packages:
        name, _, version = package.partition("==")
        pinned = f"{name.partition('[')[0]}=={version}"
        assert pinned in [line.replace("_", "-") for line in lines]


@each_client
def test_every_client_was_run(client: Client) -> None:
    assert (EXAMPLES / client.example).is_file()
    assert client.name in json.loads(RESULTS.read_text())


def test_every_example_is_run_by_a_client() -> None:
    used = {client.example for client in clients()}
    assert used == {file.name for file in EXAMPLES.glob("with_*")}


def test_ci_runs_the_matrix_in_a_job_of_its_own() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert [step["run"] for step in workflow["jobs"]["clients"]["steps"] if "run" in step] == [
        "make clients"
    ]
    assert "clients" not in (ROOT / ".ci" / "run").read_text()
