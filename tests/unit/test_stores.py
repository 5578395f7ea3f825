"""Where the stores of a node are found, and which of them is live."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.containers import Runtimes
from agent.host import Host
from collectors.stores import find
from tests.unit.storetrees import ContainerdTree, DockerTree

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


def test_a_new_installation_with_containerds_store_alone_is_live(tmp_path: Path) -> None:
    ContainerdTree(tmp_path / DOCKER / "containerd/daemon")
    assert found(tmp_path) == {MANAGED: ("docker", "overlayfs", True)}


def test_where_two_drivers_have_images_nobody_can_tell(tmp_path: Path) -> None:
    DockerTree(tmp_path / DOCKER).image("base")
    (tmp_path / DOCKER / "image/btrfs/layerdb/sha256/0f84").mkdir(parents=True)
    assert found(tmp_path) == {OVERLAY2: ("docker", "overlay2", None)}
