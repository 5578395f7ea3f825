"""What is fuzzed: one target per reader, which gives one input to everything that the reader offers.

So is what reads the files that people give to `ullage lint-storage`. A target passes over the errors that a function
documents; anything else that it raises is a bug. It may not depend on what it was called with before: then an input
alone would not repeat what it did.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import suppress

from agent import manifests, storagelint
from agent.errors import ConfigError
from collectors.readers import (
    ata,
    blockstat,
    bolt,
    btrfs,
    cgroup,
    containerd,
    containers_storage,
    dm,
    docker,
    docker_layers,
    kernel_events,
    kmsg,
    mountinfo,
    nvme,
    overlay,
    procfs,
    slabinfo,
    storage_opts,
    zfs,
    zpool_events,
)

Target = Callable[[bytes], None]
U64 = 1 << 64


def fuzz_ata(raw: bytes) -> None:
    ata.is_asleep(raw)
    data = ata.data_of(raw)
    for page in (raw, data or b""):
        model = ata.parse_model(page)
        attributes = ata.parse_attributes(page) or {}
        for name in (model, "INTEL SSDSC2KB480G8", "CT1000MX500SSD1"):
            ata.written(name, attributes)
        ata.named(dict.fromkeys(words_of(page), len(page)))
    for request in (ata.identify_request, ata.smart_request, ata.power_request):
        request()


def fuzz_blockstat(raw: bytes) -> None:
    expect_u64([blockstat.parse_sectors_written(raw) or 0, blockstat.parse_xfs_written(raw) or 0])
    expect_u64([*blockstat.parse_lines(raw).values(), blockstat.parse_io(raw)])


def fuzz_bolt(raw: bytes) -> None:
    with suppress(ValueError):
        assert bolt.newest_transaction(raw) < U64
    with suppress(ValueError):
        for snapshot in bolt.parse_snapshots(raw):
            expect_u64([snapshot.directory, snapshot.size or 0, snapshot.inodes or 0])
            assert snapshot.key.endswith(snapshot.name)
    with suppress(ValueError):
        bolt.parse_build_snapshots(raw)


def fuzz_nvme(raw: bytes) -> None:
    nvme.log_request(raw[0] if raw else nvme.SMART)
    for page in (raw, nvme.data_of(raw)):
        smart = nvme.parse_smart(page)
        if smart is not None:
            expect_finite([smart.host_written, smart.media_errors, smart.unsafe_shutdowns])
        expect_finite(number for number in (nvme.parse_ocp(page), *nvme.parse_intel(page)) if number is not None)


def fuzz_zfs(raw: bytes) -> None:
    objset = zfs.parse_objset(raw)
    if objset is not None:
        expect_u64(number for number in objset[1:] if number is not None)
    for word in zfs.parse_kstat(raw).values():
        zfs.number(word)
    zfs.parse_leaves(raw)
    for txg in zfs.parse_txgs(raw):
        expect_u64(txg)
    for dataset in zfs.parse_datasets(raw).values():
        expect_u64(size for size in dataset if isinstance(size, int))
    for snapshot in zfs.parse_snapshots(raw):
        expect_u64([snapshot.created, snapshot.holds])
    zfs.release(zfs.parse_version(raw) or "")


def fuzz_btrfs(raw: bytes) -> None:
    expect_u64(btrfs.parse_table(raw).values())
    for name in words_of(raw):
        btrfs.parse_qgroup(name)
    links, following = btrfs.parse_links(raw)
    if following is not None:
        btrfs.links_request(following)
    quota = btrfs.parse_quota(raw)
    expect_u64([number for usage in quota.usage.values() for number in usage])
    if quota.following is not None:
        btrfs.quota_request(*quota.following)
    with suppress(ValueError):
        btrfs.allocatable([btrfs.parse_device(raw)], btrfs.parse_directory(raw).decode("utf-8", "replace"))
    with suppress(ValueError):
        btrfs.parse_rescan(raw)
    btrfs.device_request(len(links))
    inside = btrfs.parse_directory(raw)
    places = [(link.parent, link.directory) for link in links]
    for place in places:
        btrfs.directory_request(*place)
    btrfs.subvolume_paths(links, {})
    btrfs.subvolume_paths(links, dict.fromkeys(places[::2], inside))


def fuzz_cgroup(raw: bytes) -> None:
    cgroup.parse_membership(raw)
    for keys in (cgroup.KEYS_V1, cgroup.KEYS_V2):
        parse = cgroup.stat_parser(keys)
        for text in raw.split(b"\0"):  # a parser has a memory: files one after the other
            row = parse(text)
            assert len(row) == len(keys)
            expect_finite(number for number in row if number is not None)
    with suppress(ValueError):
        expect_u64([cgroup.parse_limit(raw) or 0])
    expect_u64(cgroup.parse_pressure(raw).values())
    expect_u64(cgroup.parse_numbers(raw).values())


def fuzz_containerd(raw: bytes) -> None:
    with suppress(ValueError):
        assert all(path[:1] in ("", "/") for path in containerd.parse_config(raw))


def fuzz_containers_storage(raw: bytes) -> None:
    with suppress(ValueError):
        expect_u64(layer.size or 0 for layer in containers_storage.parse_layers(raw))
    with suppress(ValueError):
        containers_storage.parse_images(raw)
    with suppress(ValueError):
        containers_storage.parse_containers(raw)
    with suppress(ValueError):
        config = containers_storage.parse_config(raw)
        assert all(path[:1] in ("", "/") for path in (config.graph_root, config.run_root, *config.stores))


def fuzz_dm(raw: bytes) -> None:
    dm.flags_of(raw)
    for device in dm.parse_devices(raw):
        dm.split_lvm_name(device.name)
        with suppress(ValueError):
            dm.request(device.name)
    for target in dm.parse_targets(raw):
        expect_u64([target.sectors])
        fuzz_dm_line(target.text)
    for line in raw.decode("utf-8", "surrogateescape").split("\n"):
        fuzz_dm_line(line)
        dm.split_lvm_name(line)
        with suppress(ValueError):
            dm.request(line)
    dm.autoextend(dm.parse_lvm_config(raw))


def fuzz_dm_line(line: str) -> None:
    status = dm.parse_pool_status(line)
    if status is not None and status.data_total is not None:
        dm.recommended_metadata_bytes(status.data_total, 1)
    dm.parse_pool_table(line)
    dm.parse_thin_status(line)
    dm.parse_thin_table(line)


def fuzz_docker(raw: bytes) -> None:
    with suppress(ValueError):
        root = docker.parse_daemon(raw).root
        assert not root or root.startswith("/")
    with suppress(ValueError):
        assert docker.parse_options(raw).is_mount in (True, False)
    with suppress(ValueError):
        container = docker.parse_container(raw)
        assert container is None or container.pid > 0
    for line in raw.split(b"\n"):
        with suppress(ValueError, RecursionError):  # the API's client reads the JSON
            fuzz_docker_answer(json.loads(line))


def fuzz_docker_answer(answer: object) -> None:
    with suppress(ValueError):
        docker.parse_volume(answer)
    with suppress(ValueError):
        assert docker.parse_info(answer, {}).root.startswith("/")
    with suppress(ValueError):
        assert docker.parse_info({"DockerRootDir": "/", "Driver": "vfs"}, answer).root == "/"
    with suppress(ValueError):
        event = docker.parse_event(answer)
        assert event is None or 0 < event.time < U64


def fuzz_docker_layers(raw: bytes) -> None:
    assert all(name.isalnum() or not name for name in docker_layers.parse_lower(raw))
    with suppress(ValueError):
        link = docker_layers.parse_link(raw)
        assert link.isalnum() or not link
    for word in words_of(raw):
        assert "/" not in (docker_layers.parse_target(word) or "")
    with suppress(ValueError):
        docker_layers.parse_top_layer(raw)


def fuzz_kernel_events(raw: bytes) -> None:
    for message in raw.split(b"\n"):
        found = kernel_events.classify(message)
        if isinstance(found, kernel_events.Kill):
            expect_u64([found.pid])
        if isinstance(found, kernel_events.Kill | kernel_events.Choice):
            found = found.event
        if isinstance(found, kernel_events.Event):
            assert found.subsystem in {*kernel_events.RULES, "memory"}
            assert len(found.device) <= 256
        elif found is not None:
            assert found.cgroup.startswith(b"/")
        kernel_events.dropped_by(message)


def fuzz_kmsg(raw: bytes) -> None:
    records, malformed = kmsg.parse(raw)
    assert len(records) + malformed <= raw.count(b"\n") + 1
    for record in records:
        expect_u64([record.facility, record.sequence, record.microseconds])
        assert b"\n" not in record.message


def fuzz_mountinfo(raw: bytes) -> None:
    mounts, malformed = mountinfo.parse(raw)
    assert len(mounts) + malformed == len([line for line in raw.split(b"\n") if line])
    assert [mount for mount in mountinfo.parse_lines(raw) if mount is not None] == list(mounts)
    seen = mountinfo.visible(mounts)
    for mount in seen:
        assert "\0" not in mount.mountpoint + mount.root + mount.source  # no function of os would take it
        mountinfo.carrying(seen, mount.mountpoint + "/x")
        mountinfo.carrier({mount.mountpoint: mount}, mount.mountpoint)
        mountinfo.unescape(mount.source)
    top = {mount.mountpoint: mount for mount in seen}
    for mount in seen[:20]:
        found = mountinfo.shown(seen, top, mount.root)
        assert found is None or found[1].startswith(found[0].mountpoint)
    assert len(mountinfo.one_per_device(mounts)) == len(mountinfo.by_device(mounts))


def fuzz_overlay(raw: bytes) -> None:
    for line in words_of(raw):
        layers = overlay.parse_options(line.split(","))
        assert all((*layers.lowers, *layers.data_lowers))
        for point in ("/var/lib/docker/overlay2/ID/merged", layers.upper, "/", ""):
            whole = overlay.resolve(layers, point)
            assert len(whole.lowers) == len(layers.lowers)
        parameters = {name: number for name in overlay.OPTIONS if (number := overlay.parse_parameter(raw)) is not None}
        expect_u64(parameters.values())
        for known in ({}, parameters):
            assert set(overlay.effective(layers.told, known)) == set(overlay.OPTIONS)


def fuzz_procfs(raw: bytes) -> None:
    watches = procfs.Watches({procfs.watched_inode("254:0", 15): "/"})
    for size in (len(raw) or 1, 7):
        watches = procfs.Watches({procfs.watched_inode("254:0", 15): "/"})
        for start in range(0, len(raw), size):
            watches.feed(raw[start : start + size])
        assert sum(watches.by_device.values()) <= raw.count(b"inotify")
    expect_finite(watches.by_device.values())
    info = procfs.parse_fdinfo(raw)
    expect_u64([info.mount if info is not None else 0, procfs.parse_user(raw) or 0])
    procfs.has_memory(raw)
    for word in words_of(raw):
        assert not procfs.is_deleted_file(word) or word.startswith("/")
        assert (procfs.parse_namespace(word) or "0").isdigit()


def fuzz_storage_opts(raw: bytes) -> None:
    options = words_of(raw)
    for driver in ("", "overlay2", "vfs", options[0]):
        for major in (storage_opts.parse_major(options[0]), 20, None):
            found = storage_opts.refused(options, driver, major)
            assert len(found) <= len(options)


def fuzz_slabinfo(raw: bytes) -> None:
    expect_finite(slabinfo.parse(raw, 4096).values())


def fuzz_storagelint(raw: bytes) -> None:
    text = raw.decode("utf-8", "replace")
    with suppress(ConfigError):
        for node in manifests.parse("x", text):
            assert node.line > 0
    for name in ("x.yaml", "daemon.json"):
        report = storagelint.judge([name], lambda _: text)
        assert all(line.isprintable() for line in storagelint.show(report))
        assert report.exit_code in (0, 1, 2, 3)


def fuzz_zpool_events(raw: bytes) -> None:
    for snapshot in zpool_events.parse_snapshots(raw):
        assert snapshot.time >= 0
        assert snapshot.name.startswith(snapshot.dataset + "@")


TARGETS: dict[str, Target] = {
    "ata": fuzz_ata,
    "blockstat": fuzz_blockstat,
    "bolt": fuzz_bolt,
    "btrfs": fuzz_btrfs,
    "cgroup": fuzz_cgroup,
    "containerd": fuzz_containerd,
    "containers_storage": fuzz_containers_storage,
    "dm": fuzz_dm,
    "docker": fuzz_docker,
    "docker_layers": fuzz_docker_layers,
    "kernel_events": fuzz_kernel_events,
    "kmsg": fuzz_kmsg,
    "mountinfo": fuzz_mountinfo,
    "nvme": fuzz_nvme,
    "overlay": fuzz_overlay,
    "procfs": fuzz_procfs,
    "slabinfo": fuzz_slabinfo,
    "storage_opts": fuzz_storage_opts,
    "storagelint": fuzz_storagelint,
    "zfs": fuzz_zfs,
    "zpool_events": fuzz_zpool_events,
}


def words_of(raw: bytes) -> list[str]:
    return raw.decode("utf-8", "surrogateescape").split("\n")


def expect_u64(numbers: Iterable[int]) -> None:
    assert all(0 <= number < 10 * U64 for number in numbers)  # 20 digits


def expect_finite(numbers: Iterable[int]) -> None:
    for number in numbers:
        float(number)  # as a page renders it
