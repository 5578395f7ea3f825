"""Layers of containers/storage: what each is, what is an orphan, and links that are not made anew."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection
from pathlib import Path

import pytest

from agent.host import Host
from collectors.containers_store import ContainersStore
from collectors.stored import APART, MIN_AGE, BrokenLink, Layer, Scan
from tests.unit.storetrees import ContainersTree, hexadecimal, short

GRAPH, RUN, EXTRA = "/var/lib/containers/storage", "/run/containers/storage", "/opt/images"
BASE, TOP, WEB, ORPHAN = map(hexadecimal, ("base", "top", "web layer", "orphan"))
WEB_ID = hexadecimal("web")


class Machine:
    """An image of two layers with a container, and a clock that begins when all that is there is old."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tree = ContainersTree(path / GRAPH[1:])
        self.tree.layer(BASE)
        self.tree.layer(TOP, BASE)
        self.tree.layer(WEB, TOP, BASE)
        self.layers: list[dict[str, object]] = [
            {"id": BASE, "diff-size": 1986560},
            {"id": TOP, "parent": BASE, "diff-size": 1024},
            {"id": WEB, "parent": TOP},
        ]
        self.tree.write("layers", self.layers)
        self.tree.write("containers", [{"id": WEB_ID, "names": ["web"], "layer": WEB}])
        self.tree.write("images", [{"id": hexadecimal("image"), "layer": TOP}, {"id": "b", "layer": BASE}])
        self.host = Host(rootfs=str(path))
        self.now = time.time() + MIN_AGE + 10
        roots = (GRAPH, RUN, EXTRA)
        self.store = ContainersStore(GRAPH, f"{GRAPH}/overlay", "podman", roots, clock=lambda: self.now)

    def scan(self, mounted: Collection[str] = ()) -> Scan:
        self.now += APART
        return self.store.scan(self.host, mounted, self.now)

    def states(self, mounted: Collection[str] = ()) -> dict[str, str]:
        """Scan twice; return what has become of those beyond the image and the container."""
        self.scan(mounted)
        return {layer.name: layer.state for layer in self.scan(mounted).layers if layer.name not in (BASE, TOP, WEB)}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_layers_of_images_and_containers(machine: Machine) -> None:
    scan = machine.scan()
    assert {layer.name: layer.state for layer in scan.layers} == {BASE: "image", TOP: "image", WEB: "container"}
    diff = (machine.tree.path / WEB / "diff").stat()
    assert [layer for layer in scan.layers if layer.name == WEB] == [
        Layer(
            name=WEB,
            state="container",
            path=f"{GRAPH}/overlay/{WEB}",
            content="diff",
            identity=(diff.st_ino, diff.st_mtime_ns),
            extras=3,
            container=WEB_ID,
            lowers=2,
        )
    ]
    assert [layer.size for layer in scan.layers if layer.name == BASE] == [1986560]
    assert scan.links == {"live": 3, "dangling": 0, "missing": 0, "empty": 0}
    assert (scan.broken, scan.litter, machine.host.errors) == ((), (), {})


def test_what_is_in_no_table_is_an_orphan_once_it_is_old(machine: Machine) -> None:
    machine.tree.layer(ORPHAN)
    (machine.tree.path / "staging/1234").mkdir(parents=True)
    (machine.tree.path / "other").mkdir()
    assert machine.states() == {ORPHAN: "orphan", "other": "incomplete"}
    assert machine.states([f"{GRAPH}/overlay/{ORPHAN}/diff"])[ORPHAN] == "incomplete"


def test_an_interrupted_layer_is_incomplete(machine: Machine) -> None:
    machine.tree.layer(ORPHAN)
    machine.tree.write("layers", [*machine.layers, {"id": ORPHAN, "flags": {"incomplete": True}}])
    assert machine.states() == {ORPHAN: "incomplete"}
    (found,) = [layer for layer in machine.scan().layers if layer.name == ORPHAN]
    assert not found.is_settled


@pytest.mark.parametrize(
    "table",
    [
        f"{GRAPH}/overlay-layers/volatile-layers.json",
        f"{RUN}/overlay-layers/volatile-layers.json",
        f"{EXTRA}/overlay-layers/layers.json",
    ],
)
def test_a_layer_may_be_in_another_table(table: str, machine: Machine) -> None:
    machine.tree.layer(ORPHAN)
    file = machine.path / table[1:]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f'[{{"id": "{ORPHAN}"}}]')
    assert machine.states() == {ORPHAN: "image"}


def test_a_container_of_this_boot_alone_is_one(machine: Machine) -> None:
    machine.tree.layer(ORPHAN, TOP, BASE)
    machine.tree.write("layers", [*machine.layers, {"id": ORPHAN, "parent": TOP}])
    (machine.path / RUN[1:] / "overlay-containers").mkdir(parents=True)
    (machine.path / RUN[1:] / "overlay-containers/volatile-containers.json").write_text(
        f'[{{"id": "temp", "layer": "{ORPHAN}"}}]'
    )
    assert machine.states() == {ORPHAN: "container"}


@pytest.mark.parametrize(
    "table", ["layers/layers", "layers/volatile-layers", "containers/containers", "containers/volatile-containers"]
)
def test_where_a_table_cannot_be_read_there_are_no_orphans(table: str, machine: Machine) -> None:
    machine.tree.layer(ORPHAN)
    assert machine.states() == {ORPHAN: "orphan"}
    (machine.tree.root / f"overlay-{table}.json").write_text("[{")
    assert machine.states() == {ORPHAN: "incomplete"}
    assert machine.host.errors == {"malformed": 2}


def test_where_there_is_no_table_of_layers_there_are_no_orphans(machine: Machine) -> None:
    machine.tree.layer(ORPHAN)
    (machine.tree.root / "overlay-layers/layers.json").unlink()
    assert machine.states() == {ORPHAN: "incomplete"}


def test_a_removed_link_is_made_anew_and_breaks_nothing(machine: Machine) -> None:
    machine.tree.link(BASE).unlink()
    scan = machine.scan()
    assert (scan.broken, scan.links["missing"]) == ((), 1)


def test_a_layer_that_is_gone_breaks_what_is_on_it(machine: Machine) -> None:
    shutil.rmtree(machine.tree.path / BASE)
    assert machine.scan().broken == (BrokenLink(BASE, short(BASE), "dangling", (WEB_ID,), 2),)
    machine.tree.link(BASE).unlink()
    assert machine.scan().broken == (BrokenLink("", short(BASE), "missing", (WEB_ID,), 1),)


def test_a_layer_may_be_on_one_of_another_store(machine: Machine) -> None:
    extra = ContainersTree(machine.path / EXTRA[1:])
    machine.tree.path.joinpath(BASE).rename(extra.path / BASE)
    machine.tree.link(BASE).rename(extra.link(BASE))
    scan = machine.scan()
    assert (scan.broken, scan.links) == ((), {"live": 2, "dangling": 0, "missing": 0, "empty": 0})


def test_an_empty_file_of_a_layer_breaks_what_is_made_from_it(machine: Machine) -> None:
    (machine.tree.path / WEB / "lower").write_text("")
    assert machine.scan().broken == (BrokenLink(WEB, "", "empty", (WEB_ID,), 0),)


def test_the_signature_is_another_one_after_each_change(machine: Machine) -> None:
    machine.states()
    before = machine.store.signature(machine.host)
    assert machine.store.signature(machine.host) == before
    machine.tree.write("layers", machine.layers[:2])
    assert machine.store.signature(machine.host) != before


def test_in_somebodys_own_store_files_may_be_anything(machine: Machine) -> None:
    secret = machine.path / "secret"
    secret.write_text("password")
    for name in ("link", "lower"):
        (machine.tree.path / WEB / name).unlink()
        (machine.tree.path / WEB / name).symlink_to(secret)
    (machine.tree.path / TOP / "link").unlink()
    os.mkfifo(machine.tree.path / TOP / "link")
    (machine.tree.root / "overlay-containers/volatile-containers.json").symlink_to(secret)
    os.mkfifo(machine.tree.root / "overlay-layers/volatile-layers.json")
    (machine.tree.path / hexadecimal("away")).symlink_to("/etc")
    scan = machine.scan()
    assert sorted(states := {layer.state for layer in scan.layers}) == sorted(states & {"image", "container"})
    assert "password" not in f"{scan} {machine.host.first_errors}"
    assert machine.host.errors == {"malformed": 2, "failed": 2}
