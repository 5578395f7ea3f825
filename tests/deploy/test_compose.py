"""The Compose file's agent has what the DaemonSet's has, and starts; the other services' files are sound."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent import __version__
from tests.deploy.docker import Docker, agent
from tests.deploy.tools import ROOT, kustomized, pod_of

COMPOSE = ROOT / "deploy" / "compose"
MODES: dict[str, dict[str, Any]] = {
    "ro,rslave": {"readOnly": True, "mountPropagation": "HostToContainer"},
    "ro": {"readOnly": True},
    "": {},
}
UNCONFINED = {"type": "Unconfined"}
NAMES = {
    "/etc/ullage": "config",
    "/var/lib/ullage": "state",
    "/sys/fs/cgroup": "cgroup",
    "/host/var/lib": "lib",
    "/host/var/log": "log",
}


def service(name: str) -> dict[str, Any]:
    made: dict[str, Any] = yaml.safe_load((COMPOSE / "docker-compose.yml").read_text())["services"][name]
    return made


def as_pod(made: dict[str, Any]) -> dict[str, Any]:
    """Return a service in the words of a pod."""
    mounts, volumes = [], []
    for volume in made["volumes"]:
        source, target, mode = [*volume.split(":"), ""][:3]
        if target.endswith("/ullage.yml"):
            target = target.removesuffix("/ullage.yml")
        name = NAMES[target]
        mounts.append({"name": name, "mountPath": target, **MODES[mode]})
        volumes.append(
            {"name": name, "configMap": {}} if source.startswith("./") else {"name": name, "hostPath": {"path": source}}
        )
    user, group = made["user"].split(":")
    return {
        "hostPID": made["pid"] == "host",
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "volumes": volumes,
        "containers": [
            {
                "args": made["command"],
                "resources": {"limits": {"memory": f"{made['mem_limit'].upper()}i"}},
                "securityContext": {
                    "runAsUser": int(user),
                    "runAsGroup": int(group),
                    "readOnlyRootFilesystem": made["read_only"],
                    "allowPrivilegeEscalation": "no-new-privileges:true" not in made["security_opt"],
                    "capabilities": {"drop": made["cap_drop"], "add": made["cap_add"]},
                    **({"appArmorProfile": UNCONFINED} if "apparmor:unconfined" in made["security_opt"] else {}),
                },
                "volumeMounts": mounts,
            }
        ],
    }


@pytest.mark.slow
@pytest.mark.usefixtures("amd64")
def test_its_agent_has_the_rights_of_the_daemonset_s() -> None:
    ours, theirs = as_pod(service("agent")), pod_of(kustomized("overlays/apparmor"))
    for name in ("securityContext", "args"):
        assert ours["containers"][0][name] == theirs["containers"][0][name]
    assert ours["containers"][0]["resources"]["limits"] == theirs["containers"][0]["resources"]["limits"]
    mounts = [each["containers"][0]["volumeMounts"] for each in (ours, theirs)]
    one, other = (sorted(each, key=lambda mount: mount["mountPath"]) for each in mounts)
    assert one == other
    assert service("agent")["image"] == f"ullage:${{ULLAGE_VERSION:-{__version__}}}"


@pytest.mark.root
@pytest.mark.docker
@pytest.mark.slow
def test_its_agent_starts(engine: Docker) -> None:
    engine.node.run("mkdir", "-p", "/var/lib/ullage")
    with agent(engine, as_pod(service("agent")), (COMPOSE / "ullage.yml").read_text()) as made:
        assert made.of("ullage_collector_up", "collector")["filesystem"] == 1


def test_files_that_services_mount_are_there() -> None:
    for name in ("agent", "prometheus"):
        for volume in service(name)["volumes"]:
            source = volume.split(":")[0]
            assert not source.startswith(".") or (COMPOSE / source).exists(), source


def test_prometheus_takes_its_configuration() -> None:
    command = ["promtool", "check", "config", "--syntax-only", str(COMPOSE / "prometheus.yml")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (source,) = yaml.safe_load((COMPOSE / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert Path(COMPOSE / "grafana/provisioning/dashboards/ullage.yml").exists()
