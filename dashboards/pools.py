"""Thin pools and copy-on-write filesystems: device mapper, btrfs and ZFS."""

from __future__ import annotations

from collectors import qgroup, thinpool
from dashboards.layout import Dashboard, Row
from dashboards.panels import Place, Query, Table
from dashboards.promql import NODE

HERE = Place(NODE)
POOL, BTRFS, DATASET = "{{instance}} {{pool}}", "{{instance}} {{uuid}}", "{{instance}} {{dataset}}"

THIN = Row(
    "Thin pools of device mapper",
    (
        HERE.watermark(thinpool.THIN_METADATA, "Metadata", POOL),
        HERE.watermark(thinpool.THIN_DATA, "Data", POOL),
        HERE.rows(
            "Pools",
            "Sizes, the metadata that thin_metadata_size recommends, and where LVM extends the pool (1 is never).",
            Table(
                ("data", "metadata", "recommended", "extended at", "loop-backed", "needs check"),
                ("bytes", "bytes", "bytes", "percentunit", "short", "short"),
            ),
            *(
                Query(f"max by (instance, pool) ({name})")
                for name in (
                    "ullage_thin_pool_data_size_bytes",
                    "ullage_thin_pool_metadata_size_bytes",
                    "ullage_thin_pool_metadata_recommended_bytes",
                    "ullage_thin_pool_autoextend_threshold_ratio",
                    "ullage_thin_pool_loop_backed",
                    "ullage_thin_pool_needs_check",
                )
            ),
        ),
        HERE.states(
            "Not in order",
            "1 while a pool takes no writes, needs a check, is suspended, or does not answer.",
            Query('ullage_thin_pool_mode{mode!="rw"}', "{{instance}} {{pool}} {{mode}}"),
            Query("ullage_thin_pool_needs_check", "{{instance}} {{pool}} needs check"),
            Query("ullage_thin_pool_suspended", "{{instance}} {{pool}} suspended"),
            Query("ullage_thin_pool_stuck", "{{instance}} {{pool}} stuck"),
        ),
        HERE.graph(
            "Mapped to thin devices",
            "The ten largest; shared blocks count for each.",
            "bytes",
            Query("topk(10, ullage_thin_device_mapped_bytes)", "{{instance}} {{name}} {{container}}"),
        ),
        HERE.graph(
            "Requests in flight",
            "To the pool and its volumes, to its data and to its metadata. Many that do not end are a stall.",
            "short",
            Query("ullage_thin_pool_in_flight", "{{instance}} {{pool}} {{part}}"),
        ),
    ),
)

TREES = Row(
    "Btrfs",
    (
        HERE.watermark(qgroup.QGROUP_REFERENCED, "Qgroups: of the referenced limit", "{{instance}} {{path}}"),
        HERE.watermark(qgroup.QGROUP_EXCLUSIVE, "Qgroups: of the exclusive limit", "{{instance}} {{path}}"),
        HERE.graph(
            "Used of what is allocated",
            "By type of block group. Metadata near 100 % with nothing unallocated is ENOSPC, whatever df shows.",
            "percentunit",
            Query("ullage_btrfs_used_bytes / (ullage_btrfs_allocated_bytes > 0)", "{{instance}} {{uuid}} {{type}}"),
        ),
        HERE.graph(
            "Unallocated",
            "Bytes of the writable devices that belong to no block group.",
            "bytes",
            Query("ullage_btrfs_unallocated_bytes", BTRFS),
        ),
        HERE.rows(
            "Quota",
            "Whether it is on, and whether its numbers can be relied on.",
            Table(("enabled", "inconsistent", "rescan running"), ("short",) * 3),
            *(
                Query(f"max by (instance, uuid) ({name})")
                for name in (
                    "ullage_qgroups_enabled",
                    "ullage_qgroups_inconsistent",
                    "ullage_qgroups_rescan_running",
                )
            ),
            span=12,
        ),
        HERE.graph(
            "Qgroups whose subvolume is gone",
            "Left over from containers and snapshots that were removed; they cost time at each commit.",
            "short",
            Query("sum by (instance, uuid) (ullage_qgroup_stale or 0 * ullage_qgroups_enabled)", BTRFS),
        ),
        HERE.graph(
            "Time spent in commits",
            "Part of the time; many qgroups and snapshots make it grow.",
            "percentunit",
            Query("rate(ullage_btrfs_commit_seconds_total[$__rate_interval])", BTRFS),
        ),
        HERE.graph(
            "Device errors",
            "Since a device was added or its counters were reset.",
            "short",
            Query("ullage_btrfs_device_errors_total", "{{instance}} {{uuid}} {{devid}} {{error}}"),
        ),
    ),
)

ZFS = Row(
    "ZFS",
    (
        HERE.states(
            "Pools that are not ONLINE",
            "1 while a pool is in another state; the node's dashboard says which.",
            Query(
                'max by (instance, zpool) (ullage_zfs_pool_state{state!="ONLINE"} or 0 * ullage_zfs_pool_state)',
                "{{instance}} {{zpool}}",
            ),
        ),
        HERE.graph(
            "Used of quota",
            "By dataset and its descendants, where there is a quota.",
            "percentunit",
            Query("topk(10, ullage_zfs_dataset_used_bytes / (ullage_zfs_dataset_quota_bytes > 0))", DATASET),
        ),
        HERE.graph(
            "Held by snapshots",
            "Space that is free when all snapshots of a dataset are gone.",
            "bytes",
            Query('topk(10, ullage_zfs_dataset_snapshot_used_bytes{dataset!="other"})', DATASET),
        ),
        HERE.graph(
            "Written by dataset",
            "The ten that are written most.",
            "Bps",
            Query(
                'topk(10, rate(ullage_zfs_dataset_written_bytes_total{dataset!="other"}[$__rate_interval]))', DATASET
            ),
        ),
        HERE.graph(
            "Unlinked, but not freed",
            "Files that are open, or in the queue.",
            "short",
            Query('topk(10, ullage_zfs_dataset_unlinked_backlog{dataset!="other"})', DATASET),
        ),
        HERE.graph(
            "Transaction groups",
            "Part of the time by phase; sync near 1 is a pool that cannot write faster.",
            "percentunit",
            Query("rate(ullage_zfs_txg_seconds_total[$__rate_interval])", "{{instance}} {{zpool}} {{phase}}"),
        ),
        HERE.graph(
            "ARC",
            "Its size and target, and the part of reads that it answers.",
            "bytes",
            Query("ullage_zfs_arc_size_bytes", "{{instance}} size"),
            Query("ullage_zfs_arc_target_bytes", "{{instance}} target"),
            Query("ullage_zfs_arc_max_bytes", "{{instance}} most"),
        ),
    ),
)

DASHBOARD = Dashboard(
    uid="ullage-pools",
    title="Ullage / Thin pools and copy-on-write",
    description="Device mapper's thin pools, btrfs and ZFS: what fills up behind df's back.",
    selector=NODE,
    rows=(THIN, TREES, ZFS),
)
