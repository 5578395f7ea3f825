"""A container started from a DaemonSet's manifest by Docker: every field that says what it may do is translated.

A field that this does not know is an error, so that nothing in the manifest is passed over in silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PROPAGATION = {"HostToContainer": "rslave", "None": "rprivate"}
# what only a cluster has a use for, or a later release of the kubelet: the container is the same without it
CLUSTER_POD = {
    *("serviceAccountName", "automountServiceAccountToken", "enableServiceLinks", "priorityClassName"),
    *("terminationGracePeriodSeconds", "nodeSelector", "tolerations", "containers", "volumes"),
}
CLUSTER_CONTAINER = {"name", "image", "ports", "livenessProbe", "readinessProbe"}


class Untranslated(Exception):
    """The manifest says something that a test would not have put to the test."""


def container_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a pod's one container."""
    (container,) = spec["containers"]
    return dict(container)


def docker_arguments(spec: Mapping[str, Any], image: str, directory: Path, config: str) -> list[str]:
    """Return the arguments of `docker run` for a pod's one container.

    `directory` keeps what the kubelet would keep of its volumes, `config` is the content of the ConfigMap's one file.
    """
    container = container_of(spec)
    arguments = [
        *_pod(spec),
        *_security(spec.get("securityContext", {}), container["securityContext"]),
        *_resources(container["resources"]),
        *_mounts(spec["volumes"], container["volumeMounts"], directory, config),
    ]
    _refuse(container, CLUSTER_CONTAINER | {"args", "securityContext", "resources", "volumeMounts"}, "container")
    return [*arguments, image, *container["args"]]


def _pod(spec: Mapping[str, Any]) -> Iterator[str]:
    if spec.get("hostPID"):
        yield "--pid=host"
    _refuse(spec, CLUSTER_POD | {"hostPID", "securityContext"}, "pod")


def _security(pod: Mapping[str, Any], container: Mapping[str, Any]) -> Iterator[str]:
    both = {**pod, **container}
    if both.get("seccompProfile") != {"type": "RuntimeDefault"}:  # which is what Docker does unasked
        raise Untranslated(f"seccompProfile: {both.get('seccompProfile')}")
    user, group = both["runAsUser"], both["runAsGroup"]
    if both.get("runAsNonRoot") and user == 0:
        raise Untranslated("runAsNonRoot with user 0: the kubelet would not start it")
    yield f"--user={user}:{group}"
    if both.get("readOnlyRootFilesystem"):
        yield "--read-only"
    if both.get("privileged"):
        yield "--privileged"
    elif not both["allowPrivilegeEscalation"]:
        yield "--security-opt=no-new-privileges"
    if both.get("appArmorProfile", {}).get("type") == "Unconfined":
        yield "--security-opt=apparmor=unconfined"
    capabilities = both.get("capabilities") or {}
    yield from (f"--cap-drop={name}" for name in capabilities.get("drop", ()))
    yield from (f"--cap-add={name}" for name in capabilities.get("add", ()))
    known = {
        "seccompProfile",
        "runAsUser",
        "runAsGroup",
        "runAsNonRoot",
        "readOnlyRootFilesystem",
        "privileged",
        "appArmorProfile",
    }
    _refuse(both, known | {"allowPrivilegeEscalation", "capabilities"}, "securityContext")


def _resources(resources: Mapping[str, Any]) -> Iterator[str]:
    limits = resources.get("limits", {})
    if "memory" in limits:
        yield f"--memory={limits['memory'].removesuffix('i').lower()}"
    if "cpu" in limits:
        raise Untranslated("a limit of cpu")


def _mounts(volumes: list[dict[str, Any]], mounts: list[dict[str, Any]], directory: Path, config: str) -> Iterator[str]:
    named = {volume["name"]: volume for volume in volumes}
    for mount in mounts:
        volume = named[mount["name"]]
        target, mode = mount["mountPath"], "ro" if mount.get("readOnly") else "rw"
        if "hostPath" in volume:
            _refuse(volume["hostPath"], {"path", "type"}, "hostPath")
            propagation = PROPAGATION[mount.get("mountPropagation", "None")]
            yield f"--volume={volume['hostPath']['path']}:{target}:{mode},{propagation}"
        elif "configMap" in volume:
            source = directory / mount["name"]
            source.mkdir(exist_ok=True)
            (source / "ullage.yml").write_text(config)
            yield f"--volume={source}:{target}:ro"
        elif "emptyDir" in volume:
            source = directory / mount["name"]
            source.mkdir(exist_ok=True)
            source.chmod(0o777)  # as the kubelet makes it
            yield f"--volume={source}:{target}:{mode}"
        else:
            raise Untranslated(f"volume {volume}")
        _refuse(mount, {"name", "mountPath", "readOnly", "mountPropagation"}, "volumeMount")


def _refuse(given: Mapping[str, Any], known: set[str], what: str) -> None:
    if unknown := set(given) - known:
        raise Untranslated(f"{what}: {', '.join(sorted(unknown))}")
