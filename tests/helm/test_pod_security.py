"""Every pod of the chart against the restricted pod security standard, and a few rules of ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.helm.conftest import Manifests

# https://kubernetes.io/docs/concepts/security/pod-security-standards/
VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret", "csi"}


def pods(manifests: Manifests) -> Iterator[tuple[str, dict[str, Any]]]:
    for manifest in manifests:
        if manifest["kind"] == "Pod":
            yield manifest["metadata"]["name"], manifest["spec"]
        elif "template" in manifest.get("spec", {}):
            yield manifest["metadata"]["name"], manifest["spec"]["template"]["spec"]


def test_the_pods_of_each_profile_are_looked_at(manifests: Manifests) -> None:
    assert {"demo-loraplex", "demo-loraplex-test"} <= {name for name, _ in pods(manifests)}


def test_restricted(manifests: Manifests) -> None:
    for name, pod in pods(manifests):
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["runAsUser"] > 0, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}, name
        for volume in pod.get("volumes", []):
            assert volume.keys() - {"name"} <= VOLUMES, name
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False, name
            assert security["capabilities"] == {"drop": ["ALL"]}, name
            assert not security.keys() & {"privileged", "procMount", "runAsUser"}, name
            assert all("hostPort" not in port for port in container.get("ports", [])), name


def test_rules_of_ours(manifests: Manifests) -> None:
    for name, pod in pods(manifests):
        assert pod["automountServiceAccountToken"] is False, name
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, name
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), name
            assert "memory" in container["resources"]["limits"], name
            tag = container["image"].rpartition(":")[2]
            assert tag not in ("", "latest"), name


@pytest.mark.parametrize("kind", ["StatefulSet", "Deployment"])
def test_servers_are_watched_and_selected(manifests: Manifests, kind: str) -> None:
    for manifest in manifests:
        if manifest["kind"] == kind:
            template = manifest["spec"]["template"]
            chosen = manifest["spec"]["selector"]["matchLabels"]
            assert chosen.items() <= template["metadata"]["labels"].items()
            for container in template["spec"]["containers"]:
                assert {"livenessProbe", "readinessProbe", "lifecycle"} <= container.keys()
