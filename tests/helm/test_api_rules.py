"""The rules of an API server on all that the chart can render, and on objects that break each."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import yaml

from tests.helm.api_rules import amount, refusals
from tests.helm.conftest import Manifests
from tests.helm.programs import CHART, Helm
from tests.helm.test_chart import only, values

LONGEST_RELEASE = "a" * 53
"""Helm takes no longer name."""
EVERYTHING: dict[str, Any] = {
    "settings.operations_port": 9090,
    "image.digest": f"sha256:{'0a' * 32}",
    "imagePullSecrets": ["registry"],
    "runtimeClassName": "runc",
    "affinity": {"nodeAffinity": {}},
    "nodeSelector": {"pool": "llm"},
    "tolerations": [{"operator": "Exists"}],
    "initContainers": [{"name": "first", "image": "busybox:1", "command": ["true"]}],
    "service.type": "LoadBalancer",
    "serviceAccount.annotations": {"example.com/role": "models"},
    "ingress.className": "nginx",
    "ingress.annotations": {"example.com/timeout": "0"},
    "persistence.storageClass": "fast",
    "monitoring.scrapeTokenSecret": "token",
    "sharedMemory": "2Gi",
    "tmpSize": "1Gi",
    "pdb.maxUnavailable": "50%",
    "envoy.dedicated": [{"names": ["support"], "host": "support.example.com", "port": 8000}],
}
"""Every value that no profile of `ci/` sets, besides those of the CPU profile."""


def given(chosen: dict[str, Any]) -> list[str]:
    return values(**{name: json.dumps(value) for name, value in chosen.items()})


def test_each_profile(manifests: Manifests) -> None:
    assert refusals(manifests) == []


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_everything_with_the_longest_name(helm4: Helm, profile: str) -> None:
    file = str(CHART / "ci" / f"{profile}-values.yaml")
    chosen = {k: v for k, v in EVERYTHING.items() if profile == "cpu" or "ingress" not in k}
    text = helm4.run(f"template {LONGEST_RELEASE}", str(CHART), "--values", file, *given(chosen))
    assert refusals([m for m in yaml.safe_load_all(text) if m]) == []


def test_every_value_of_the_chart_is_set_by_a_profile_or_here(helm4: Helm) -> None:
    """So the rules and schemas see what each value renders to."""
    files = sorted((CHART / "ci").glob("*-values.yaml"))
    paths = {path for file in files for path in leaves(yaml.safe_load(file.read_text()) or {})}
    known = leaves(yaml.safe_load((CHART / "values.yaml").read_text()))
    unset = {p for p in known if not any(q == p or q.startswith(f"{p}.") for q in paths)}
    assert unset - set(EVERYTHING) <= LEFT_AS_THEY_ARE


LEFT_AS_THEY_ARE = {
    *("image.repository", "image.tag", "image.pullPolicy", "preStopSeconds", "service.port"),
    *("adminKey.secretKey", "consoleSecret.secretKey", "database.secretKey", "envoy.image"),
    *("autoscaling.requestsPerReplica", "envoy.balancePercent", "envoy.replicas"),
    *("envoy.resources", "envoy.trustedHops", "persistence.existingClaim", "httpRoute.paths"),
}
"""Values whose default is rendered, or that have a test of their own."""


def leaves(found: dict[str, Any], before: str = "") -> set[str]:
    """Return the paths of values, down to what has a list, a text or a number."""
    paths = set()
    for key, value in found.items():
        path = f"{before}{key}"
        is_free = path in ("resources", "envoy.resources", "nodeSelector", "affinity")
        inner = leaves(value, f"{path}.") if isinstance(value, dict) and not is_free else set()
        paths |= inner or {path}
    return paths


def container_of(manifests: Manifests) -> dict[str, Any]:
    pod = only(manifests, "StatefulSet")["spec"]["template"]["spec"]
    found: dict[str, Any] = pod["containers"][0]
    return found


def service(manifests: Manifests) -> dict[str, Any]:
    return only(manifests, "Service")


Bend = Callable[[Manifests], Any]
WRONG: dict[str, Bend] = {
    "the name may have": lambda m: service(m)["metadata"].update(name="a" * 64),
    "label team": lambda m: service(m)["metadata"]["labels"].update(team="a b"),
    "label a/b/c": lambda m: service(m)["metadata"]["labels"].update({"a/b/c": "d"}),
    "annotation n has the value 3": lambda m: service(m)["metadata"].update(annotations={"n": 3}),
    "doesn't select the template's pods": lambda m: only(m, "StatefulSet")["spec"]["selector"][
        "matchLabels"
    ].update(more="x"),
    "mounts /data twice": lambda m: container_of(m)["volumeMounts"].append(
        {"name": "tmp", "mountPath": "/data"}
    ),
    "mounts other, which isn't there": lambda m: container_of(m)["volumeMounts"].append(
        {"name": "other", "mountPath": "/other"}
    ),
    "variable HOME stands twice": lambda m: container_of(m)["env"].append({"name": "HOME"}),
    "port much-too-long-a-name": lambda m: container_of(m)["ports"].append(
        {"name": "much-too-long-a-name"}
    ),
    "readinessProbe: there is no port web": lambda m: container_of(m)["readinessProbe"][
        "httpGet"
    ].update(port="web"),
    "periodSeconds 0": lambda m: container_of(m)["livenessProbe"].update(periodSeconds=0),
    "preStop sleeps 0 s": lambda m: container_of(m)["lifecycle"]["preStop"]["sleep"].update(
        seconds=0
    ),
    "is above the limit": lambda m: container_of(m)["resources"]["requests"].update(memory="99Gi"),
    "memory 1 GB": lambda m: container_of(m)["resources"]["requests"].update(memory="1 GB"),
    "stands 2 times": lambda m: m.append(service(m)),
    "selects no pods": lambda m: service(m)["spec"]["selector"].update(more="x"),
    "no selected pod has the port web": lambda m: service(m)["spec"]["ports"][0].update(
        targetPort="web"
    ),
    "scales other, which isn't there": lambda m: only(m, "HorizontalPodAutoscaler")["spec"][
        "scaleTargetRef"
    ].update(name="other"),
    "it runs before demo-loraplex is there": lambda m: only(m, "Job", "demo-loraplex-migration")[
        "spec"
    ]["template"]["spec"].update(serviceAccountName="demo-loraplex"),
    "host 10.0.0.1": lambda m: only(m, "Ingress")["spec"]["rules"][0].update(host="10.0.0.1"),
    "volume tmp stands twice": lambda m: only(m, "StatefulSet")["spec"]["template"]["spec"][
        "volumes"
    ].append({"name": "tmp"}),
}


@pytest.fixture(scope="module")
def rendered(helm4: Helm) -> Manifests:
    return helm4.render("--values", str(CHART / "ci" / "cpu-values.yaml"))


@pytest.mark.parametrize("said", WRONG)
def test_what_breaks_a_rule_is_found(rendered: Manifests, said: str) -> None:
    bent = deepcopy(rendered)
    WRONG[said](bent)
    assert any(said in refusal for refusal in refusals(bent)), refusals(bent)


def test_quantities() -> None:
    assert amount("1500m") == amount("1.5")
    assert amount("1Gi") == 1 << 30
    assert amount("1e3") == 1000
    assert amount("1GB") is None
