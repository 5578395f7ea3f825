"""The readers of Docker's volumes and of ZFS's events: what real ones gave, and what nobody should."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from collectors.readers import docker, zpool_events
from collectors.readers.docker import Container, Event, Options, Volume
from collectors.readers.zpool_events import Snapshot

CORPUS = Path(__file__).resolve().parents[1] / "fuzz" / "corpus"


def test_volumes_of_the_api_with_and_without_options() -> None:
    lines = (CORPUS / "docker/volumes.jsonl").read_text().splitlines()
    assert [docker.parse_volume(json.loads(line)) for line in lines] == [
        Volume("plain", "local", "/var/lib/docker/volumes/plain/_data"),
        Volume("tmp", "local", "/var/lib/docker/volumes/tmp/_data", Options("tmpfs", "tmpfs", "size=1m")),
    ]


def test_events_of_the_api() -> None:
    lines = (CORPUS / "docker/events.jsonl").read_text().splitlines()
    events = [docker.parse_event(json.loads(line)) for line in lines]
    assert [(event.action, event.name) for event in events if event] == [
        ("create", "vol1"),
        ("mount", "vol1"),
        ("create", "vv"),
        ("destroy", "vv"),
        ("create", "q1"),
        ("destroy", "q1"),
        ("unmount", "vol1"),
    ]
    assert events[0] == Event(1795473853356112003, "create", "vol1", "local")


def event(kind: str = "volume", action: str = "create", time: object = 5) -> object:
    return {"Type": kind, "Action": action, "Actor": {"ID": "v"}, "timeNano": time}


def test_podmans_remove_is_a_destroy() -> None:
    assert docker.parse_event(event(action="remove")) == Event(5, "destroy", "v")


@pytest.mark.parametrize("other", [event(kind="container"), event(action="prune"), event(action="exec_create: secret")])
def test_events_of_no_volume_are_none(other: object) -> None:
    assert docker.parse_event(other) is None


@pytest.mark.parametrize("damaged", [event(time=0), event(time=1 << 63), event(time="5"), {}, [], None, "x"])
def test_what_is_no_event_is_refused(damaged: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        docker.parse_event(damaged)


def test_a_running_container_names_its_volumes() -> None:
    text = (CORPUS / "docker/config.v2.json").read_bytes()
    container = docker.parse_container(text)
    assert container is not None
    assert sorted(container.volumes) == ["plain", "scratch", "shared"]
    config = json.loads(text)
    assert container[:2] == (config["ID"], config["State"]["Pid"])
    config["State"]["Running"] = False
    assert docker.parse_container(json.dumps(config).encode()) is None


def test_binds_of_the_host_are_no_volumes() -> None:
    text = b'{"ID": "c", "State": {"Running": true, "Pid": 7}, "MountPoints": {"/x": {"Type": "bind", "Name": "x"}}}'
    assert docker.parse_container(text) == Container("c", 7, ())


def test_a_quota_alone_needs_no_mount() -> None:
    options = docker.parse_options(b'{"MountType":"","MountOpts":"","MountDevice":"","Quota":{"Size":1048576}}')
    assert not options.is_mount
    assert docker.parse_options((CORPUS / "docker/opts.json").read_bytes()) == Options("none", "/srv/shared", "bind")


def test_a_data_root_is_an_absolute_path() -> None:
    assert docker.parse_daemon(b'{"data-root": "/data"}').root == "/data"
    assert docker.parse_daemon(b'{"data-root": "data"}').root == ""
    assert docker.parse_daemon(b"{}").root == ""


def test_what_daemons_say_of_their_storage() -> None:
    graph, snapshotter = (CORPUS / "docker/info.jsonl").read_bytes().splitlines()
    version = json.loads((CORPUS / "docker/version.jsonl").read_bytes())
    info = docker.parse_info(json.loads(graph), version)
    assert info[1:] == ("overlay2", "20.10.24+dfsg1", False, True, "1.6.20~ds1")
    assert docker.parse_info(json.loads(snapshotter), {})[1:] == ("overlayfs", "29.0.0", True, None, "")
    with pytest.raises(ValueError, match="no directory"):
        docker.parse_info(json.loads(graph) | {"DockerRootDir": ""}, version)
    with pytest.raises(ValueError, match="Expected"):
        docker.parse_info(json.loads(graph), {"Components": "none"})


def test_what_a_configuration_says_of_storage() -> None:
    text = b'{"storage-driver": "vfs", "storage-opts": ["size=1G"], "features": {"containerd-snapshotter": true}}'
    assert docker.parse_daemon(text) == docker.Daemon("", "vfs", ("size=1G",), is_containerd=True)
    assert docker.parse_daemon(b'{"storage-driver": 1, "storage-opts": {}, "features": []}') == docker.Daemon()
    assert docker.parse_daemon(b"{}") == docker.Daemon()


def test_snapshots_have_nanoseconds_and_one_event_for_each_dataset() -> None:
    text = (CORPUS / "zpool_events/snapshots.txt").read_bytes()
    second = 0x6B04C9AC * 1_000_000_000
    found = zpool_events.parse_snapshots(text)
    assert found[:3] == [
        Snapshot(second + 0x51740A3, "tank/r128k@s1"),
        Snapshot(second + 0x33581296, "tank@all"),
        Snapshot(second + 0x33951B96, "tank/r128k@all"),
    ]
    # the clone and the destroyed snapshot, which come after them, are none
    assert [each.name for each in found[3:]] == [
        *("tank/r16kz@all", "tank/r16k@all", "tank/vol1@all", "tank/ctr@all", "tank/ctr/c1@all"),
    ]
    assert found[1].dataset == "tank"


def test_failures_of_devices_are_no_snapshots() -> None:
    assert zpool_events.parse_snapshots((CORPUS / "zpool_events/io-failure.txt").read_bytes()) == []


def test_a_dataset_may_have_spaces_and_an_event_may_be_cut() -> None:
    text = (CORPUS / "zpool_events/snapshots.txt").read_bytes().replace(b"tank/r128k@s1", b"tank/my data@s 1")
    assert zpool_events.parse_snapshots(text)[0].dataset == "tank/my data"
    cut = text.partition(b"        time = ")[0]
    assert zpool_events.parse_snapshots(cut) == []
    assert zpool_events.parse_snapshots(b"") == []
