"""The collector of inotify on real instances and watches, against what the kernel itself allows; each hazard."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.inotify import Inotify
from tests.real.conftest import Make, StuckFs, run
from tests.real.observer import Observer, Watched, observer, of, watched

pytestmark = [pytest.mark.root, pytest.mark.slow]
WATCHING = sys.executable, str(Path(__file__).with_name("watching.py"))
INITIAL = "4026531837"
ROOT_THERE = "--user", "--map-root-user"


def used(seen: dict[str, Any], what: str, uid: int = 0, userns: str = INITIAL) -> float | None:
    return of(seen, f"inotify_{what}", uid=str(uid), userns=userns)


def namespaces(seen: dict[str, Any]) -> set[str]:
    return {labels["userns"] for name, labels, _ in seen["series"] if name == "ullage_inotify_watches"}


@pytest.fixture
def there(need: Callable[..., None]) -> Iterator[Observer]:
    """An observer in a process namespace of its own."""
    need("unshare")
    with observer() as made:
        yield made


def test_watches_up_to_a_lowered_limit_raise_each_tier_and_their_end_clears_it(
    need: Callable[..., None], tmp_path: Path
) -> None:
    need("unshare")
    with observer(*ROOT_THERE) as there:
        there.write("/proc/sys/user/max_inotify_watches", "100")
        seen = there.run()
        assert seen["levels"] == {}

        def level(*counts: int) -> int:
            """Have so many watches; return the level then."""
            programs = [
                there.start(*WATCHING, "1", str(count), str(tmp_path / f"{place}"))
                for place, count in enumerate(counts)
            ]
            after = there.run()
            (userns,) = namespaces(after)
            assert used(after, "watches", 0, userns) == min(100, sum(counts))
            assert used(after, "watches_limit", 0, userns) == 100
            near = f"inotify-near-limit {userns}/0 watches" in after["found"]
            for program in programs:
                there.stop(program)
            found: int = after["levels"][f"inotify_watches {userns}/0"]
            assert near == (found > 0)
            return found

        levels = [level(75), level(80), level(72), level(40, 55), level(92), level(88), level(60), level(90, 90)]
        assert levels == [0, 1, 1, 2, 2, 1, 0, 2]
        assert there.run()["levels"] == {}


def test_the_remedy_of_a_limit_that_is_near_raises_it(need: Callable[..., None], tmp_path: Path) -> None:
    need("unshare", "sysctl")
    with observer(*ROOT_THERE) as there:
        there.write("/proc/sys/user/max_inotify_watches", "100")
        program = there.start(*WATCHING, "1", "90", str(tmp_path))
        ((target, (explanation, remedy)),) = there.run()["found"].items()
        assert target.endswith("/0 watches")
        assert explanation.startswith("The user 0 has 90 of 100 inotify watches. Most of them: ")
        there.stop(there.start("sh", "-c", f"{remedy}\necho done; cat > /dev/null"))
        seen = there.run()
        assert seen["found"] == {}
        assert of(seen, "inotify_watches_limit") == 200
        there.stop(program)


def test_a_user_has_as_many_as_the_kernel_counts(there: Observer) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_user_instances").read_text())
    uid = 0x51000 + os.getpid()  # nobody else's
    program = there.start(*WATCHING, str(limit + 10), "1", "/", str(uid))
    seen = there.run()
    assert (
        used(seen, "instances", uid) == used(seen, "instances_limit", uid) == limit
    )  # of ten more the kernel gave none
    assert used(seen, "watches", uid) == limit
    assert seen["levels"][f"inotify_instances {INITIAL}/{uid}"] == 2
    there.stop(program)
    seen = there.run()
    assert used(seen, "instances", uid) is None
    assert f"inotify_instances {INITIAL}/{uid}" not in seen["levels"]


def test_what_a_child_shares_counts_once(there: Observer) -> None:
    uid = 0x52000 + os.getpid()
    there.start(*WATCHING, "3", "1", "/", str(uid), "fork")
    seen = there.run()
    assert (used(seen, "instances", uid), used(seen, "watches", uid)) == (3, 3)


def test_what_is_used_in_a_user_namespace_counts_for_its_maker_too(there: Observer, tmp_path: Path) -> None:
    there.start("unshare", *ROOT_THERE, *WATCHING, "2", "7", str(tmp_path))
    seen = there.run()
    (inside,) = namespaces(seen) - {INITIAL}
    assert used(seen, "watches", 0, inside) == 14
    assert used(seen, "instances", 0, inside) == 2
    assert used(seen, "watches_limit", 0, inside) is None  # it is not ours to read
    assert used(seen, "watches", 0) == 14
    assert used(seen, "instances", 0) == 2


def test_without_ptrace_rights_what_cannot_be_seen_is_unknown_and_told(need: Callable[..., None]) -> None:
    need("unshare", "setpriv")
    with observer("setpriv", "--bounding-set", "-sys_ptrace") as there:
        there.start(*WATCHING, "2", "1", "/")
        seen = there.run()
        assert used(seen, "instances") == 2
        assert of(seen, "container_inotify_watches", container="host") == 2
        uid = 0x53000 + os.getpid()
        program = there.start(*WATCHING, "3", "1", "/", str(uid))
        seen = there.run()
        assert of(seen, "inotify_skipped_processes", reason="permission") == 1
        assert used(seen, "instances", uid) is None
        assert of(seen, "container_inotify_watches", container="host") is None
        assert used(seen, "instances") == 2  # root's own are all seen
        there.stop(program)
        assert of(there.run(), "container_inotify_watches", container="host") == 2


def test_a_watch_where_no_event_arrives_is_told_also_while_that_filesystem_hangs(
    stuckfs: StuckFs, there: Observer
) -> None:
    program = there.start(*WATCHING, "2", "1", str(stuckfs.mount))
    stuckfs.hang()
    seen = there.run()
    stuckfs.wake()
    ((target, (explanation, _)),) = seen["found"].items()
    assert target.startswith("inotify-blind-watch ")
    assert target.endswith(str(stuckfs.mount))
    assert f"2 inotify watches on {stuckfs.mount} (fuse)" in explanation
    assert of(seen, "inotify_blind_watches", container="host") == 2
    there.stop(program)
    seen = there.run()
    assert seen["found"] == {}
    assert of(seen, "inotify_blind_watches", container="host") == 0


def test_a_watch_on_a_layer_below_an_overlay_is_blind_and_one_on_the_overlay_is_not(
    filesystem: Make, stack: contextlib.ExitStack
) -> None:
    store = filesystem("ext4")
    layer, merged = store / "overlay2/1/diff", store / "merged"
    for path in (layer, merged, store / "upper", store / "work"):
        path.mkdir(parents=True)
    run(
        "mount",
        "-t",
        "overlay",
        "-o",
        f"lowerdir={layer},upperdir={store}/upper,workdir={store}/work",
        "x",
        str(merged),
    )
    stack.callback(run, "umount", str(merged))
    with observer() as there:
        there.start(*WATCHING, "3", "1", str(merged))
        assert there.run()["found"] == {}
        program = there.start(*WATCHING, "2", "1", str(layer))
        seen = there.run()
        ((target, (explanation, remedy)),) = seen["found"].items()
        assert target.endswith(f" {store}/overlay2")
        assert f"2 inotify watches on {store}/overlay2 (below overlays)" in explanation
        assert "watch the same file in the overlay's own mount" in remedy
        inotify = Inotify()
        stack.callback(inotify.close)
        inotify.add(str(layer))
        in_mount = inotify.add(str(merged))
        (merged / "new").touch()
        assert [(event.watch, event.name) for event in inotify.read()] == [(in_mount, "new")]
        assert of(seen, "inotify_blind_watches", container="host") == 2
        there.stop(program)
        assert there.run()["found"] == {}


@pytest.fixture
def containers(need: Callable[..., None]) -> Iterator[Watched]:
    need("dockerd", "docker", "busybox")
    with watched() as made:
        yield made


def stale(seen: dict[str, Any], container: str) -> float | None:
    return of(seen, "bind_mounts_stale", container=container)


@pytest.mark.docker
def test_a_file_that_was_replaced_under_a_container_is_told_until_the_remedy_is_run(
    containers: Watched, tmp_path: Path
) -> None:
    config, directory = tmp_path / "app.conf", tmp_path / "conf.d"
    config.write_text("old")
    directory.mkdir()
    volumes = [f"--volume={config}:/etc/app.conf", f"--volume={directory}:/etc/conf.d"]
    containers.docker.docker(
        "run", "--detach", "--network=none", "--name=web", *volumes, "busybox", "/bin/sleep", "1000"
    )
    containers.docker.run("other", "sleep 1000")
    seen = containers.node.run()
    assert stale(seen, "web") == stale(seen, "other") == 0
    assert "hot-reload-dead web /etc/app.conf" not in seen["found"]

    (tmp_path / "app.conf.new").write_text("new")
    (tmp_path / "app.conf.new").rename(config)  # as editors write
    assert containers.docker.docker("exec", "web", "/bin/cat", "/etc/app.conf") == "old"
    seen = containers.node.run()
    explanation, remedy = seen["found"]["hot-reload-dead web /etc/app.conf"]
    assert str(config) in explanation
    assert stale(seen, "web") == 1
    assert stale(seen, "other") == 0

    containers.follow(remedy)
    assert containers.docker.docker("exec", "web", "/bin/cat", "/etc/app.conf") == "new"
    seen = containers.node.run()
    assert "hot-reload-dead web /etc/app.conf" not in seen["found"]
    assert stale(seen, "web") == 0
    directory.rmdir()  # what is gone is a directory, and so no file that was replaced
    assert stale(containers.node.run(), "web") == 0


@pytest.mark.docker
def test_a_file_of_another_filesystem_is_told_by_its_path_on_the_host_and_whether_one_is_there(
    containers: Watched, filesystem: Make
) -> None:
    config = filesystem("ext4") / "etc/app.conf"
    config.parent.mkdir()
    config.write_text("old")
    containers.docker.docker(
        *("run", "--detach", "--network=none", "--name=web", f"--volume={config}:/etc/app.conf"),
        *("busybox", "/bin/sleep", "1000"),
    )

    def told() -> list[str]:
        seen = containers.node.run()
        assert stale(seen, "web") == 1
        found: list[str] = seen["found"]["hot-reload-dead web /etc/app.conf"]
        return found

    config.with_suffix(".new").write_text("new")
    config.with_suffix(".new").rename(config)
    explanation, remedy = told()
    assert f" {config}, has been replaced on the host since:" in explanation
    config.unlink()
    explanation, remedy = told()
    assert f" {config}, has been removed on the host, and no file is in its place now:" in explanation
    with pytest.raises(subprocess.CalledProcessError):
        containers.follow(remedy)  # the restart that would make a directory there is not done
    assert not config.exists()
    assert containers.docker.docker("exec", "web", "/bin/cat", "/etc/app.conf") == "old"

    config.write_text("back")  # which is what comes first
    assert f" {config}, has been replaced on the host since:" in told()[0]
    containers.follow(remedy)
    assert containers.docker.docker("exec", "web", "/bin/cat", "/etc/app.conf") == "back"
    assert stale(containers.node.run(), "web") == 0


@pytest.mark.docker
def test_watches_are_those_of_the_container_that_has_them(containers: Watched, tmp_path: Path) -> None:
    containers.docker.run("idle", "sleep 1000")
    host_tools = [f"--volume={place}:{place}:ro" for place in ("/usr", "/lib", "/lib64") if Path(place).exists()]
    log = tmp_path / "log"
    log.write_text("x")
    containers.docker.docker(
        *("run", "--detach", "--network=none", "--name=tailing", *host_tools, f"--volume={log}:/log"),
        *("busybox", "/usr/bin/tail", "--follow", "/log"),
    )

    def tailing() -> tuple[float | None, ...]:
        seen = containers.node.run()
        return tuple(of(seen, f"container_inotify_{what}", container="tailing") for what in ("watches", "instances"))

    end = time.monotonic() + 120
    while tailing() != (1, 1):
        assert time.monotonic() < end, tailing()
    assert of(containers.node.run(), "container_inotify_watches", container="idle") == 0
    containers.docker.docker("rm", "--force", "tailing")
    assert tailing() == (None, None)
