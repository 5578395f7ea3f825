"""One node, or a few: every subject, from filesystems to flash."""

from __future__ import annotations

from collectors import filesystem, inotify, qgroup, thinpool, writeamp
from dashboards.layout import Dashboard, Row
from dashboards.panels import Place, Query, Table
from dashboards.promql import FINDINGS, NODE

HERE = Place(NODE)
MOUNT = "{{instance}} {{mountpoint}}"

FILESYSTEMS = Row(
    "Filesystems",
    (
        HERE.watermark(filesystem.BYTES, "Bytes used", MOUNT),
        HERE.watermark(filesystem.INODES, "Inodes used", MOUNT),
        HERE.graph(
            "Bytes available",
            "What containers can still write; what is reserved for root is not among it.",
            "bytes",
            Query("bottomk(10, ullage_filesystem_available_bytes and ullage_filesystem_readonly == 0)", MOUNT),
        ),
        HERE.graph(
            "Inodes free",
            "Of filesystems that have a limit. On XFS they shrink as blocks fill.",
            "short",
            Query("bottomk(10, ullage_filesystem_files_free and ullage_filesystem_readonly == 0)", MOUNT),
        ),
        HERE.rows(
            "State of mounts",
            "1 where a mount does not answer (stuck), takes no writes, or was shut down; errors that ext4 has counted.",
            Table(("stuck", "read-only", "shut down", "errors"), ("short",) * 4),
            *(
                Query(f"max by (instance, mountpoint, device, fstype) ({name})")
                for name in (
                    "ullage_filesystem_stuck",
                    "ullage_filesystem_readonly",
                    "ullage_filesystem_shutdown",
                    "ullage_filesystem_errors",
                )
            ),
            span=16,
        ),
        HERE.rows(
            "What lies where",
            "Which mount carries the storage of runtimes, the kubelet and container logs.",
            Table(("is so",), ("short",)),
            Query("max by (instance, mountpoint, role) (ullage_filesystem_role)"),
            span=8,
        ),
    ),
)

MEMORY = Row(
    "Page cache and kernel memory",
    (
        HERE.stacked(
            "Page cache by slice",
            "Of top-level cgroups, tmpfs not counted. A page belongs to who read it first.",
            "bytes",
            Query("topk(10, ullage_slice_page_cache_bytes)", "{{instance}} {{slice}}"),
        ),
        HERE.graph(
            "Read again soon after eviction",
            "Pages of files: the sign that the cache is too small for what is in use.",
            "ops",
            Query("rate(ullage_reclaim_refaulted_file_pages_total[$__rate_interval])", "{{instance}}"),
        ),
        HERE.graph(
            "Reclaim",
            "Pages that were freed, by who did it, and allocations that had to reclaim for themselves.",
            "ops",
            Query("rate(ullage_reclaim_stolen_pages_total[$__rate_interval])", "{{instance}} freed by {{by}}"),
            Query(
                "sum by (instance) (rate(ullage_reclaim_allocation_stalls_total[$__rate_interval]))",
                "{{instance}} stalls",
            ),
        ),
        HERE.graph(
            "Dentries and inodes",
            "Kernel memory of their caches; needs root, as /proc/slabinfo does.",
            "bytes",
            Query("ullage_slab_bytes", "{{instance}} {{cache}}"),
        ),
        HERE.graph(
            "Dentries in memory",
            "All, those not in use, and those of files that do not exist.",
            "short",
            Query("ullage_dentries", "{{instance}} {{state}}"),
        ),
        HERE.graph(
            "Removed cgroups that still pin memory",
            "Mostly by page cache that they read first (cgroup v2).",
            "short",
            Query("ullage_cgroup_dying_descendants", "{{instance}} {{slice}}"),
        ),
    ),
)

COPY_ON_WRITE = Row(
    "Btrfs, thin pools and ZFS",
    (
        HERE.watermark(qgroup.QGROUP_REFERENCED, "Btrfs qgroups, referenced", "{{instance}} {{container}} {{path}}"),
        HERE.graph(
            "Btrfs, unallocated",
            "Space that belongs to no block group; without it metadata cannot grow, though df shows room.",
            "bytes",
            Query("ullage_btrfs_unallocated_bytes", "{{instance}} {{uuid}}"),
        ),
        HERE.watermark(thinpool.THIN_METADATA, "Metadata of thin pools", "{{instance}} {{pool}}"),
        HERE.watermark(thinpool.THIN_DATA, "Data of thin pools", "{{instance}} {{pool}}"),
        HERE.graph(
            "ARC of ZFS",
            "Its size, which is in no container's memory, and what it aims at.",
            "bytes",
            Query("ullage_zfs_arc_size_bytes", "{{instance}} size"),
            Query("ullage_zfs_arc_target_bytes", "{{instance}} target"),
        ),
        HERE.rows(
            "State of ZFS pools",
            "Anything but ONLINE needs somebody.",
            Table(("is so",), ("short",)),
            Query("max by (instance, zpool, state) (ullage_zfs_pool_state == 1)"),
            span=12,
        ),
    ),
)

WRITES = Row(
    "Writes and wear",
    (
        HERE.graph(
            "Written to disks",
            "Physical disks only: nothing counts twice.",
            "Bps",
            Query("topk(10, rate(ullage_device_written_bytes_total[$__rate_interval]))", "{{instance}} {{device}}"),
        ),
        HERE.graph(
            "Page cache made dirty and written back",
            "What applications write and what reaches filesystems; the gap is what is lost if the power fails.",
            "Bps",
            Query("rate(ullage_page_cache_dirtied_bytes_total[$__rate_interval])", "{{instance}} made dirty"),
            Query("rate(ullage_page_cache_written_bytes_total[$__rate_interval])", "{{instance}} written back"),
        ),
        HERE.watermark(writeamp.WEAR, "Wear of drives", "{{instance}} {{device}}"),
        HERE.graph(
            "Docker's volumes",
            "By driver and the filesystem that they lie on.",
            "short",
            Query("ullage_volumes", "{{instance}} {{driver}} {{filesystem}}"),
        ),
    ),
)

KERNEL = Row(
    "What the kernel says",
    (
        HERE.graph(
            "Errors of filesystems and drives",
            "Lines of the kernel's log within five minutes, by device.",
            "short",
            Query(
                'topk(10, increase(ullage_kernel_events_total{subsystem!="memory"}[5m]))',
                "{{instance}} {{device}} {{subsystem}} {{event}}",
            ),
        ),
        HERE.graph(
            "Processes killed for memory, dropped caches",
            "Lines of the kernel's log within five minutes.",
            "short",
            Query('increase(ullage_kernel_events_total{subsystem="memory"}[5m])', "{{instance}} {{event}}"),
        ),
        HERE.rows(
            "Said since boot",
            "How often the kernel said what of which device, and when last.",
            Table(("times", "last"), ("short", "dateTimeFromNow")),
            Query("max by (instance, subsystem, event, device) (ullage_kernel_events_total)"),
            Query("max by (instance, subsystem, event, device) (ullage_kernel_event_last_timestamp_seconds * 1000)"),
            span=16,
        ),
        HERE.graph(
            "Lines that tell nothing",
            "Written by processes into the kernel's log, and overwritten before they were read.",
            "short",
            Query("increase(ullage_kernel_log_ignored_total[5m])", "{{instance}} not the kernel's"),
            Query("increase(ullage_kernel_log_overruns_total[5m])", "{{instance}} overwritten"),
            span=8,
        ),
    ),
)

FILES = Row(
    "Open files and watches",
    (
        HERE.watermark(inotify.INSTANCES_USED, "inotify instances, by user", "{{instance}} {{userns}} {{uid}}"),
        HERE.watermark(inotify.WATCHES_USED, "inotify watches, by user", "{{instance}} {{userns}} {{uid}}"),
        HERE.graph(
            "Deleted files held open, by filesystem",
            "Space that is used, and that no directory shows; absent while a process cannot be looked into.",
            "bytes",
            Query("topk(10, ullage_filesystem_deleted_open_bytes)", MOUNT),
        ),
        HERE.graph(
            "File handles",
            "Open files of the whole node, of those that it may have.",
            "percentunit",
            Query("ullage_file_handles / ullage_file_handles_limit", "{{instance}}"),
        ),
    ),
)

JUDGEMENT = Row(
    "Levels and findings",
    (
        HERE.rows(
            "Findings",
            "Hazards that hold now. The agent's status page has the explanation and remedy of each case.",
            Table(
                ("holds",),
                ("short",),
                links={"finding": ("What it is, and its remedy", FINDINGS + "#${__value.raw}")},
            ),
            Query("max by (instance, severity, finding, target) (ullage_finding)"),
            span=12,
        ),
        HERE.rows(
            "Levels over clear",
            "By the agent's own latches: 1 is a watermark's first tier.",
            Table(("level",), ("short",)),
            Query("max by (instance, watermark, target) (ullage_watermark_level > 0)"),
            span=12,
        ),
        HERE.states(
            "Levels over time",
            "The highest level of each watermark; 0 is clear.",
            Query("max by (instance, watermark) (ullage_watermark_level)", "{{instance}} {{watermark}}"),
        ),
    ),
)

DASHBOARD = Dashboard(
    uid="ullage-node",
    title="Ullage / Node",
    description="All that is known of a node's container storage.",
    selector=NODE,
    rows=(FILESYSTEMS, MEMORY, COPY_ON_WRITE, WRITES, FILES, KERNEL, JUDGEMENT),
)
