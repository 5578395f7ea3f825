"""What is wrong with stores: their filesystem, their driver, what lies beside them, Docker's options for them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator

from agent.finding import Finding, Found
from agent.host import Host
from agent.metric import label
from collectors import drivers
from collectors.dockerinfo import DAEMON_JSON, MOVE_TO_OVERLAY2
from collectors.drivers import Residue, Store
from collectors.readers import storage_opts
from collectors.readers.docker import Daemon
from collectors.readers.mountinfo import Mount

COPYING_DRIVERS = ("vfs", "native")  # each layer is a whole copy
PLAIN_DRIVERS = ("overlay2", "overlay", "vfs", "aufs", "fuse-overlayfs")  # whose layers are mere directories
NAMES = {"docker": "Docker", drivers.STORAGE: "CRI-O or Podman"}
MIB = 1 << 20

NO_DTYPE = Finding(
    "overlay-no-dtype",
    "critical",
    "The store {store} ({driver}) lies on {target} ({fstype}), which keeps no types of directory entries: files that a "
    "container has removed are still listed and cannot be opened. Docker since 23.0 does not start on it.",
    "Stop the runtime. For ext4: umount {point}; tune2fs -O filetype {device}; e2fsck -fy {device}; mount {device} "
    "{point}   # e2fsck ends with 1. An XFS gets them only when it is made anew: save what is on it, then umount "
    "{point}; mkfs.xfs -f -n ftype=1 {device}; mount {device} {point}",
)
COPIES = Finding(
    "vfs-driver-in-use",
    "warning",
    "{runtime} uses the storage driver {driver} in {target}: each layer, and each container, is a whole copy of what "
    "it stands on, so that ten containers of one image take ten times its bytes and inodes.",
    f"For Docker: {MOVE_TO_OVERLAY2}. For containerd: use the snapshotter overlayfs. For CRI-O and Podman: set "
    'driver = "overlay" in /etc/containers/storage.conf, and pull the images anew.',
)
RESIDUE = Finding(
    "stale-driver-residue",
    "info",
    "{target} holds {layers} layers of Docker's storage driver {driver}, {size} MiB by Docker's own count, while "
    "Docker uses {live}: nobody uses them, and no prune removes them.",
    "Make sure that docker info --format '{{{{.Driver}}}}' says {live}. {remedy}",
)
REFUSED = Finding(
    "daemon-options-unknown",
    "warning",
    "storage-opts in {path} has {option}: {problem}. Docker does not start with it, the next time that it is started.",
    "Take {option} out of storage-opts in {path}; systemctl restart docker then succeeds.",
)
FINDINGS = (NO_DTYPE, COPIES, RESIDUE, REFUSED)


def no_dtype(store: Store, mount: Mount, shown: str) -> Found:
    """Return the finding for a store whose filesystem, shown at that mount point, keeps no types."""
    return NO_DTYPE(
        label(shown),
        store=label(store.path),
        driver=label(store.driver),
        fstype=label(mount.fstype),
        device=shlex.quote(label(mount.source)),
        point=shlex.quote(label(shown)),
    )


def copies(host: Host, found: Iterable[Store]) -> Iterator[Found]:
    """Find stores whose driver copies each layer."""
    for store in found:
        if store.driver in COPYING_DRIVERS and drivers.has_layers(host, store):
            yield COPIES(label(store.path), runtime=NAMES.get(store.runtime, store.runtime), driver=store.driver)


def residue(store: Store, residue: Residue) -> Found:
    """Return the finding for what is left of another driver than the one in use."""
    image, data = f"{residue.root}/image/{residue.driver}", f"{residue.root}/{residue.driver}"
    if residue.driver in PLAIN_DRIVERS:
        remedy = f"Then: rm -r {shlex.quote(label(image))} {shlex.quote(label(data))}"
    else:
        remedy = (
            f"Then start Docker once with --storage-driver {label(residue.driver)}, if it still has it: "
            "docker system prune --all"
        )
    return RESIDUE(
        label(data),
        layers=residue.layers,
        driver=label(residue.driver),
        size=f"{residue.size / MIB:.1f}",
        live=label(store.driver),
        remedy=remedy,
    )


def refused(daemon: Daemon, found: Iterable[Store]) -> Iterator[Found]:
    """Find options that stop Docker. Those of a store of containerd's are nobody's."""
    told = next((store for store in found if store.runtime == "docker" and store.is_told), None)
    is_containerd = told is not None and drivers.SNAPSHOTTER in told.path
    if is_containerd or daemon.is_containerd:
        return
    driver = daemon.driver or (told.driver if told is not None else "")
    major = storage_opts.parse_major(told.version) if told is not None else None
    for refused in storage_opts.refused(daemon.options, driver, major):
        yield REFUSED(
            label(f"{DAEMON_JSON} {refused.name}"),
            path=DAEMON_JSON,
            option=label(refused.name),
            problem=refused.problem,
        )
