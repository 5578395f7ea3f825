"""The shipped overlay on a real Kubernetes: kubelet, control plane and containerd, with real pods."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.docker import Series
from tests.deploy.test_daemonset import OWN, WRITE_EVERYWHERE
from tests.deploy.tools import CHART, KUBERNETES
from tests.k8s.cluster import WAIT, Cluster
from tests.k8s.conftest import BUSYBOX
from tests.k8s.files import ADDRESS

pytestmark = [pytest.mark.root, pytest.mark.docker, pytest.mark.slow]
MIB = 1 << 20
QOS: dict[str, dict[str, Any]] = {
    "guaranteed": {name: {"cpu": "100m", "memory": "64Mi"} for name in ("requests", "limits")},
    "burstable": {"requests": {"memory": "16Mi"}, "limits": {"memory": "64Mi"}},
    "besteffort": {},
}
# again and again, as a machine that is short of memory takes pages that nobody reads
READ = """
/bin/dd if=/dev/urandom of=/tmp/file bs=1M count=20 conv=fsync
while :; do /bin/cat /tmp/file > /dev/null; /bin/sleep 1; done
"""
# up to some 5,250 of the node's 6,000 inodes at once, and from there on 20 a second: critical from 5,400 on,
# evicted from 5,700 on
HOG = """
cd /data; /bin/busybox touch $(/bin/busybox seq 5150)
i=10000; while :; do : > $i; i=$((i + 1)); /bin/busybox usleep 50000; done
"""


class Agent:
    """The DaemonSet's one pod."""

    def __init__(self, kubernetes: Cluster, namespace: str = "ullage") -> None:
        self.kubernetes, self._namespace = kubernetes, namespace
        self.pod = self.state()
        self._url = f"http://{self.pod['status']['podIP']}:10940"

    def state(self) -> dict[str, Any]:
        (found,) = self.kubernetes.get("pods", f"--namespace={self._namespace}")["items"]
        pod: dict[str, Any] = found
        return pod

    def series(self) -> Series:
        return self.kubernetes.samples(f"{self._url}/metrics")

    def of(self, metric: str, **wanted: str) -> list[float]:
        """Return the values of a metric's series that have these labels."""
        return [
            value
            for (name, labels), value in self.series().items()
            if name == metric and wanted.items() <= dict(labels).items()
        ]

    def page_cache(self, pod: str) -> tuple[list[float], list[float]]:
        """Return the bytes of a pod's page cache in our series, and in the kubelet's."""
        labels = {"namespace": "default", "pod": pod, "container": "main"}
        ours = self.of("ullage_container_page_cache_bytes", **labels)
        theirs = [
            value
            for (name, given), value in self.kubernetes.samples(f"http://{ADDRESS}:10255/metrics/cadvisor").items()
            if name == "container_memory_cache" and labels.items() <= dict(given).items()
        ]
        return ours, theirs

    def is_as_the_kubelet_says(self, pod: str) -> bool:
        """Return whether a pod has its 20 MiB of page cache in our series, and as many in the kubelet's."""
        ours, theirs = self.page_cache(pod)
        return len(ours) == len(theirs) == 1 and ours[0] > 19 * MIB and abs(ours[0] - theirs[0]) < MIB

    def told(self, pod: str) -> str:
        """Return what there is to know of a pod that is not as it should be."""
        return f"{self.page_cache(pod)}: {self.kubernetes.kubectl('describe', 'pod', pod)}"


@pytest.fixture(scope="module")
def agent(kubernetes: Cluster) -> Iterator[Agent]:
    kubernetes.kubectl("apply", "--kustomize", str(KUBERNETES / "overlays" / "cgroup-v1"))
    kubernetes.kubectl("--namespace=ullage", "rollout", "status", "daemonset/ullage", "--timeout=120s")
    made, began = Agent(kubernetes), seconds_of_cpu(kubernetes)
    yield made
    used = {name: value - began[name] for name, value in seconds_of_cpu(kubernetes).items() if name in began}
    print(f"CPU seconds in these tests: {used}")


def seconds_of_cpu(kubernetes: Cluster) -> dict[str, float]:
    """Return what the kubelet and the agent, with its helper processes, have used of the CPU."""
    used = {"kubelet": 0.0, "ullage": 0.0}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if f"/{kubernetes.node.cgroup}" not in (directory / "cgroup").read_text():
                continue
            name, command = (directory / "comm").read_text().strip(), (directory / "cmdline").read_bytes()
            fields = (directory / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        name = "ullage" if b"/opt/ullage" in command else name
        if name in used:
            used[name] += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return used


def pod(name: str, script: str, resources: dict[str, Any]) -> str:
    container = {"name": "main", "image": BUSYBOX, "command": ["/bin/sh", "-c", script], "resources": resources}
    data = {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    volumes = [{"name": "data", "emptyDir": {}}]
    spec = {"containers": [container | data], "volumes": volumes, "restartPolicy": "Never"}
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})


def until(holds: Callable[[], bool], what: str, told: Callable[[], object] = str) -> None:
    end = time.monotonic() + WAIT
    while not holds():
        assert time.monotonic() < end, f"not within {WAIT:.0f} s: {what}: {told()}"
        time.sleep(0.5)


def test_the_overlay_is_ready_and_its_pod_is_as_it_says(agent: Agent) -> None:
    assert agent.of("ullage_collector_up", collector="filesystem") == [1]
    assert agent.pod["status"]["qosClass"] == "Burstable"
    assert agent.pod["spec"]["priority"] == 2_000_001_000
    assert agent.of("ullage_filesystem_files", mountpoint="/var/lib/kubelet") == [6000]
    assert agent.of("ullage_filesystem_role", mountpoint="/var/lib/kubelet", role="kubelet") == [1]


def test_pods_of_all_classes_are_seen_by_name_with_their_page_cache_and_go_with_them(agent: Agent) -> None:
    kubernetes = agent.kubernetes
    metric = "ullage_container_page_cache_bytes"
    for name, resources in QOS.items():
        kubernetes.kubectl("apply", "--filename=-", stdin=pod(name, READ, resources))
    for name in QOS:
        is_as_it_says, told = partial(agent.is_as_the_kubelet_says, name), partial(agent.told, name)
        until(is_as_it_says, f"{name} as the kubelet has it", told)
        assert kubernetes.get("pod", name)["status"]["qosClass"].lower() == name
        assert len(agent.of("ullage_pod_page_cache_bytes", namespace="default", pod=name)) == 1
    kubernetes.kubectl("delete", "pod", *QOS, "--now")
    until(lambda: not agent.of(metric, namespace="default"), "their series are gone")
    until(lambda: not agent.of("ullage_pod_page_cache_bytes", namespace="default"), "and their pods'")


def test_a_container_s_writable_layer_has_as_many_inodes_as_the_kubelet_s_summary_says(agent: Agent) -> None:
    kubernetes = agent.kubernetes
    script = (
        "/bin/mkdir -p /many/below; i=0; while [ $i -lt 300 ]; do : > /many/below/$i; i=$((i + 1)); done; sleep 1000"
    )
    kubernetes.kubectl(
        "apply", "--filename=-", stdin=pod("writer", script.replace("/bin/mkdir", "/bin/busybox mkdir"), {})
    )
    labels = {"namespace": "default", "pod": "writer", "container": "main"}

    def theirs() -> list[int]:
        pods = json.loads(kubernetes.fetch(f"http://{ADDRESS}:10255/stats/summary"))["pods"]
        return [
            each["rootfs"].get("inodesUsed", 0)
            for found in pods
            if found["podRef"]["name"] == "writer"
            for each in found.get("containers", ())
        ]

    def agrees() -> bool:
        ours = agent.of("ullage_container_writable_files", **labels)
        return len(ours) == 1 and ours[0] > 300 and ours == theirs()

    until(agrees, "the summary and our series agree")
    kubernetes.kubectl("delete", "pod", "writer", "--now")
    until(lambda: not agent.of("ullage_container_writable_files", **labels), "its series is gone")


def test_the_kubelet_s_filesystem_is_as_its_own_summary_says(agent: Agent) -> None:
    def agrees() -> bool:
        summary = json.loads(agent.kubernetes.fetch(f"http://{ADDRESS}:10255/stats/summary"))["node"]["fs"]
        ours = {
            name: agent.of(f"ullage_filesystem_{name}", mountpoint="/var/lib/kubelet")[0]
            for name in ("size_bytes", "available_bytes", "files", "files_free")
        }
        return ours == {
            "size_bytes": summary["capacityBytes"],
            "available_bytes": summary["availableBytes"],
            "files": summary["inodes"],
            "files_free": summary["inodesFree"],
        }

    until(agrees, "summary and series agree")


def test_a_mount_made_later_is_seen_and_its_end_too(agent: Agent) -> None:
    node, mount = agent.kubernetes.node, "/var/lib/kubelet/later"
    node.mounted("ext4", mount, 32)
    until(lambda: len(agent.of("ullage_filesystem_size_bytes", mountpoint=mount)) == 1, "a mount made later")
    node.run("umount", mount)
    until(lambda: not agent.of("ullage_filesystem_size_bytes", mountpoint=mount), "its end")


def test_nothing_of_the_node_can_be_written_but_the_state(agent: Agent) -> None:
    kubernetes = agent.kubernetes
    other = json.loads(pod("other", "/bin/sleep 1000", {}))
    # a mount of its own, and writable for everybody
    other["spec"]["volumes"].append({"name": "memory", "emptyDir": {"medium": "Memory"}})
    other["spec"]["containers"][0]["volumeMounts"].append({"name": "memory", "mountPath": "/memory"})
    kubernetes.kubectl("apply", "--filename=-", stdin=json.dumps(other))
    mounts = ["--namespace=ullage", "exec", agent.pod["metadata"]["name"], "--", "cat", "/proc/self/mountinfo"]
    until(lambda: "kubernetes.io~empty-dir/memory" in kubernetes.kubectl(*mounts), "the pod's volume is there")
    written = set(kubernetes.kubectl(*mounts[:4], "python", "-c", WRITE_EVERYWHERE).splitlines()) - OWN
    # the latter is the kubelet's for this pod alone, to say why it ended
    assert written == {"/var/lib/ullage", "/dev/termination-log"}
    kubernetes.kubectl("delete", "pod", "other", "--now")


def test_inode_pressure_is_critical_before_the_kubelet_evicts_and_the_agent_survives(agent: Agent) -> None:
    kubernetes = agent.kubernetes
    kubernetes.kubectl("apply", "--filename=-", stdin=pod("hog", HOG, {}))
    levels: list[float] = []

    def is_evicted() -> bool:
        status = kubernetes.get("pod", "hog")["status"]
        if status.get("reason") == "Evicted":
            assert "inodes" in status["message"]
            return True
        levels.extend(agent.of("ullage_watermark_level", watermark="inodes", target="/var/lib/kubelet"))
        return False

    until(is_evicted, "the kubelet evicts")
    assert levels[0] == 0
    assert levels[-1] == 2, f"not critical before the eviction: {levels}"
    now = agent.state()
    assert now["metadata"]["uid"] == agent.pod["metadata"]["uid"]
    assert [each["restartCount"] for each in now["status"]["containerStatuses"]] == [0]
    until(
        lambda: agent.of("ullage_watermark_level", watermark="inodes", target="/var/lib/kubelet") == [0], "it is over"
    )
    kubernetes.kubectl("delete", "pod", "hog", "--now")


def test_helm_installs_the_chart_and_minimal_knows_pods_by_name(agent: Agent) -> None:
    kubernetes = agent.kubernetes
    values = ["--set=cgroup=v1", "--set=profile=minimal", "--wait", "--timeout=100s"]
    kubernetes.helm("install", "ullage", str(CHART), "--namespace=chart", "--create-namespace", *values)
    made = Agent(kubernetes, "chart")
    name = made.pod["metadata"]["name"]
    labels = {"namespace": "chart", "pod": name, "container": "agent"}
    until(lambda: len(made.of("ullage_container_page_cache_bytes", **labels)) == 1, "it sees itself")
    kubernetes.helm("uninstall", "ullage", "--namespace=chart", "--wait")


def test_the_machine_s_own_cgroups_and_mounts_are_as_before(agent: Agent) -> None:
    assert agent.state()
    assert not [each for each in Path("/sys/fs/cgroup").glob("*/kubepods") if each.is_dir()]
    assert "kubelet" not in Path("/proc/self/mountinfo").read_text()
