"""Which filesystems hold space of a local disk, which are in memory, and which have changes that come from elsewhere.

By their types, as /proc/filesystems names them; an overlay is what its upper filesystem is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from collectors.readers import overlay
from collectors.readers.mountinfo import Mount, carrier

# a deleted file holds space of a disk there, and stat asks nobody far away; overlay is judged by its upper filesystem
DISKS = {
    *("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "jfs", "reiserfs", "nilfs2"),
    *("vfat", "exfat", "ntfs3", "hfsplus", "udf", "ufs"),
}
MEMORY = {"tmpfs", "ramfs", "devtmpfs", "hugetlbfs", "mqueue", "proc", "sysfs", "cgroup", "cgroup2", "tracefs"}
# changes made by another client, or behind the mount, reach no watch; inotify(7)
_REMOTE = (
    *("nfs", "cifs", "smb", "ceph", "9p", "virtiofs", "fuse", "afs"),
    *("lustre", "gpfs", "glusterfs", "ocfs2", "gfs2"),
)
_LOCAL_FUSE = {"fuse.fuse-overlayfs", "fuse.lxcfs", "fuseblk", "fusectl"}  # all changes come through the mount itself


class Mounted(NamedTuple):
    """The part of a mount that is kept; `upper` is an overlay's."""

    device: str
    fstype: str
    upper: str


def kept(mount: Mount) -> Mounted:
    """Return that part of a mount."""
    upper = overlay.parse_options(mount.super_options).upper if mount.fstype == "overlay" else ""
    return Mounted(mount.device, mount.fstype, upper)


def is_on_disk(mounted: Mounted, top: Mapping[str, Mount]) -> bool:
    """Return whether a mount's files take space of a local disk; an overlay's take it of its upper filesystem."""
    if mounted.fstype != "overlay":
        return mounted.fstype in DISKS
    below = carrier(top, mounted.upper) if mounted.upper.startswith("/") else None
    return below is not None and below.fstype in DISKS


def is_overlay_on_disk(mount: Mount, top: Mapping[str, Mount]) -> bool:
    """Return whether a look into an overlay of the host asks local disks alone, as far as its layers can be told."""
    layers = overlay.resolve(overlay.parse_options(mount.super_options), mount.mountpoint)
    below = [carrier(top, path) for path in (layers.upper, *layers.lowers, *layers.data_lowers) if path.startswith("/")]
    return layers.upper != "" and all(each is not None and each.fstype in DISKS for each in below)


def is_blind(fstype: str) -> bool:
    """Return whether a filesystem has changes of which inotify is not told."""
    return fstype.startswith(_REMOTE) and fstype not in _LOCAL_FUSE
