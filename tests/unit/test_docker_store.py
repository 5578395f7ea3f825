"""Docker's layers: what each is, what is an orphan and what never is, and links that lead nowhere."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection
from pathlib import Path

import pytest

from agent.errors import Failed, Vanished
from agent.host import Host
from collectors import stored
from collectors.docker_store import LONGEST, PID_FILE, DockerStore
from collectors.stored import APART, MIN_AGE, BrokenLink, Layer, Scan
from tests.unit.storetrees import DockerTree, hexadecimal, short

BUILT = "095gdfhw7bynli63v7ww4bvr8"


class Machine:
    """A data-root with a store on it, and a clock that is the test's: it begins when all that is there is old."""

    def __init__(self, path: Path) -> None:
        self.tree = DockerTree(path / "var/lib/docker")
        self.host = Host(rootfs=str(path))
        self.now = time.time() + MIN_AGE + 10
        self.store = DockerStore("/var/lib/docker", "/var/lib/docker/overlay2", clock=lambda: self.now)

    def scan(self, mounted: Collection[str] = ()) -> Scan:
        self.now += APART
        return self.store.scan(self.host, mounted, self.now)

    def twice(self, mounted: Collection[str] = ()) -> Scan:
        self.scan(mounted)
        return self.scan(mounted)

    def start_daemon(self, at: float | None) -> None:
        """Have a daemon that has started at a time, or nobody knows when."""
        file = Path(self.host.rootfs, PID_FILE)
        file.parent.mkdir(exist_ok=True)
        file.touch()
        os.utime(file, (at or 0, at or 0))
        if at is None:
            file.unlink()

    def states(self, scan: Scan) -> dict[str, str]:
        return {layer.name: layer.state for layer in scan.layers}

    def layer(self, scan: Scan, name: str) -> Layer:
        (found,) = [layer for layer in scan.layers if layer.name == name]
        return found


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_layers_of_images_and_containers(machine: Machine) -> None:
    base = machine.tree.image("base")
    top = machine.tree.image("top", base)
    container, mount = machine.tree.container("web", top)
    (machine.tree.path / base / "committed").touch()
    scan = machine.scan()
    assert machine.states(scan) == {
        base: "image",
        top: "image",
        mount: "container",
        f"{mount}-init": "container",
    }
    found = machine.layer(scan, mount)
    diff = (machine.tree.path / mount / "diff").stat()
    assert found == Layer(
        name=mount,
        state="container",
        path=f"/var/lib/docker/overlay2/{mount}",
        content="diff",
        identity=(diff.st_ino, diff.st_mtime_ns),
        extras=3,  # link, lower, and the link to it
        container=container,
        lowers=3,
    )
    assert (machine.layer(scan, base).extras, machine.layer(scan, base).size) == (3, 1982291)
    assert machine.layer(scan, f"{mount}-init").container == ""
    assert scan.links == {"live": 4, "dangling": 0, "missing": 0, "empty": 0}
    assert (scan.broken, scan.litter, scan.write_sets, machine.host.errors) == ((), (), (), {})


def test_an_orphan_is_old_and_was_seen_twice(machine: Machine) -> None:
    machine.tree.image("base")
    orphan = machine.tree.layer(hexadecimal("orphan"))
    first = machine.layer(machine.scan(), orphan)
    assert (first.state, first.is_settled) == ("incomplete", True)
    assert machine.layer(machine.scan(), orphan).state == "orphan"
    assert machine.store.unknown.due is None


def test_two_scans_at_once_are_one(machine: Machine) -> None:
    orphan = machine.tree.layer(hexadecimal("orphan"))
    machine.scan()
    again = machine.store.scan(machine.host, (), machine.now + 1)
    assert machine.layer(again, orphan).state == "incomplete"


def test_what_was_changed_a_moment_ago_is_being_pulled(machine: Machine) -> None:
    orphan = machine.tree.layer(hexadecimal("pulled"))
    machine.now = time.time()
    found = machine.layer(machine.twice(), orphan)
    assert (found.state, found.is_settled) == ("incomplete", False)
    before = machine.store.signature(machine.host)
    assert machine.store.signature(machine.host) == before
    machine.now += MIN_AGE
    assert machine.store.signature(machine.host) != before  # though no file has changed
    assert machine.layer(machine.scan(), orphan).state == "orphan"


def test_a_layer_may_bring_its_times_from_the_future(machine: Machine) -> None:
    orphan = machine.tree.layer(hexadecimal("orphan"))
    os.utime(machine.tree.path / orphan / "diff", (machine.now * 2, machine.now * 2))
    assert machine.states(machine.twice()) == {orphan: "orphan"}


def test_an_orphan_that_was_removed_and_made_anew_begins_anew(machine: Machine) -> None:
    orphan = machine.tree.layer(hexadecimal("orphan"))
    machine.scan()
    (machine.tree.path / orphan / "diff").rename(machine.tree.path / orphan / "old")
    (machine.tree.path / orphan / "diff").mkdir()
    assert machine.states(machine.scan()) == {orphan: "incomplete"}


@pytest.mark.parametrize(
    ("started", "state"),
    [(-1.0, "incomplete"), (1.0, "orphan"), (None, "incomplete")],
    ids=["by this daemon", "by one before it", "by who knows"],
)
def test_a_layer_that_is_unpacked_for_hours_is_no_orphan(started: float | None, state: str, machine: Machine) -> None:
    # a single large file is written, and nothing else is changed
    write_set = machine.tree.write_set()
    layer = machine.tree.layer(hexadecimal("unpacked"))
    machine.start_daemon(write_set.stat().st_mtime + started if started is not None else None)
    assert machine.states(machine.twice()) == {layer: state}
    machine.now += LONGEST
    assert machine.states(machine.scan()) == {layer: "orphan" if started is None else state}


def test_while_a_layer_is_unpacked_older_ones_may_be_orphans(machine: Machine) -> None:
    layer = machine.tree.layer(hexadecimal("old"))
    write_set = machine.tree.write_set()
    machine.start_daemon(0.0)
    os.utime(write_set, (machine.now, machine.now))
    assert machine.states(machine.twice()) == {layer: "orphan"}


def test_an_interrupted_pull_leaves_a_write_set(machine: Machine) -> None:
    write_set = machine.tree.write_set()
    (machine.tree.layerdb / "tmp/other").mkdir()
    machine.start_daemon(write_set.stat().st_mtime + 1)
    path = "/var/lib/docker/image/overlay2/layerdb/tmp/write-set-3489632647"
    assert machine.scan().write_sets == (path,)
    machine.now = time.time()
    assert machine.scan().write_sets == ()


def test_layers_of_builds_are_never_orphans(machine: Machine) -> None:
    base = machine.tree.image("base")
    machine.tree.buildkit()
    committed = machine.tree.image("built", base, "jvlav3t1b685g42xaf1futnd2")
    known, unknown = machine.tree.layer(BUILT), machine.tree.layer("z" * 25)
    run = machine.tree.layer(hexadecimal("run"), base)
    (machine.tree.layerdb / "mounts" / ("y" * 25)).mkdir()
    (machine.tree.layerdb / "mounts" / ("y" * 25) / "mount-id").write_text(run)
    (machine.tree.layerdb / "mounts" / ("y" * 25) / "init-id").write_text(f"{run}-init")
    scan = machine.twice()
    assert machine.states(scan) == {base: "image", committed: "image", known: "build", unknown: "build", run: "build"}
    assert machine.layer(scan, run).container == ""


def test_what_is_mounted_is_never_an_orphan(machine: Machine) -> None:
    mounted = machine.tree.layer(hexadecimal("mounted"))
    assert machine.states(machine.twice([f"/var/lib/docker/overlay2/{mounted}/diff"])) == {mounted: "incomplete"}


def test_what_docker_is_about_to_remove_is_no_orphan(machine: Machine) -> None:
    layer = machine.tree.image("base")
    (place,) = (machine.tree.layerdb / "sha256").iterdir()
    place.rename(f"{place}-6a9b2-removing")
    machine.tree.link(layer).unlink()
    scan = machine.twice()
    assert machine.states(scan) == {layer: "removing"}
    assert scan.broken == ()


def test_directories_by_other_names_are_never_orphans(machine: Machine) -> None:
    (machine.tree.path / "compat123/diff").mkdir(parents=True)
    (machine.tree.path / "backingFsBlockDev").touch()
    assert machine.states(machine.twice()) == {"compat123": "incomplete"}


def test_a_container_in_the_making_makes_no_orphan(machine: Machine) -> None:
    container, _ = machine.tree.container("web", machine.tree.image("base"))
    (machine.tree.layerdb / "mounts" / container / "mount-id").unlink()
    machine.now = time.time()
    machine.scan()
    before = machine.store.signature(machine.host)
    assert machine.store.signature(machine.host) != before  # so that the next scan is soon
    machine.now += 2 * MIN_AGE
    machine.scan()
    machine.scan()
    before = machine.store.signature(machine.host)
    assert machine.store.signature(machine.host) == before  # what was never finished costs nothing


def test_an_id_that_is_not_written_yet_is_no_error_and_one_that_never_is_is_one(machine: Machine) -> None:
    container, _ = machine.tree.container("web", machine.tree.image("base"))
    (machine.tree.layerdb / "mounts" / container / "mount-id").write_text("")
    machine.now = time.time()
    assert machine.scan().is_whole
    assert machine.host.errors == {}
    machine.now += MIN_AGE
    assert not machine.scan().is_whole
    assert machine.host.errors == {"malformed": 1}


def test_before_the_first_container_there_is_no_directory_of_them(machine: Machine) -> None:
    machine.tree.image("base")
    (machine.tree.layerdb / "mounts").rmdir()
    orphan = machine.tree.layer(hexadecimal("orphan"))
    assert machine.states(machine.twice())[orphan] == "orphan"
    (machine.tree.root / "containers" / hexadecimal("web")).mkdir(parents=True)
    assert machine.states(machine.twice())[orphan] == "incomplete"
    assert machine.host.errors == {"vanished": 2}


@pytest.mark.parametrize(
    "damage",
    [
        lambda tree: shutil.rmtree(tree.layerdb / "sha256"),
        lambda tree: next((tree.layerdb / "sha256").glob("*/cache-id")).write_text(""),
        lambda tree: next((tree.layerdb / "mounts").glob("*/mount-id")).write_text("x" * 500),
        lambda tree: next((tree.layerdb / "mounts").glob("*/init-id")).write_text("\n"),
        lambda tree: tree.buildkit().write_bytes(b"damaged"),
    ],
)
def test_where_docker_s_own_files_cannot_be_read_there_are_no_orphans(damage: object, machine: Machine) -> None:
    machine.tree.container("web", machine.tree.image("base"))
    orphan = machine.tree.layer(hexadecimal("orphan"))
    assert machine.states(machine.twice())[orphan] == "orphan"
    assert callable(damage)
    damage(machine.tree)
    states = machine.states(machine.twice())
    assert "orphan" not in states.values()
    assert len(states) == 4


def test_a_removed_link_names_the_containers_and_images_that_fail(machine: Machine) -> None:
    base = machine.tree.image("base")
    top = machine.tree.image("top", base)
    machine.tree.image("beside")
    web, _ = machine.tree.container("web", top)
    other, _ = machine.tree.container("other", base)
    machine.tree.link(top).unlink()
    scan = machine.scan()
    assert scan.broken == (BrokenLink(top, short(top), "missing", (web,), 1),)
    assert scan.links == {"live": 6, "dangling": 0, "missing": 1, "empty": 0}
    machine.tree.link(base).unlink()
    both = {broken.layer: broken for broken in machine.scan().broken}
    assert both[base] == BrokenLink(base, short(base), "missing", tuple(sorted((web, other))), 2)


def test_the_link_of_a_containers_own_layer_is_not_needed(machine: Machine) -> None:
    _, mount = machine.tree.container("web", machine.tree.image("base"))
    machine.tree.link(mount).unlink()
    scan = machine.scan()
    assert (scan.broken, scan.links["missing"]) == ((), 1)


def test_the_link_of_an_initial_layer_is(machine: Machine) -> None:
    web, mount = machine.tree.container("web", machine.tree.image("base"))
    machine.tree.link(f"{mount}-init").unlink()
    assert machine.scan().broken == (BrokenLink(f"{mount}-init", short(f"{mount}-init"), "missing", (web,), 0),)


def test_a_link_to_a_layer_that_is_gone_dangles(machine: Machine) -> None:
    base = machine.tree.image("base")
    web, _ = machine.tree.container("web", base)
    shutil.rmtree(machine.tree.path / base)
    scan = machine.scan()
    assert scan.broken == (BrokenLink(base, short(base), "dangling", (web,), 1),)
    assert scan.litter == ()


def test_a_dangling_link_that_nobody_names_is_litter(machine: Machine) -> None:
    machine.tree.image("base")
    machine.tree.link("gone").symlink_to(f"../{hexadecimal('gone')}/diff")
    machine.tree.link("away").symlink_to("/etc")
    (machine.tree.path / "l/file").touch()
    scan = machine.scan()
    assert (scan.broken, sorted(scan.litter)) == ((), sorted((short("gone"), short("away"))))
    assert scan.links == {"live": 1, "dangling": 2, "missing": 0, "empty": 0}


def test_a_link_that_an_orphan_alone_names_breaks_nothing(machine: Machine) -> None:
    machine.tree.layer(hexadecimal("orphan"), hexadecimal("gone"))
    machine.tree.link(hexadecimal("gone")).symlink_to(f"../{hexadecimal('gone')}/diff")
    scan = machine.twice()
    assert (scan.broken, scan.litter, scan.links["dangling"]) == ((), (), 1)


@pytest.mark.parametrize(
    ("layer", "file", "containers", "images"),
    [("top", "lower", 0, 1), ("top", "link", 0, 1), ("web", "lower", 1, 0), ("base", "link", 0, 1)],
)
def test_an_empty_file_of_a_layer_breaks_what_is_made_from_it(
    layer: str, file: str, containers: int, images: int, machine: Machine
) -> None:
    base = machine.tree.image("base")
    top = machine.tree.image("top", base)
    web, mount = machine.tree.container("web", top)
    name = {"base": base, "top": top, "web": mount}[layer]
    (machine.tree.path / name / file).write_text("")
    scan = machine.scan()
    assert scan.broken == (BrokenLink(name, "", "empty", (web,) * containers, images),)
    assert scan.links["empty"] == 1


def test_what_goes_while_we_look_is_not_broken(machine: Machine) -> None:
    base = machine.tree.image("base")
    _, mount = machine.tree.container("web", base)

    class Slow(Host):
        def entries(self, path: str) -> dict[str, bool]:
            found = super().entries(path)
            if path.endswith(base):  # between the links and their layers: as Docker removes a container
                for name in (mount, f"{mount}-init"):
                    machine.tree.link(name).unlink(missing_ok=True)
                    shutil.rmtree(machine.tree.path / name, ignore_errors=True)
            return found

    scan = machine.store.scan(Slow(rootfs=machine.host.rootfs), (), machine.now)
    assert (scan.broken, scan.litter) == ((), ())
    assert scan.links == {"live": 3, "dangling": 0, "missing": 0, "empty": 0}


@pytest.mark.parametrize("change", ["layer", "link", "image", "container", "write_set", "buildkit"])
def test_the_signature_is_another_one_after_each_change(change: str, machine: Machine) -> None:
    base = machine.tree.image("base")
    machine.twice()
    before = machine.store.signature(machine.host)
    assert machine.store.signature(machine.host) == before
    match change:
        case "layer":
            machine.tree.layer(hexadecimal("new"))
        case "link":
            machine.tree.link(base).unlink()
        case "image":
            machine.tree.image("new")
        case "container":
            machine.tree.container("new", base)
        case "write_set":
            machine.tree.write_set()
        case "buildkit":
            machine.tree.buildkit()
    assert machine.store.signature(machine.host) != before


def test_a_store_with_too_many_layers_is_not_read(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "MOST_LAYERS", 2)
    for name in range(3):
        machine.tree.layer(hexadecimal(str(name)))
    with pytest.raises(Failed, match="more than 2 layers"):
        machine.scan()


def test_a_store_that_is_gone_raises(machine: Machine) -> None:
    shutil.rmtree(machine.tree.path)
    with pytest.raises(Vanished):
        machine.scan()
