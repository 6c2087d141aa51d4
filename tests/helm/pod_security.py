"""The restricted Pod Security Standard as a function: what admission would refuse of a pod.

https://kubernetes.io/docs/concepts/security/pod-security-standards/ (baseline and restricted)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Spec = dict[str, Any]
VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim"),
    *("projected", "secret", "name"),
}
SYSCTLS = {
    *("kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.tcp_syncookies"),
    *("net.ipv4.ping_group_range", "net.ipv4.ip_unprivileged_port_start"),
    *("net.ipv4.ip_local_reserved_ports", "net.ipv4.tcp_keepalive_time"),
    *("net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes"),
}
SELINUX_TYPES = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
PROFILES = {"RuntimeDefault", "Localhost"}


def violations(spec: Spec) -> Iterator[str]:
    """Yield what the restricted standard forbids in a pod's specification."""
    yield from (
        f"{name} is set" for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)
    )
    for volume in spec.get("volumes", []):
        yield from (f"volume of the type {kind}" for kind in volume.keys() - VOLUMES)
    whole = spec.get("securityContext", {})
    for sysctl in whole.get("sysctls", []):
        if sysctl["name"] not in SYSCTLS:
            yield f"sysctl {sysctl['name']}"
    yield from _of_both(whole)
    kinds = ("initContainers", "containers", "ephemeralContainers")
    for container in (c for kind in kinds for c in spec.get(kind, [])):
        own = container.get("securityContext", {})
        found = [*_of_both(own), *_required(whole | own), *_of_container(container, own)]
        yield from (f"{container['name']}: {why}" for why in found)


def _of_both(security: Spec) -> Iterator[str]:
    """Yield what neither a pod nor a container may set."""
    if security.get("windowsOptions", {}).get("hostProcess"):
        yield "hostProcess is set"
    if security.get("runAsUser") == 0:
        yield "runs as root"
    selinux = security.get("seLinuxOptions", {})
    if selinux.get("type", "") not in SELINUX_TYPES or selinux.keys() & {"user", "role"}:
        yield "SELinux options"
    if security.get("appArmorProfile", {}).get("type", "RuntimeDefault") not in PROFILES:
        yield "AppArmor profile"


def _required(security: Spec) -> Iterator[str]:
    """Yield what is missing in the settings that hold for a container."""
    if security.get("runAsNonRoot") is not True:
        yield "runAsNonRoot isn't set"
    if security.get("seccompProfile", {}).get("type") not in PROFILES:
        yield "there is no seccomp profile"


def _of_container(container: Spec, security: Spec) -> Iterator[str]:
    if security.get("allowPrivilegeEscalation") is not False:
        yield "privileges may be escalated"
    if security.get("privileged"):
        yield "is privileged"
    if security.get("procMount", "Default") != "Default":
        yield "procMount"
    capabilities = security.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []):
        yield "keeps capabilities"
    if set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield "adds capabilities"
    if any(port.get("hostPort") for port in container.get("ports", [])):
        yield "a port of the host"
    hooks = container.get("lifecycle", {})
    names = ("livenessProbe", "readinessProbe", "startupProbe")
    actions = [*hooks.values(), *(container.get(name, {}) for name in names)]
    if any(a.get(kind, {}).get("host") for a in actions for kind in ("httpGet", "tcpSocket")):
        yield "a probe or hook names a host"
