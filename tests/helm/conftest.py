"""The chart, rendered by both Helms for every file of values in `ci/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helm.programs import CHART, Helm, fetch

PROFILES = sorted((CHART / "ci").glob("*-values.yaml"))
Manifests = list[dict[str, Any]]


@pytest.fixture(scope="session", params=[3, 4], ids=["helm3", "helm4"])
def helm(request: pytest.FixtureRequest) -> Helm:
    return fetch(request.param)


@pytest.fixture(scope="session")
def helm4() -> Helm:
    return fetch(4)


@pytest.fixture(scope="session", params=PROFILES, ids=lambda file: file.stem)
def profile(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


@pytest.fixture(scope="session")
def manifests(helm4: Helm, profile: Path) -> Manifests:
    """What a profile renders to; both Helms agree, says a test."""
    return helm4.render("--values", str(profile))
