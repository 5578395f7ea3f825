"""containerd's snapshots: what each is, and what is an orphan."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from pathlib import Path

import pytest

from agent.errors import Malformed
from agent.host import Host
from collectors import boltfile
from collectors.boltfile import read_whole
from collectors.containerd_store import ContainerdStore, _depths, _state
from collectors.readers.bolt import Snapshot
from collectors.stored import APART, MIN_AGE, Layer, Scan
from tests.unit.storetrees import CORPUS, ContainerdTree, hexadecimal

PATH = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs"


class Machine:
    """A root with a store on it, and a clock that is the test's: it begins when all that is there is old."""

    def __init__(self, path: Path) -> None:
        self.tree = ContainerdTree(path / "var/lib/containerd")
        self.host = Host(rootfs=str(path))
        self.now = time.time() + MIN_AGE + 10
        self.store = ContainerdStore("/var/lib/containerd", PATH, clock=lambda: self.now)

    def scan(self, mounted: Collection[str] = ()) -> Scan:
        self.now += APART
        return self.store.scan(self.host, mounted, self.now)

    def states(self, mounted: Collection[str] = ()) -> dict[str, str]:
        """Scan twice."""
        self.scan(mounted)
        return {layer.name: layer.state for layer in self.scan(mounted).layers}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_snapshots_of_images_and_containers(machine: Machine) -> None:
    base, web, *_ = machine.scan().layers
    fs = (machine.tree.path / "snapshots/1/fs").stat()
    assert base == Layer(
        name="1",
        state="image",
        path=f"{PATH}/snapshots/1",
        content="fs",
        identity=(fs.st_ino, fs.st_mtime_ns),
        extras=0,
        size=2011136,
    )
    assert (web.name, web.state, web.container, web.lowers, web.size) == ("2", "container", "web", 1, None)
    assert machine.states() == {"1": "image", "2": "container", "3": "container", "4": "image", "5": "container"}
    assert machine.host.errors == {}


def test_what_containerd_does_not_know_is_an_orphan_once_it_is_old(machine: Machine) -> None:
    machine.tree.snapshot("7")
    machine.tree.snapshot("new-2071")
    machine.tree.snapshot("rm-2071")
    states = machine.states()
    assert {name: states[name] for name in ("7", "new-2071", "rm-2071")} == {
        "7": "orphan",
        "new-2071": "incomplete",
        "rm-2071": "removing",
    }


def test_what_is_mounted_is_never_an_orphan(machine: Machine) -> None:
    machine.tree.snapshot("7")
    assert machine.states([f"{PATH}/snapshots/7/fs"])["7"] == "incomplete"


@pytest.mark.parametrize("damage", ["absent", "half", "other"])
def test_where_containerds_own_file_cannot_be_read_there_are_no_orphans(damage: str, machine: Machine) -> None:
    file = machine.tree.path / "metadata.db"
    match damage:
        case "absent":
            file.unlink()
        case "half":
            file.write_bytes(file.read_bytes()[:5000])
        case "other":
            file.write_bytes((CORPUS / "bolt/buildkit-snapshots.db").read_bytes())
    assert set(machine.states().values()) == {"incomplete"}
    assert machine.host.errors == ({} if damage == "absent" else {"malformed": 2})


@pytest.mark.parametrize(
    ("kind", "name", "state"),
    [
        ("active", "extract-271828182-YMzM sha256:0f84", "incomplete"),
        ("active", "migration-sha256:0f84", "incomplete"),
        ("active", "095gdfhw7bynli63v7ww4bvr8", "build"),
        ("committed", "095gdfhw7bynli63v7ww4bvr8", "build"),
        ("committed", f"{hexadecimal('web')}-init", "container"),
        ("active", f"{hexadecimal('web')}-init-key", "container"),
        ("active", hexadecimal("web"), "container"),
        ("snapshot", hexadecimal("web"), "container"),
        ("view", hexadecimal("web"), "image"),
        ("committed", "sha256:0f84", "image"),
    ],
)
def test_a_snapshot_is_what_its_name_says(kind: str, name: str, state: str) -> None:
    assert _state("1", Snapshot(f"k8s.io/9/{name}", "k8s.io", name, 1, kind, "", None, None)) == state


def test_a_layer_whose_content_is_elsewhere_is_not_counted(machine: Machine) -> None:
    snapshot = machine.tree.path / "snapshots/1"
    (snapshot / "fs").rename(machine.tree.path / "cache")
    (snapshot / "fs").symlink_to("../../cache")
    assert {each.name for each in machine.scan().layers if not each.is_settled} == {"1"}
    assert machine.host.errors == {"malformed": 1}


def test_an_init_layer_is_no_container_s_writable_layer(machine: Machine) -> None:
    assert [layer.container for layer in machine.scan().layers] == ["", "web", "spare", "", "gone"]


def test_a_snapshot_below_itself_ends_somewhere() -> None:
    def snapshot(key: str, parent: str) -> Snapshot:
        return Snapshot(key, "", key, 1, "committed", parent, None, None)

    chain = [snapshot("c", "b"), snapshot("b", "a"), snapshot("a", ""), snapshot("x", "y"), snapshot("y", "x")]
    assert _depths(chain) == {"a": 0, "b": 1, "c": 2, "y": 0, "x": 1}


def test_an_old_download_is_left_over(machine: Machine) -> None:
    place = machine.tree.ingest / hexadecimal("layer")
    place.mkdir()
    (place / "data").touch()
    assert machine.scan().write_sets == (f"/var/lib/containerd/io.containerd.content.v1.content/ingest/{place.name}",)
    machine.now = time.time()
    assert machine.scan().write_sets == ()


def test_the_signature_is_another_one_after_a_transaction(machine: Machine) -> None:
    machine.states()
    before = machine.store.signature(machine.host)
    assert machine.store.signature(machine.host) == before
    os.utime(machine.tree.path / "metadata.db")
    assert machine.store.signature(machine.host) != before


def test_a_file_that_is_written_to_all_the_time_is_malformed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    read = boltfile._read
    file = machine.tree.path / "metadata.db"
    old, new = file.read_bytes(), (CORPUS / "bolt/containerd-many.db").read_bytes()

    def busy(descriptor: int, path: str) -> bytes:
        data = read(descriptor, path)
        file.write_bytes(new if data == old else old)
        return data

    monkeypatch.setattr(boltfile, "_read", busy)
    with pytest.raises(Malformed, match="all the time"):
        read_whole(machine.host, f"{PATH}/metadata.db")


def test_a_file_is_read_again_if_a_transaction_ended_meanwhile(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = boltfile._read
    file = machine.tree.path / "metadata.db"
    new = (CORPUS / "bolt/containerd-many.db").read_bytes()

    def changed(descriptor: int, path: str) -> bytes:
        data = read(descriptor, path)
        file.write_bytes(new)
        return data

    monkeypatch.setattr(boltfile, "_read", changed)
    assert read_whole(machine.host, f"{PATH}/metadata.db") == new
