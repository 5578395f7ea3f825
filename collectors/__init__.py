"""One file per subject, and the table of them."""

from __future__ import annotations

from agent.collector import Collector
from collectors import (
    filesystem,
    inotify,
    kernellog,
    layers,
    openfiles,
    overlay,
    pagecache,
    qgroup,
    thinpool,
    volumes,
    writeamp,
    zfs,
)

ALL: tuple[Collector, ...] = (
    filesystem.COLLECTOR,
    inotify.COLLECTOR,
    kernellog.COLLECTOR,
    layers.COLLECTOR,
    openfiles.COLLECTOR,
    overlay.COLLECTOR,
    pagecache.COLLECTOR,
    qgroup.COLLECTOR,
    thinpool.COLLECTOR,
    volumes.COLLECTOR,
    writeamp.COLLECTOR,
    zfs.COLLECTOR,
)
