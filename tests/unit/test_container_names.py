"""Names of containers from the files of each runtime, on directory trees."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from agent.containers import Container, Containers, Runtimes
from agent.host import Host

C = "0d69e9e6d4926b12c63747788afe29fa54711e93ebd68b8d4d0024f447384a56"
D = "72761c54ac6549f2771cab980f34e1b61a412c6d204d001a3b08f9cf9adb62d5"
UID = "3f050238-cd37-4a09-9784-e8c3d3ff9501"
POD = f"/kubepods/burstable/pod{UID}"
TASK = "run/containerd/io.containerd.runtime.v2.task/k8s.io/{}/config.json"
CRI = "io.kubernetes.cri."
SLICE = f"kubepods-burstable-pod{UID.replace('-', '_')}.slice"
LABELS = {  # the kubelet's, on each container
    "io.kubernetes.pod.namespace": "shop",
    "io.kubernetes.pod.name": "web-1",
    "io.kubernetes.pod.uid": UID,
    "io.kubernetes.container.name": "main",
}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Node:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.clock = Clock()
        self.host = Host(f"{root}/proc", f"{root}/sys", str(root))
        self.containers = Containers(self.host, Runtimes(), self.clock)

    def write(self, path: str, content: object) -> None:
        """Write as runtimes do: a new file that takes the name of the old one."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        new = target.with_suffix(".new")
        new.write_text(content if isinstance(content, str) else json.dumps(content))
        os.replace(new, target)

    def task(self, container: str, kind: str = "container", name: str = "main", parent: str = POD) -> None:
        annotations = {
            CRI + "container-type": kind,
            CRI + "container-name": name,
            CRI + "sandbox-namespace": "shop",
            CRI + "sandbox-name": "web-1",
        }
        linux = {"cgroupsPath": f"{parent}/{container}"}
        self.write(TASK.format(container), {"ociVersion": "1.0.2", "annotations": annotations, "linux": linux})

    def docker(self, container: str, name: str, cgroup_parent: str = "", **labels: str) -> None:
        path = f"var/lib/docker/containers/{container}"
        config = {"ID": container, "Name": name, "Config": {"Labels": labels, "Image": "x"}, "State": {}}
        self.write(f"{path}/config.v2.json", config)
        self.write(f"{path}/hostconfig.json", {"CgroupParent": cgroup_parent, "Memory": 0})

    def crio(self, container: str, cgroups_path: str = "", **annotations: str) -> None:
        path = f"run/containers/storage/overlay-containers/{container}/userdata/config.json"
        self.write(path, {"annotations": annotations, "linux": {"cgroupsPath": cgroups_path}})

    def lookup(self, path: str) -> Container:
        found = self.containers.lookup(path)
        assert found is not None
        return found


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_containerd_names_from_the_task_and_the_pod_learns_its_own(node: Node) -> None:
    node.task(C)
    found = node.lookup(f"{POD}/{C}")
    assert found.labels == ("shop", "web-1", "main", C[:12])
    assert (found.runtime, found.qos, found.pod_uid, found.is_sandbox) == ("containerd", "burstable", UID, False)
    pod = node.lookup(POD)
    assert (pod.namespace, pod.pod, pod.container, pod.id) == ("shop", "web-1", "", "")


def test_a_sandbox_is_marked_and_has_no_container_name(node: Node) -> None:
    node.task(C, kind="sandbox")
    found = node.lookup(f"{POD}/{C}")
    assert found.is_sandbox
    assert found.labels == ("shop", "web-1", "", C[:12])


def test_crio_names_from_userdata(node: Node) -> None:
    node.crio(C, **LABELS | {"io.kubernetes.cri-o.ContainerType": "container"})
    found = node.lookup(f"/kubepods.slice/kubepods-pod{UID.replace('-', '_')}.slice/crio-{C}.scope")
    assert found.labels == ("shop", "web-1", "main", C[:12])
    assert (found.runtime, found.qos) == ("cri-o", "guaranteed")


def test_plain_docker_has_a_container_name_only(node: Node) -> None:
    node.docker(C, "/web")
    found = node.lookup(f"/docker/{C}")
    assert found.labels == ("", "", "web", C[:12])
    assert found.runtime == "docker"


def test_docker_below_kubernetes_has_all_three(node: Node) -> None:
    node.docker(C, "/k8s_main_web-1", **LABELS | {"io.kubernetes.docker.type": "container"})
    node.docker(D, "/k8s_POD_web-1", **LABELS | {"io.kubernetes.docker.type": "podsandbox"})
    assert node.lookup(f"{POD}/{C}").labels == ("shop", "web-1", "main", C[:12])
    assert node.lookup(f"{POD}/{D}").is_sandbox


@pytest.mark.parametrize("cgroup", [f"/docker/{C}", f"/system.slice/docker-{C}.scope", f"/kubepods/pod{'d' * 32}/{C}"])
def test_no_image_makes_a_container_of_docker_one_of_a_pod(cgroup: str, node: Node) -> None:
    node.docker(C, "/web", **LABELS)  # of its image
    assert node.lookup(cgroup).labels == ("", "", "web", C[:12])


def test_an_image_that_does_not_know_the_pod_it_is_run_in_is_not_believed(node: Node) -> None:
    node.docker(C, "/web", **{name: value for name, value in LABELS.items() if name != "io.kubernetes.pod.uid"})
    assert node.lookup(f"{POD}/{C}").labels == ("", "", "web", C[:12])


@pytest.mark.parametrize("parent", ["", "/docker", "/user.slice", f"/kubepods/pod{'d' * 32}", "/kubepods"])
def test_no_image_makes_a_container_of_docker_one_of_a_pod_where_its_cgroup_is_not_seen(
    parent: str, node: Node
) -> None:
    node.docker(C, "/web", parent, **LABELS)
    found = node.containers.lookup_id(C)
    assert found is not None
    assert found.labels == ("", "", "web", C[:12])


@pytest.mark.parametrize("parent", [POD, f"/kubelet{POD}", SLICE])
def test_a_pods_container_of_docker_is_known_without_its_cgroup(parent: str, node: Node) -> None:
    node.docker(C, "/k8s_main_web-1", parent, **LABELS)
    found = node.containers.lookup_id(C)
    assert found is not None
    assert found.labels == ("shop", "web-1", "main", C[:12])


@pytest.mark.parametrize(
    "place", ["machine.slice:libpod:{}", "/libpod_parent/libpod-{}", f"/kubepods/pod{'d' * 32}/{{}}", ""]
)
def test_no_image_makes_a_container_of_podman_one_of_a_pod(place: str, node: Node) -> None:
    node.write("var/lib/containers/storage/overlay-containers/containers.json", [{"id": C, "names": ["web"]}])
    node.crio(C, place.format(C), **LABELS)  # Podman's file of that name, with the annotations of its image
    found = node.containers.lookup_id(C)
    assert found is not None
    assert found.labels == ("", "", "web", C[:12])
    node.containers.retain([])
    assert node.lookup(f"/machine.slice/libpod-{C}.scope").labels == ("", "", "web", C[:12])


@pytest.mark.parametrize("place", [f"{POD}/crio-{{}}", f"{SLICE}:crio:{{}}"])
def test_a_pods_container_of_crio_is_known_without_its_cgroup(place: str, node: Node) -> None:
    node.crio(C, place.format(C), **LABELS)
    found = node.containers.lookup_id(C)
    assert found is not None
    assert found.labels == ("shop", "web-1", "main", C[:12])


def test_a_task_of_containerd_outside_of_a_pod_is_no_pods(node: Node) -> None:
    node.task(C, parent="/k8s.io")  # nerdctl makes annotations of labels
    assert node.lookup(f"/k8s.io/{C}").labels == ("", "", "", C[:12])
    assert node.containers.lookup_rootfs(f"/run/containerd/io.containerd.runtime.v2.task/k8s.io/{C}/rootfs") is None


def test_podman_names_from_its_list(node: Node) -> None:
    stored = [{"id": D, "names": ["other"]}, {"id": C, "names": ["web"], "flags": {}}, {"id": "x"}]
    node.write("var/lib/containers/storage/overlay-containers/containers.json", stored)
    found = node.lookup(f"/machine.slice/libpod-{C}.scope/container")
    assert found.labels == ("", "", "web", C[:12])
    assert found.runtime == "podman"


def test_log_links_name_what_no_runtime_file_does(node: Node) -> None:
    node.write(f"var/log/containers/web-1_shop_main-{C}.log", "")
    assert node.lookup(f"{POD}/{C}").labels == ("shop", "web-1", "main", C[:12])


def test_a_link_whose_name_was_cut_names_nothing(node: Node) -> None:
    node.write(f"var/log/containers/web-1_shop_main-{C[:40]}.log", "")
    assert node.lookup(f"{POD}/{C}").labels == ("", "", "", C[:12])


def test_log_directories_name_the_pod_and_never_guess_the_container(node: Node) -> None:
    node.write(f"var/log/pods/shop_web-1_{UID}/main/0.log", "")
    assert node.lookup(POD).labels == ("shop", "web-1", "", "")
    assert node.lookup(f"{POD}/{C}").labels == ("shop", "web-1", "", C[:12])


def test_a_container_of_ctr_has_its_own_name(node: Node) -> None:
    node.write("run/containerd/io.containerd.runtime.v2.task/default/redis/config.json", {"annotations": None})
    found = node.lookup("/default/redis")
    assert (found.container, found.runtime) == ("redis", "containerd")
    assert node.containers.lookup("/system.slice/redis.service") is None


def test_a_rename_is_followed(node: Node) -> None:
    node.docker(C, "/web")
    assert node.lookup(f"/docker/{C}").container == "web"
    node.docker(C, "/shop")
    node.clock.now += 11
    assert node.lookup(f"/docker/{C}").container == "shop"


def test_a_name_is_kept_while_the_cgroup_lives_and_forgotten_with_it(node: Node) -> None:
    node.docker(C, "/web")
    assert node.lookup(f"/docker/{C}").container == "web"
    (node.root / f"var/lib/docker/containers/{C}/config.v2.json").unlink()
    node.clock.now += 60
    assert node.lookup(f"/docker/{C}").container == "web"
    node.containers.retain([])
    assert node.lookup(f"/docker/{C}").container == ""


def test_the_unknown_stays_unknown_and_is_known_once_its_files_are_there(node: Node) -> None:
    path = f"{POD}/{C}"
    assert node.lookup(path).labels == ("", "", "", C[:12])
    node.task(C)
    node.clock.now += 2
    assert node.lookup(path).labels == ("shop", "web-1", "main", C[:12])


def test_what_stays_unknown_is_looked_for_ever_more_rarely(node: Node) -> None:
    looks = 0
    path = f"{POD}/{C}"

    class Counting(Host):
        def read(self, path: str, most: int = 0) -> bytes:
            nonlocal looks
            looks += "overlay-containers" in path
            return super().read(path, most)

    containers = Containers(Counting(rootfs=str(node.root)), Runtimes(), node.clock)
    for _ in range(3600):
        node.clock.now += 1
        containers.lookup(path)
    assert 2 < looks < 100


def test_broken_files_are_counted_and_harmless(node: Node) -> None:
    node.write(TASK.format(C), "{")
    node.write(f"var/lib/docker/containers/{D}/config.v2.json", '{"Name": 5}')
    assert node.lookup(f"{POD}/{C}").labels == ("", "", "", C[:12])
    assert node.lookup(f"/docker/{D}").labels == ("", "", "", D[:12])
    assert node.host.errors == {"malformed": 2}


def test_names_that_somebody_chose_to_break_us_are_valid_labels(node: Node) -> None:
    for name in ("a\nb", 'a"b\\', "x" * 5000, "☃"):
        node.containers.retain([])
        node.docker(C, "/" + name)
        found = node.lookup(f"/docker/{C}").container
        found.encode()
        assert 0 < len(found) <= 256


def test_an_id_is_looked_up_without_a_path(node: Node) -> None:
    assert node.containers.lookup_id(C) is None
    node.containers.retain([])
    node.docker(C, "/web")
    node.clock.now += 60
    found = node.containers.lookup_id(C)
    assert found is not None
    assert found.container == "web"


def test_containers_are_known_by_where_their_root_is_mounted(node: Node) -> None:
    node.task(C)
    node.docker(D, "/web")
    tasks = "/run/containerd/io.containerd.runtime.v2.task"

    def labels(mountpoint: str) -> tuple[str, ...] | None:
        found = node.containers.lookup_rootfs(mountpoint)
        return None if found is None else found.labels

    assert labels(f"{tasks}/k8s.io/{C}/rootfs") == ("shop", "web-1", "main", C[:12])
    assert labels(f"{tasks}/default/redis/rootfs") == ("", "", "redis", "redis")
    assert labels(f"/var/lib/docker/rootfs/overlayfs/{D}") == ("", "", "web", D[:12])
    assert labels(f"{tasks}/k8s.io/{C}/rootfs/proc") is None
    assert labels(f"{tasks}/k8s.io/nobody/rootfs") is None


def test_containers_are_known_by_the_layers_that_docker_gave_them(node: Node) -> None:
    assert node.containers.docker_layers("btrfs") == {}
    node.write(f"var/lib/docker/image/btrfs/layerdb/mounts/{C}/mount-id", D)
    (node.root / "var/lib/docker/image/btrfs/layerdb/mounts/broken").mkdir()
    assert node.containers.docker_layers("btrfs") == {D: C}
    assert node.containers.docker_layers("devicemapper") == {}
    assert node.host.errors == {"vanished": 1}


def test_names_that_are_looked_up_by_id_are_forgotten_with_it(node: Node) -> None:
    node.docker(C, "/web")
    node.docker(D, "/shop")
    assert node.containers.lookup_id(C)
    node.containers.forget_unasked()
    assert node.containers.lookup_id(D)
    assert set(node.containers._known) == {C, D}
    node.containers.forget_unasked()
    assert set(node.containers._known) == {D}


def test_layers_of_containers_storage_are_those_of_both_lists(tmp_path: Path) -> None:
    node = Node(tmp_path)
    base = "var/lib/containers/storage/overlay-containers"
    assert node.containers.storage_layers() == {}
    node.write(f"{base}/containers.json", [{"id": C, "names": ["web"], "layer": "a" * 64}, {"id": D}])
    node.write(f"{base}/volatile-containers.json", [{"id": D, "layer": "b" * 64}])
    assert node.containers.storage_layers() == {"a" * 64: C, "b" * 64: D}
