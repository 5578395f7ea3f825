"""The baseline level of Kubernetes' Pod Security Standards, as their text has it, for pods like ours.

Source: kubernetes.io/docs/concepts/security/pod-security-standards, "Baseline".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

CAPABILITIES = {
    *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "SETFCAP"),
    *("SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
}
SYSCTLS = {
    *("kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start"),
    *("net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports"),
    *("net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl"),
    *("net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"),
}
SELINUX = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}


def violations(metadata: Mapping[str, Any], spec: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a pod does that the baseline forbids."""
    yield from (name for name in ("hostPID", "hostIPC", "hostNetwork") if spec.get(name))
    yield from (f"hostPath {volume['name']}" for volume in spec.get("volumes", ()) if "hostPath" in volume)
    contexts = [spec.get("securityContext", {})]
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        for container in spec.get(kind, ()):
            contexts.append(container.get("securityContext", {}))
            yield from (f"hostPort {port['hostPort']}" for port in container.get("ports", ()) if port.get("hostPort"))
            handlers = [container.get(name, {}) for name in ("livenessProbe", "readinessProbe", "startupProbe")]
            handlers += container.get("lifecycle", {}).values()
            yield from ("host of a probe" for each in handlers if (each.get("httpGet") or {}).get("host"))
    yield from (
        f"AppArmor {value}"
        for name, value in metadata.get("annotations", {}).items()
        if name.startswith("container.apparmor.security.beta.kubernetes.io/") and value == "unconfined"
    )
    for context in contexts:
        yield from _of_context(context)


def _of_context(context: Mapping[str, Any]) -> Iterator[str]:
    if context.get("privileged"):
        yield "privileged"
    if context.get("windowsOptions", {}).get("hostProcess"):
        yield "hostProcess"
    added = (context.get("capabilities") or {}).get("add") or ()
    yield from (f"capability {name}" for name in added if name not in CAPABILITIES)
    if context.get("procMount", "Default") != "Default":
        yield "procMount"
    if context.get("seccompProfile", {}).get("type") == "Unconfined":
        yield "seccomp Unconfined"
    if context.get("appArmorProfile", {}).get("type") == "Unconfined":
        yield "AppArmor Unconfined"
    options = context.get("seLinuxOptions", {})
    if options.get("type", "") not in SELINUX or options.get("user") or options.get("role"):
        yield "SELinux options"
    yield from (f"sysctl {each['name']}" for each in context.get("sysctls", ()) if each["name"] not in SYSCTLS)
