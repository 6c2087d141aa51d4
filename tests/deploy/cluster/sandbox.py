"""The command that runs a container of a pod as a sandboxed process, by bubblewrap.

As the chart says, it has the user 10001, no capabilities, a read-only root file system, and only
the volumes of the pod to write to. The programs are those of this machine and repository, in place
of an image.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.deploy.cluster.network import NODE
from tests.helm.programs import ROOT

Manifest = dict[str, Any]
OF_THE_SYSTEM = (
    *("/etc/alternatives", "/etc/ld.so.cache", "/etc/passwd", "/etc/group", "/etc/ssl"),
    *("/etc/nsswitch.conf", "/opt"),
)
LINKS = ("bin", "lib", "lib64", "sbin")
KNOWN = {
    *("name", "image", "imagePullPolicy", "securityContext", "ports", "envFrom", "env", "args"),
    *("command", "startupProbe", "readinessProbe", "livenessProbe", "lifecycle", "resources"),
    "volumeMounts",
}
"""What a container of the chart may have. More must be added here and done by this module or by
`pod.py`; otherwise it would look tested without being so."""


@dataclass(frozen=True)
class Image:
    """What an image stands for here."""

    entrypoint: list[str]
    command: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Objects:
    """What pods refer to by name: ConfigMaps, and Secrets with their values in clear."""

    config_maps: Mapping[str, Mapping[str, str]]
    secrets: Mapping[str, Mapping[str, str]]


def environment(container: Manifest, objects: Objects) -> dict[str, str]:
    """Return the variables of a container: those of `envFrom`, then those of `env`."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        if "configMapRef" in source:
            found |= objects.config_maps[source["configMapRef"]["name"]]
        else:
            found |= objects.secrets[source["secretRef"]["name"]]
    for entry in container.get("env", []):
        if "value" in entry:
            found[entry["name"]] = entry["value"]
        else:
            key = entry["valueFrom"]["secretKeyRef"]
            found[entry["name"]] = objects.secrets[key["name"]][key["key"]]
    return found


class Volumes:
    """The volumes of a pod as folders: some of them end with the pod, claims stay."""

    def __init__(self, pod: str, spec: Manifest, folder: Path, objects: Objects) -> None:
        self.own = folder / "pods" / pod
        """The folder of what ends with the pod."""
        self._pod, self._folder, self._objects = pod, folder, objects
        self._sources = {each["name"]: each for each in spec.get("volumes", [])}
        shutil.rmtree(self.own, ignore_errors=True)
        self.own.mkdir(parents=True)

    def mount(self, container: Manifest) -> list[str]:
        """Return bubblewrap's options for what a container mounts."""
        options = []
        for mount in container.get("volumeMounts", []):
            assert mount.keys() <= {"name", "mountPath", "readOnly"}, mount
            options += self._option(mount)
        return options

    def _option(self, mount: Manifest) -> list[str]:
        name, path = mount["name"], mount["mountPath"]
        source = self._sources.get(name, {"name": name, "claim": f"{name}-{self._pod}"})
        if source.get("emptyDir", {}).get("medium") == "Memory":
            return ["--size", str(_bytes(source["emptyDir"]["sizeLimit"])), "--tmpfs", path]
        kind = "--ro-bind" if mount.get("readOnly") else "--bind"
        return [kind, str(self._directory(name, source)), path]

    def _directory(self, name: str, source: Manifest) -> Path:
        if "claim" in source:
            directory = self._folder / "claims" / str(source["claim"])
        elif "persistentVolumeClaim" in source:
            directory = self._folder / "claims" / str(source["persistentVolumeClaim"]["claimName"])
        else:
            directory = self.own / name
        directory.mkdir(parents=True, exist_ok=True)
        for file, content in self._files(source).items():
            (directory / file).write_text(content)
        return directory

    def _files(self, source: Manifest) -> Mapping[str, str]:
        if "configMap" in source:
            return self._objects.config_maps[source["configMap"]["name"]]
        if "secret" in source:
            values = self._objects.secrets[source["secret"]["secretName"]]
            return {item["path"]: values[item["key"]] for item in source["secret"]["items"]}
        return {}


def _bytes(quantity: str) -> int:
    units = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
    return int(float(quantity[:-2]) * units[quantity[-2:]])


def command(
    pod: str, spec: Manifest, container: Manifest, image: Image, volumes: Volumes, objects: Objects
) -> list[str]:
    """Return bubblewrap's command line for a container, whose program is its process 1."""
    assert container.keys() <= KNOWN, container.keys() - KNOWN
    security = spec["securityContext"] | container["securityContext"]
    assert security["readOnlyRootFilesystem"], "the root is read-only here"
    assert security["capabilities"] == {"drop": ["ALL"]}, "there are no capabilities here"
    names = volumes.own / "resolv.conf"
    names.write_text(
        f"nameserver {NODE}\noptions ndots:5\n"
        "search models.svc.cluster.local svc.cluster.local cluster.local\n"
    )
    options = ["bwrap", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--hostname", pod]
    options += ["--as-pid-1", "--new-session", "--unshare-user", "--cap-drop", "ALL"]
    options += ["--uid", str(security["runAsUser"]), "--gid", str(security["runAsGroup"])]
    options += ["--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev"]
    options += ["--ro-bind", "/sys", "/sys"]  # from which vLLM learns the processor
    for link in LINKS:
        options += ["--symlink", f"usr/{link}", f"/{link}"]
    for path in OF_THE_SYSTEM:
        options += ["--ro-bind-try", path, path]
    options += ["--ro-bind", str(names), "/etc/resolv.conf", *volumes.mount(container)]
    for path in _of_python():  # after the volumes: this repository may stand in /tmp, which is one
        options += ["--ro-bind-try", path, path]
    options += ["--chdir", "/", "--clearenv"]
    variables = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHONUNBUFFERED": "1"}
    variables["PYTHONPATH"] = str(ROOT)
    for name, value in (variables | environment(container, objects)).items():
        options += ["--setenv", name, value]
    arguments = container.get("args", [] if "command" in container else image.command)
    return [*options, "--", *container.get("command", image.entrypoint), *arguments]


def _of_python() -> Iterable[str]:
    """Return Python's and this repository's paths that a container sees, the outer ones first."""
    packages = [path for path in sys.path if path.endswith("site-packages")]
    return sorted({sys.base_prefix, sys.prefix, str(ROOT), *packages})
