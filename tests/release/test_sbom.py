"""What is checked of the bills of materials, on small ones."""

from __future__ import annotations

from typing import Any

import pytest

from tests.release.sbom import ROOT, SETS, bill_faults, licence_faults, locked_packages

HASH = "0" * 64
LOCK = f"a-b==1.0 --hash=sha256:{HASH}\nc==2.0+cpu --hash=sha256:{HASH}\n"


def component(name: str, version: str, sha256: str = HASH) -> dict[str, Any]:
    hashes = [{"alg": "SHA-256", "content": sha256}]
    return {
        "name": name,
        "version": version,
        "externalReferences": [{"type": "distribution", "hashes": hashes}],
    }


def bill(*components: dict[str, Any]) -> dict[str, Any]:
    return {"bomFormat": "CycloneDX", "components": list(components)}


def test_a_bill_that_is_the_lock() -> None:
    locked = locked_packages(LOCK)
    assert locked == {"a-b": ("1.0", HASH), "c": ("2.0+cpu", HASH)}
    assert not bill_faults(bill(component("A_b", "1.0"), component("c", "2.0+cpu")), locked)


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (bill(component("a-b", "1.0")), "c is missing"),
        (
            bill(component("a-b", "1.0"), component("c", "2.0+cpu"), component("d", "3")),
            "d isn't in the lock",
        ),
        (bill(component("a-b", "1.1"), component("c", "2.0+cpu")), "a-b is 1.1, not 1.0"),
        (
            bill(component("a-b", "1.0", "f" * 64), component("c", "2.0+cpu")),
            "a-b lacks its hash",
        ),
        ({}, "it is no CycloneDX document"),
    ],
)
def test_a_bill_that_differs(given: dict[str, Any], fault: str) -> None:
    assert bill_faults(given, locked_packages(LOCK)) == [fault]


def test_licences_that_are_missing() -> None:
    rows = [{"Name": "A.b", "License": "MIT"}, {"Name": "c", "License": "UNKNOWN"}]
    locked = {"a-b": 1, "c": 1, "d": 1}
    assert licence_faults(rows, locked) == ["c has no licence", "d is missing"]
    assert not licence_faults(rows[:1], {"a-b": 1})


@pytest.mark.parametrize("name", SETS)
def test_every_line_of_a_lock_is_understood(name: str) -> None:
    lock = (ROOT / "requirements" / f"{name}.hashes.txt").read_text()
    assert len(locked_packages(lock)) == len(lock.splitlines())
