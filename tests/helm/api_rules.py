"""What an API server refuses although a schema allows it: names, references, limits, selectors.

The rules are those of Kubernetes' validation of the fields that the chart uses, and of the
references between its objects, which nobody checks until a pod doesn't start.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any

Manifest = dict[str, Any]
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
LABEL_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]([a-z0-9]|-(?=[a-z0-9])){0,14}")
VARIABLE = re.compile(r"[-._A-Za-z][-._A-Za-z0-9]*")
QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti|e[0-9]+)?")
UNITS: dict[str, Decimal | int] = {
    "": 1,
    "m": Decimal("0.001"),
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
}
UNITS |= {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}
LONGEST_STATEFUL_SET = 52
"""A label of its pods holds the name with a hash of eleven characters behind it."""
LARGEST_BYTES = 1 << 20
"""Of a ConfigMap, and of all annotations of an object a quarter of it."""
WORKLOADS = ("StatefulSet", "Deployment", "Job")


def refusals(manifests: Iterable[Manifest]) -> list[str]:
    """Return what is wrong with the objects of one release, each with the object's name."""
    objects = list(manifests)
    found = [f"{_name(o)}: {why}" for o in objects for why in _one(o)]
    counted = Counter(map(_name, objects))
    found += [f"{name}: stands {number} times" for name, number in counted.items() if number > 1]
    return found + [f"{_name(o)}: {why}" for o in objects for why in _references(o, objects)]


def _name(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def _one(manifest: Manifest) -> Iterator[str]:
    metadata, kind = manifest["metadata"], manifest["kind"]
    longest = {"Service": 63, "StatefulSet": LONGEST_STATEFUL_SET, "Job": 63}.get(kind, 253)
    pattern = LABEL if kind in ("Service", "StatefulSet", "Job") else SUBDOMAIN
    if not pattern.fullmatch(metadata["name"]) or len(metadata["name"]) > longest:
        yield f"the name may have {longest} characters of {pattern.pattern}"
    yield from _keys(metadata.get("labels", {}), "label", LABEL_VALUE)
    yield from _keys(metadata.get("annotations", {}), "annotation", re.compile(r"(?s).*"))
    if len(str(metadata.get("annotations", {}))) > LARGEST_BYTES // 4:
        yield "the annotations are too long"
    if kind == "ConfigMap":
        if sum(len(value.encode()) for value in manifest["data"].values()) > LARGEST_BYTES:
            yield "the data are too long"
        yield from (f"key {k}" for k in manifest["data"] if not VARIABLE.fullmatch(k))
    if template := template_of(manifest):
        yield from _pod(template)
        if kind in ("StatefulSet", "Deployment"):
            chosen = manifest["spec"]["selector"]["matchLabels"].items()
            if not chosen <= template["metadata"]["labels"].items():
                yield "the selector doesn't select the template's pods"
    for rule in manifest["spec"].get("rules", []) if kind == "Ingress" else []:
        if not SUBDOMAIN.fullmatch(rule["host"]) or re.fullmatch(r"[\d.]+", rule["host"]):
            yield f"host {rule['host']}"


def _keys(found: dict[str, Any], kind: str, values: re.Pattern[str]) -> Iterator[str]:
    for key, value in found.items():
        prefix, _, name = key.rpartition("/")
        if not LABEL_NAME.fullmatch(name) or (prefix and not SUBDOMAIN.fullmatch(prefix)):
            yield f"{kind} {key}"
        if not isinstance(value, str) or not values.fullmatch(value):
            yield f"{kind} {key} has the value {value!r}"


def template_of(manifest: Manifest) -> Manifest | None:
    """Return the pod or template of pods that an object has, or None."""
    if manifest["kind"] == "Pod":
        return manifest
    template: Manifest | None = manifest["spec"].get("template") if "spec" in manifest else None
    return template if manifest["kind"] in WORKLOADS else None


def _pod(template: Manifest) -> Iterator[str]:
    spec = template["spec"]
    yield from _keys(template["metadata"].get("labels", {}), "label of pods", LABEL_VALUE)
    containers = [*spec.get("initContainers", []), *spec["containers"]]
    volumes = [volume["name"] for volume in spec.get("volumes", [])]
    named = {"container": [c["name"] for c in containers], "volume": volumes}
    for kind, names in named.items():
        yield from (f"{kind} {name} stands twice" for name in _twice(names))
        yield from (f"{kind} {name}" for name in names if not LABEL.fullmatch(name))
    for container in containers:
        yield from (f"{container['name']}: {why}" for why in _container(container, spec))


def _container(container: Manifest, spec: Manifest) -> Iterator[str]:
    mounts = container.get("volumeMounts", [])
    yield from (f"mounts {path} twice" for path in _twice(m["mountPath"] for m in mounts))
    ports = container.get("ports", [])
    yield from (f"port {p['name']}" for p in ports if not PORT_NAME.fullmatch(p["name"]))
    yield from (f"port {name} stands twice" for name in _twice(p["name"] for p in ports))
    variables = [entry["name"] for entry in container.get("env", [])]
    yield from (f"variable {name} stands twice" for name in _twice(variables))
    yield from (f"variable {name}" for name in variables if not VARIABLE.fullmatch(name))
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        for why in _probe(container.get(probe, {}), {p["name"] for p in ports}):
            yield f"{probe}: {why}"
    sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 1)
    if not 0 < sleep <= spec.get("terminationGracePeriodSeconds", 30):
        yield f"preStop sleeps {sleep} s, and the pod has less time"
    yield from _resources(container.get("resources", {}))


def _probe(probe: Manifest, ports: set[str]) -> Iterator[str]:
    for field, value in probe.items():
        if field.endswith(("Seconds", "Threshold")) and value < 1:
            yield f"{field} {value}"
    for action in ("httpGet", "tcpSocket"):
        port = probe.get(action, {}).get("port")
        if isinstance(port, str) and port not in ports:
            yield f"there is no port {port}"


def _resources(resources: Manifest) -> Iterator[str]:
    limits, requests = resources.get("limits", {}), resources.get("requests", {})
    for name, text in [*limits.items(), *requests.items()]:
        if amount(text) is None:
            yield f"{name} {text}"
    for name in requests.keys() & limits.keys():
        wanted, most = amount(requests[name]), amount(limits[name])
        if wanted is not None and most is not None and wanted > most:
            yield f"{name}: the request {requests[name]} is above the limit {limits[name]}"


def amount(quantity: object) -> Decimal | None:
    """Return the number that a quantity stands for, or None if it is none."""
    if not (found := QUANTITY.fullmatch(str(quantity))):
        return None
    number, unit = found[1], found[2] or ""
    return Decimal(number + unit) if unit.startswith("e") else Decimal(number) * UNITS[unit]


def _twice(names: Iterable[str]) -> list[str]:
    return [name for name, number in Counter(names).items() if number > 1]


def _references(manifest: Manifest, objects: list[Manifest]) -> Iterator[str]:
    kind, spec = manifest["kind"], manifest.get("spec", {})
    if template := template_of(manifest):
        yield from _mounted(template["spec"], manifest)
        if "helm.sh/hook" in manifest["metadata"].get("annotations", {}):
            yield from _not_yet_there(manifest, template["spec"], objects)
    if kind in ("Service", "PodDisruptionBudget", "NetworkPolicy"):
        selector = spec.get("podSelector" if kind == "NetworkPolicy" else "selector", {})
        labels = selector.get("matchLabels", {}) if kind != "Service" else selector
        selected = [t for o in objects if (t := template_of(o)) and _selects(labels, t)]
        if not selected:
            yield "selects no pods"
        names = {
            p["name"] for t in selected for c in t["spec"]["containers"] for p in c.get("ports", [])
        }
        for port in spec.get("ports", []) if kind == "Service" else []:
            if port["targetPort"] not in names:
                yield f"no selected pod has the port {port['targetPort']}"
    target = spec.get("scaleTargetRef")
    if target and f"{target['kind']}/{target['name']}" not in map(_name, objects):
        yield f"scales {target['name']}, which isn't there"


def _selects(labels: dict[str, str], template: Manifest) -> bool:
    found: dict[str, str] = template["metadata"]["labels"]
    return labels.items() <= found.items()


def _mounted(spec: Manifest, owner: Manifest) -> Iterator[str]:
    there = {volume["name"] for volume in spec.get("volumes", [])}
    there |= {claim["metadata"]["name"] for claim in owner["spec"].get("volumeClaimTemplates", [])}
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in there:
                yield f"{container['name']} mounts {mount['name']}, which isn't there"


def _not_yet_there(hook: Manifest, spec: Manifest, objects: list[Manifest]) -> Iterator[str]:
    """Yield what a hook before the installation names of the release, which comes after it."""
    if not hook["metadata"]["annotations"]["helm.sh/hook"].startswith("pre-"):
        return
    ours = {o["metadata"]["name"] for o in objects if o["kind"] in ("ConfigMap", "ServiceAccount")}
    named = {spec.get("serviceAccountName")}
    named |= {v.get("configMap", {}).get("name") for v in spec.get("volumes", [])}
    for container in spec["containers"]:
        named |= {f.get("configMapRef", {}).get("name") for f in container.get("envFrom", [])}
    yield from (f"it runs before {name} is there" for name in sorted(filter(None, named & ours)))
