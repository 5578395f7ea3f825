"""Where the stores of a node are found, and which of them is live."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.containers import Runtimes
from agent.host import Host
from collectors.stores import find
from tests.unit.storetrees import ContainerdTree, ContainersTree, DockerTree

DOCKER, CONTAINERD = "var/lib/docker", "var/lib/containerd"
OVERLAY2, OVERLAYFS = f"/{DOCKER}/overlay2", f"/{CONTAINERD}/io.containerd.snapshotter.v1.overlayfs"
MANAGED = f"/{DOCKER}/containerd/daemon/io.containerd.snapshotter.v1.overlayfs"


def found(path: Path) -> dict[str, tuple[str, str, bool | None]]:
    stores = find(Host(rootfs=str(path)), Runtimes(), {})
    return {store.path: (store.runtime, store.driver, store.is_live) for store in stores}


def configure(path: Path, **settings: object) -> None:
    (path / "etc/docker").mkdir(parents=True, exist_ok=True)
    (path / "etc/docker/daemon.json").write_text(
        json.dumps({name.replace("_", "-"): settings[name] for name in settings})
    )


def test_a_node_without_runtimes_has_none(tmp_path: Path) -> None:
    host = Host(rootfs=str(tmp_path))
    assert (find(host, Runtimes(), {}), host.errors) == ([], {})


def test_docker_and_the_containerd_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "etc/docker").mkdir(parents=True)
    DockerTree(tmp_path / DOCKER).image("base")
    ContainerdTree(tmp_path / CONTAINERD)
    assert found(tmp_path) == {OVERLAY2: ("docker", "overlay2", True), OVERLAYFS: ("containerd", "overlayfs", None)}
    (tmp_path / "run/containerd").mkdir(parents=True)
    (tmp_path / "run/containerd/containerd.sock").touch()
    assert found(tmp_path)[OVERLAYFS] == ("containerd", "overlayfs", True)


def test_a_root_may_be_configured_or_linked_or_that_of_remapped_users(tmp_path: Path) -> None:
    DockerTree(tmp_path / "srv/docker").image("base")
    DockerTree(tmp_path / "srv/docker/100000.100000").image("base")
    configure(tmp_path, data_root="/srv/docker")
    (tmp_path / "var/lib").mkdir(parents=True)
    (tmp_path / DOCKER).symlink_to("/srv/docker")
    assert sorted(found(tmp_path)) == ["/srv/docker/100000.100000/overlay2", "/srv/docker/overlay2"]


def test_the_directory_of_layers_may_be_a_link(tmp_path: Path) -> None:
    tree = DockerTree(tmp_path / DOCKER)
    tree.image("base")
    (tmp_path / "fast").mkdir()
    tree.path.rename(tmp_path / "fast/overlay2")
    tree.path.symlink_to("/fast/overlay2")
    host = Host(rootfs=str(tmp_path))
    (store,) = find(host, Runtimes(), {})
    assert (store.path, len(store.scan(host, (), 0.0).layers)) == ("/fast/overlay2", 1)


def test_a_store_that_is_known_is_kept(tmp_path: Path) -> None:
    DockerTree(tmp_path / DOCKER)
    ContainerdTree(tmp_path / CONTAINERD)
    host = Host(rootfs=str(tmp_path))
    first = find(host, Runtimes(), {})
    again = find(host, Runtimes(), {store.path: store for store in first})
    assert [store is kept for store, kept in zip(first, again, strict=True)] == [True, True]


@pytest.mark.parametrize(
    ("settings", "live"),
    [
        ({}, (None, None)),  # both are there: Docker 29 stays with the driver that has images, others cannot have both
        ({"storage_driver": "overlay2"}, (True, False)),
        ({"storage_driver": "btrfs"}, (False, False)),
        ({"storage_driver": "overlayfs"}, (False, True)),
        ({"features": {"containerd-snapshotter": True}}, (False, True)),
        ({"features": {"containerd-snapshotter": False}}, (True, False)),
        ({"features": 1}, (None, None)),
    ],
)
def test_which_of_dockers_stores_is_live(
    settings: dict[str, object], live: tuple[bool | None, bool | None], tmp_path: Path
) -> None:
    DockerTree(tmp_path / DOCKER).image("base")
    ContainerdTree(tmp_path / DOCKER / "containerd/daemon")
    configure(tmp_path, **settings)
    stores = found(tmp_path)
    assert (stores[OVERLAY2], stores[MANAGED]) == (("docker", "overlay2", live[0]), ("docker", "overlayfs", live[1]))


def test_where_the_configuration_is_not_to_be_seen_nobody_can_tell(tmp_path: Path) -> None:
    DockerTree(tmp_path / DOCKER).image("base")
    assert found(tmp_path) == {OVERLAY2: ("docker", "overlay2", None)}
    (tmp_path / "etc/containers").mkdir(parents=True)
    assert found(tmp_path) == {OVERLAY2: ("docker", "overlay2", None)}
    (tmp_path / "etc/docker").mkdir(parents=True)
    assert found(tmp_path) == {OVERLAY2: ("docker", "overlay2", True)}


def test_what_an_earlier_containerd_left_is_not_live_for_another_that_runs(tmp_path: Path) -> None:
    ContainerdTree(tmp_path / CONTAINERD)
    ContainerdTree(tmp_path / "var/lib/rancher/k3s/agent/containerd")
    (tmp_path / "run/k3s/containerd").mkdir(parents=True)
    (tmp_path / "run/k3s/containerd/containerd.sock").touch()
    assert [live for _, _, live in found(tmp_path).values()] == [None, True]


def test_the_root_that_is_configured_is_the_one_that_is_live(tmp_path: Path) -> None:
    ContainerdTree(tmp_path / CONTAINERD)
    ContainerdTree(tmp_path / "srv/containerd")
    for directory in ("etc/containerd", "run/containerd"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "etc/containerd/config.toml").write_text('root = "/srv/containerd"')
    (tmp_path / "run/containerd/containerd.sock").touch()
    live = {
        path.removesuffix("/io.containerd.snapshotter.v1.overlayfs"): each[2] for path, each in found(tmp_path).items()
    }
    assert live == {"/var/lib/containerd": None, "/srv/containerd": True}


@pytest.mark.parametrize("driver", ["overlay2", "overlayfs", "btrfs"])
def test_what_the_daemon_says_goes_before_what_is_configured(driver: str, tmp_path: Path) -> None:
    DockerTree(tmp_path / "srv").image("base")
    DockerTree(tmp_path / "srv/100000.100000").image("base")
    ContainerdTree(tmp_path / "srv/containerd/daemon")
    configure(tmp_path, storage_driver="vfs")
    stores = find(Host(rootfs=str(tmp_path)), Runtimes(), {}, {"/srv": driver})
    assert [(store.driver, store.is_live) for store in stores] == [
        ("overlay2", driver == "overlay2"),
        ("overlay2", False),  # the daemon has no users of their own for its containers, but once had
        ("overlayfs", driver == "overlayfs"),
    ]


def test_a_new_installation_with_containerds_store_alone_is_live(tmp_path: Path) -> None:
    (tmp_path / "etc/docker").mkdir(parents=True)
    ContainerdTree(tmp_path / DOCKER / "containerd/daemon")
    assert found(tmp_path) == {MANAGED: ("docker", "overlayfs", True)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'root = "/srv/containerd"', ["/srv/containerd/io.containerd.snapshotter.v1.overlayfs"]),
        (b'[plugins."io.containerd.snapshotter.v1.overlayfs"]\nroot_path = "/srv"', ["/srv"]),
        (b'[plugins.overlayfs]\nroot_path = "/srv"', ["/srv"]),
        (b"plugins = 1\nroot = 2", []),
        (b"[", []),
    ],
)
def test_containerd_may_be_configured_to_be_elsewhere(text: bytes, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "etc/containerd").mkdir(parents=True)
    (tmp_path / "etc/containerd/config.toml").write_bytes(text)
    for path in expected:
        (tmp_path / path.lstrip("/") / "snapshots").mkdir(parents=True)
        (tmp_path / path.lstrip("/") / "metadata.db").touch()
    assert list(found(tmp_path)) == expected


def test_where_two_drivers_have_images_nobody_can_tell(tmp_path: Path) -> None:
    DockerTree(tmp_path / DOCKER).image("base")
    (tmp_path / DOCKER / "image/btrfs/layerdb/sha256/0f84").mkdir(parents=True)
    assert found(tmp_path) == {OVERLAY2: ("docker", "overlay2", None)}


def test_podmans_store_and_those_that_it_reads(tmp_path: Path) -> None:
    graph, extra, run = (
        tmp_path / each for each in ("var/lib/containers/storage", "opt/images", "run/containers/storage")
    )
    ContainersTree(graph)
    ContainersTree(extra)
    (run / "overlay").mkdir(parents=True)  # as Podman has it there
    configured = tmp_path / "usr/share/containers/storage.conf"
    configured.parent.mkdir(parents=True)
    configured.write_text('[storage]\ndriver = "overlay"\n[storage.options]\nadditionalimagestores = ["/opt/images"]\n')
    path = "/var/lib/containers/storage/overlay"
    assert found(tmp_path) == {
        path: ("containers-storage", "overlay", True),
        "/opt/images/overlay": ("containers-storage", "overlay", True),
    }
    (graph / "libpod").mkdir()
    assert found(tmp_path)[path][0] == "podman"
    (tmp_path / "var/lib/crio").mkdir()
    assert found(tmp_path)[path][0] == "containers-storage"  # both may use it
    (graph / "libpod").rmdir()
    assert {path: each[0] for path, each in found(tmp_path).items()} == {
        path: "cri-o",
        "/opt/images/overlay": "containers-storage",
    }
    own = tmp_path / "etc/containers/storage.conf"
    own.parent.mkdir(parents=True)
    own.write_text('[storage]\ndriver = "vfs"\n')
    assert found(tmp_path) == {path: ("cri-o", "overlay", False)}
    own.write_text("")
    assert found(tmp_path)[path][2] is True
    (graph / "vfs-layers").mkdir()
    assert found(tmp_path)[path][2] is None
