"""Every pod of the chart against the restricted pod security standard, and a few rules of ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.helm.conftest import Manifests
from tests.helm.pod_security import violations


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
        assert not list(violations(pod)), name
        assert pod["securityContext"]["runAsUser"] > 0, name


def with_container(**fields: Any) -> dict[str, Any]:
    return {"containers": [{"name": "c", **fields}]}


def with_security(**fields: Any) -> dict[str, Any]:
    return with_container(securityContext=fields)


FORBIDDEN: list[tuple[str, dict[str, Any]]] = [
    ("hostNetwork is set", {"hostNetwork": True, "containers": []}),
    ("volume of the type hostPath", {"volumes": [{"hostPath": {}}], "containers": []}),
    (
        "sysctl kernel.msgmax",
        {"securityContext": {"sysctls": [{"name": "kernel.msgmax"}]}, "containers": []},
    ),
    ("c: hostProcess is set", with_security(windowsOptions={"hostProcess": True})),
    ("runs as root", {"securityContext": {"runAsUser": 0}, "containers": []}),
    ("c: runs as root", with_security(runAsUser=0)),
    ("c: SELinux options", with_security(seLinuxOptions={"type": "spc_t"})),
    ("c: AppArmor profile", with_security(appArmorProfile={"type": "Unconfined"})),
    ("c: runAsNonRoot isn't set", with_security(runAsNonRoot=False)),
    ("c: there is no seccomp profile", with_security(seccompProfile={"type": "Unconfined"})),
    ("c: privileges may be escalated", with_security()),
    ("c: is privileged", with_security(privileged=True)),
    ("c: procMount", with_security(procMount="Unmasked")),
    ("c: keeps capabilities", with_security(capabilities={"drop": ["CHOWN"]})),
    ("c: adds capabilities", with_security(capabilities={"add": ["SYS_ADMIN"]})),
    ("c: a port of the host", with_container(ports=[{"hostPort": 80}])),
    (
        "c: a probe or hook names a host",
        with_container(livenessProbe={"httpGet": {"host": "127.0.0.1"}}),
    ),
]


@pytest.mark.parametrize(("said", "pod"), FORBIDDEN, ids=[said for said, _ in FORBIDDEN])
def test_what_the_standard_forbids_is_found(said: str, pod: dict[str, Any]) -> None:
    assert said in list(violations(pod))


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
