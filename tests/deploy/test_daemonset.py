"""The shipped DaemonSet's pod, started by a real engine with just what its manifest says."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.docker import Agent, Docker, Series, agent, without
from tests.deploy.node import WAIT
from tests.deploy.tools import kustomized, pod_of

pytestmark = [pytest.mark.root, pytest.mark.docker, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
CAPABILITIES = ("DAC_READ_SEARCH", "SYS_ADMIN", "SYS_PTRACE")
MIB = 1 << 20

# what somebody in the agent's container may try: a new file in every mounted directory, a write to every mounted file
WRITE_EVERYWHERE = """
import os
for line in open("/proc/self/mountinfo"):
    point = line.split()[4].encode().decode("unicode_escape")
    try:
        if os.path.isdir(point):
            os.mkdir(point + "/ullage-try")
            os.rmdir(point + "/ullage-try")
        else:
            os.close(os.open(point, os.O_WRONLY))
    except OSError:
        continue
    print(point)
"""
# the container's own devices and its masks of /proc, all of them in its memory
OWN = {
    "/dev",
    "/dev/shm",
    "/dev/mqueue",
    "/dev/pts",
    "/proc/keys",
    "/proc/timer_list",
    "/proc/kcore",
    "/proc/latency_stats",
}


@pytest.fixture(scope="module")
def storage(engine: Docker) -> Docker:
    """A btrfs with a limit, a filesystem behind a closed directory, and two containers of different users."""
    node = engine.node
    node.mounted("btrfs", "/var/lib/btrfs", 200)
    node.run("btrfs", "quota", "enable", "/var/lib/btrfs")
    node.run("btrfs", "subvolume", "create", "/var/lib/btrfs/sub")
    node.run("btrfs", "qgroup", "limit", "100M", "/var/lib/btrfs/sub")
    node.run("install", "--directory", "--mode=0700", "--owner=1000", "/var/lib/closed")
    node.mounted("ext4", "/var/lib/closed/mount", 32)
    engine.sleeper("of-root", "--user=0:0")
    engine.sleeper("of-user", "--user=1000:1000")
    return engine


@pytest.fixture
def running(storage: Docker, spec: dict[str, Any]) -> Iterator[Agent]:
    with agent(storage, spec) as made:
        yield made


def until(agent: Agent, metric: str, label: str, value: str, *, present: bool = True) -> dict[str, float]:
    """Wait until one series of a metric is there, or is gone; return the metric's values by that label."""
    end = time.monotonic() + WAIT
    while (value in (found := agent.of(metric, label))) != present:
        assert time.monotonic() < end, f"{metric}: {sorted(found)}\n{agent.log()}"
        time.sleep(0.2)
    return found


def test_the_manifest_s_container_is_what_the_kernel_shows(running: Agent) -> None:
    status = running.python("print(open('/proc/self/status').read())")
    # bits 2, 19 and 21: linux/capability.h
    assert re.findall(r"^(Cap(?:Prm|Bnd|Eff)):\s+(\w+)$", status, re.MULTILINE) == [
        ("CapPrm", "0000000000280004"),
        ("CapEff", "0000000000280004"),
        ("CapBnd", "0000000000280004"),
    ]
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
    assert re.search(r"^Seccomp:\s+2$", status, re.MULTILINE)
    assert re.search(r"^Uid:\s+0\s", status, re.MULTILINE)
    assert "ro," in running.python(
        "print(next(l.split()[5] for l in open('/proc/self/mountinfo') if l.split()[4] == '/'))"
    )


def test_mounts_of_the_host_are_as_df_says_also_one_made_later(running: Agent) -> None:
    node = running.docker.node
    node.mounted("ext4", "/var/lib/later", 64, "-N", "1024")
    try:
        size = until(running, "ullage_filesystem_size_bytes", "mountpoint", "/var/lib/later")
        for mount in (set(size) - {"/run"}) & {
            "/",
            "/var/lib",
            "/var/lib/later",
            "/var/lib/btrfs",
            "/var/lib/closed/mount",
        }:
            assert_as_df(running, mount)
        assert {"/var/lib/later", "/var/lib/btrfs", "/var/lib/closed/mount"} <= set(size)
        node.run(
            "sh",
            "-c",
            "for i in $(seq 500); do : > /var/lib/later/$i; done; dd if=/dev/zero of=/var/lib/later/big bs=1M count=20",
        )
        assert_as_df(running, "/var/lib/later")
    finally:
        node.run("umount", "/var/lib/later")
    until(running, "ullage_filesystem_size_bytes", "mountpoint", "/var/lib/later", present=False)


def assert_as_df(running: Agent, mount: str) -> None:
    """Compare with two calls of df that agree, for others write too."""
    node, end = running.docker.node, time.monotonic() + WAIT
    while True:
        shown = ["df", "-B1", "--output=size,avail,itotal,iavail", mount]
        before, series, after = node.run(*shown), running.series(), node.run(*shown)
        size, available, files, files_free = (
            int(value) if value != "-" else 0 for value in before.splitlines()[1].split()
        )
        ours = {
            name.removeprefix("ullage_filesystem_"): value
            for (name, labels), value in series.items()
            if dict(labels).get("mountpoint") == mount
        }
        theirs = {"size_bytes": size, "available_bytes": available}
        theirs |= {"files": files, "files_free": files_free} if files else {}
        mine = {name: ours.get(name) for name in theirs}
        if before == after and mine == theirs:
            assert ("files" in ours) == bool(files)
            return
        assert time.monotonic() < end, f"{mount}: {mine} and {theirs}"
        time.sleep(0.2)


def test_containers_have_their_names_and_quota_groups_their_limits(running: Agent) -> None:
    caches = until(running, "ullage_container_page_cache_bytes", "container", "of-user")
    assert {"of-root", "of-user", "agent"} <= set(caches)
    limits = running.of("ullage_qgroup_referenced_limit_bytes", "path")
    assert limits == {"/sub": 100 * MIB}
    running.docker("rm", "--force", running.docker.sleeper("comes-and-goes"))
    until(running, "ullage_container_page_cache_bytes", "container", "comes-and-goes", present=False)


def test_removing_containers_never_fails_because_of_the_agent_s_mounts(running: Agent) -> None:
    # https://github.com/google/cadvisor/issues/771: "device or resource busy", where mounts do not propagate
    docker = running.docker
    for number in range(3):
        for name in (f"one-{number}", f"two-{number}"):
            docker.sleeper(name)
        running.series()
        docker("rm", "--force", f"one-{number}", f"two-{number}")
    left = docker.node.run("sh", "-c", "ls -d /var/lib/docker/containers/* | wc -l")
    assert left == str(len(docker("ps", "--all", "--quiet").split()))


def test_nothing_but_the_state_can_be_written(running: Agent) -> None:
    docker = running.docker
    docker.sleeper("later")
    docker.node.mounted("ext4", "/var/lib/written", 32)
    try:
        until(running, "ullage_filesystem_size_bytes", "mountpoint", "/var/lib/written")
        table = running.python("print(open('/proc/self/mountinfo').read())")
        assert table.count("/merged ") > 1
        assert "/sys/fs/cgroup/memory" in table or "cgroup2" in table
        assert set(running.python(WRITE_EVERYWHERE).splitlines()) - OWN == {"/var/lib/ullage"}
    finally:
        docker.node.run("umount", "/var/lib/written")
        docker("rm", "--force", "later")
    # what is sealed for the agent is as it was for the node
    assert docker.node.run("sh", "-c", "mkdir /var/lib/btrfs/try && rmdir /var/lib/btrfs/try && echo yes") == "yes"


def test_without_a_capability_just_the_documented_collectors_degrade(storage: Docker, spec: dict[str, Any]) -> None:
    documented = documented_losses()
    assert set(documented) == set(CAPABILITIES)
    assert set(CAPABILITIES) == set(spec["containers"][0]["securityContext"]["capabilities"]["add"])
    with agent(storage, spec) as whole:
        complete = settled(whole)
    for capability, collectors in documented.items():
        with agent(storage, without(spec, capability)) as made:
            series = settled(made)
        assert refused(series) - refused(complete) == {(name, "permission") for name in collectors}, capability
        assert states(series) == states(complete), capability
        assert losing(complete, series) == set(collectors), capability


def documented_losses() -> dict[str, set[str]]:
    """Return the collectors that degrade, by capability, as docs/capabilities.md has them."""
    found: dict[str, set[str]] = {}
    rows = re.findall(
        r"^\| `([A-Z_]+)` \| `(\w+)` \|.*`ullage_collector_errors_total",
        (ROOT / "docs/capabilities.md").read_text(),
        re.MULTILINE,
    )
    for capability, collector in rows:
        found.setdefault(capability, set()).add(collector)
    return found


def settled(made: Agent) -> Series:
    """Return the page once every collector has had two runs."""
    starts = dict(made.of("ullage_collector_last_success_timestamp_seconds", "collector"))
    wanted = {"filesystem", "writeamp", "pagecache"} & set(starts)
    end = time.monotonic() + WAIT
    while any(
        made.of("ullage_collector_last_success_timestamp_seconds", "collector")[name] == starts[name] for name in wanted
    ):
        assert time.monotonic() < end, made.log()
        time.sleep(0.2)
    return made.series()


def refused(series: Series) -> set[tuple[str, str]]:
    return {
        (dict(labels)["collector"], dict(labels)["reason"])
        for (name, labels), value in series.items()
        # what others mount on this machine meanwhile may be out of reach
        if name == "ullage_collector_errors_total"
        and value
        and dict(labels)["reason"] not in ("unreachable", "vanished")
    }


def states(series: Series) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    wanted = ("ullage_collector_up", "ullage_collector_supported")
    return {each: value for each, value in series.items() if each[0] in wanted}


def losing(complete: Series, series: Series) -> set[str]:
    """Return the collectors of which some series are not there any more."""
    prefixes = {
        "ullage_filesystem_": "filesystem",
        "ullage_filesystem_deleted_": "openfiles",
        "ullage_deleted_open_": "openfiles",
        "ullage_inotify_": "inotify",
        "ullage_container_inotify_": "inotify",
        "ullage_bind_mounts_": "inotify",
        "ullage_layers": "layers",
        "ullage_container_writable": "layers",
        "ullage_qgroup": "qgroup",
        "ullage_btrfs_": "qgroup",
        "ullage_container_written": "writeamp",
        "ullage_slab": "pagecache",
        "ullage_pod_": "pagecache",
    }

    def named(samples: Series) -> set[tuple[str, frozenset[tuple[str, str]]]]:
        return {
            (name, frozenset(each for each in labels if each[0] != "id"))
            for name, labels in samples
            if not ({"container": "agent"}.items() <= dict(labels).items())
        }

    lost = named(complete) - named(series)
    longest = (max(filter(name.startswith, prefixes), key=len, default="") for name, _ in lost)
    return {prefixes[prefix] for prefix in longest if prefix}


def test_minimal_has_no_rights_and_says_what_it_lacks(storage: Docker, amd64: None) -> None:  # noqa: ARG001
    minimal = pod_of(kustomized("overlays/minimal"))
    with agent(storage, minimal) as made:
        status = made.python("print(open('/proc/self/status').read())")
        assert re.findall(r"^Cap(?:Prm|Eff|Bnd):\s+(\w+)$", status, re.MULTILINE) == ["0" * 16] * 3
        series = settled(made)
        reasons = made.of("ullage_collector_supported", "reason")
        assert reasons["Docker's socket and its volumes are for root alone"] == 0
        assert {name for name, _ in refused(series)} == {
            *("filesystem", "inotify", "layers", "openfiles", "overlay", "pagecache", "qgroup", "writeamp")
        }
        assert reasons["container storage is for root alone, or with CAP_DAC_READ_SEARCH"] == 0
        assert made.of("ullage_qgroup_referenced_limit_bytes", "qgroup") == {"0/256": 100 * MIB}
        assert "/var/lib/btrfs" in made.of("ullage_filesystem_size_bytes", "mountpoint")
        assert set(made.python(WRITE_EVERYWHERE).splitlines()) - OWN == {"/var/lib/ullage"}
        # the way that capabilities would open past all mounts
        assert "denied" in made.python(
            "import os\ntry:\n os.listdir('/proc/1/root/')\n print('open')\nexcept PermissionError:\n print('denied')"
        )


def test_on_cgroup_v1_the_memory_controller_alone_is_enough(storage: Docker, amd64: None) -> None:  # noqa: ARG001
    if not Path("/sys/fs/cgroup/memory").is_dir():
        pytest.skip("this machine has cgroup v2 alone")
    unsealed = copy.deepcopy(pod_of(kustomized("overlays/cgroup-v1")))
    unsealed["containers"][0]["args"].remove("--path.seal")
    with agent(storage, unsealed) as made:
        until(made, "ullage_container_page_cache_bytes", "container", "of-user")
        assert not [each for each in made.python(WRITE_EVERYWHERE).splitlines() if each.startswith("/sys")]
