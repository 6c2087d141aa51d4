"""Checks the bills of materials and the list of licences that `make sbom` has written.

    python -m tests.release.sbom dist

A bill must have exactly the packages of its lock, with their versions and hashes. Every package of
the CPU set must have a licence.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SETS = ("cpu", "gpu")
FROM_THEIR_FILES = {"oss-harmony": "Apache-2.0", "setuptools": "MIT", "sigstore-models": "MIT"}
"""Licences of packages whose metadata name none, as their own files LICENSE say."""
PIN = re.compile(r"^([\w.-]+)==(\S+) --hash=sha256:([0-9a-f]{64})$", re.MULTILINE)


def normal(name: str) -> str:
    """Return a package's name as indexes normalise it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked_packages(lock: str) -> dict[str, tuple[str, str]]:
    """Return version and sha256 by name of the packages of a lock with hashes."""
    return {normal(name): (version, sha256) for name, version, sha256 in PIN.findall(lock)}


def bill_faults(bill: Mapping[str, Any], locked: Mapping[str, tuple[str, str]]) -> list[str]:
    """Return how a CycloneDX document differs from its lock."""
    if bill.get("bomFormat") != "CycloneDX":
        return ["it is no CycloneDX document"]
    listed = {normal(each["name"]): each for each in bill.get("components", ())}
    faults = [f"{name} is missing" for name in locked.keys() - listed.keys()]
    faults += [f"{name} isn't in the lock" for name in listed.keys() - locked.keys()]
    for name in sorted(locked.keys() & listed.keys()):
        version, sha256 = locked[name]
        if listed[name].get("version") != version:
            faults.append(f"{name} is {listed[name].get('version')}, not {version}")
        if sha256 not in json.dumps(listed[name]):
            faults.append(f"{name} lacks its hash")
    return sorted(faults)


def licence_faults(rows: Iterable[Mapping[str, str]], locked: Mapping[str, object]) -> list[str]:
    """Return which packages of a lock lack a row or a licence in the list of pip-licenses."""
    licences = {normal(row["Name"]): row["License"] for row in rows}
    licences |= {name: known for name, known in FROM_THEIR_FILES.items() if name in licences}
    faults = [f"{name} is missing" for name in locked.keys() - licences.keys()]
    faults += [
        f"{name} has no licence"
        for name in locked.keys() & licences.keys()
        if licences[name] in ("", "UNKNOWN")
    ]
    return sorted(faults)


def faults_in(folder: Path) -> list[str]:
    """Return all faults of what `make sbom` has written into a folder."""
    faults = []
    for name in SETS:
        lock = locked_packages((ROOT / "requirements" / f"{name}.hashes.txt").read_text())
        file = folder / f"loraplex-{name}.cdx.json"
        faults += [
            f"{file.name}: {each}" for each in bill_faults(json.loads(file.read_text()), lock)
        ]
        if name == "cpu":  # the packages of the other set aren't installed here
            rows = json.loads((folder / "licences.json").read_text())
            faults += [f"licences.json: {each}" for each in licence_faults(rows, lock)]
    return faults


if __name__ == "__main__":
    sys.exit("\n".join(faults_in(Path(sys.argv[1]))) or None)
