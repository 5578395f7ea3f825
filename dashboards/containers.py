"""Container storage by namespace, pod and container: page cache, quota, blocks, writes, open files."""

from __future__ import annotations

from collectors import pagecache, qgroup
from dashboards.layout import Dashboard, Row
from dashboards.panels import Place, Query, Table
from dashboards.promql import NAMESPACE, single

HERE = Place(NAMESPACE)
WHO = "namespace, pod, container, id"
NAME = "{{namespace}}/{{pod}} {{container}} {{id}}"

CACHE = Row(
    "Page cache",
    (
        HERE.stacked(
            "By namespace",
            "Page cache charged to containers, tmpfs not counted. Containers without Kubernetes have no namespace, nor "
            "has the sum of those too small for series of their own.",
            "bytes",
            Query("topk(10, sum by (namespace) (ullage_container_page_cache_bytes))", "{{namespace}}"),
        ),
        HERE.stacked(
            "By pod",
            "The ten pods with most; sandboxes included.",
            "bytes",
            Query("topk(10, ullage_pod_page_cache_bytes)", "{{namespace}}/{{pod}}"),
        ),
        HERE.watermark(pagecache.FILL, "Of the memory limit, by container", NAME),
        HERE.graph(
            "Read again soon after eviction, by container",
            "Pages of files: its limit is too small for what it reads.",
            "ops",
            Query(
                f'topk(10, sum by ({WHO}) (rate(ullage_container_refaults_total{{id!=""}}[$__rate_interval])))', NAME
            ),
        ),
        HERE.graph(
            "Not written yet, by container",
            "Dirty page cache and what is being written.",
            "bytes",
            Query(
                'topk(10, ullage_container_page_cache_dirty_bytes{id!=""}'
                ' + ullage_container_page_cache_writeback_bytes{id!=""})',
                NAME,
            ),
        ),
        HERE.graph(
            "tmpfs and shared memory, by container",
            "No reclaim drops it: it counts against the limit until the files are deleted.",
            "bytes",
            Query('topk(10, ullage_container_shmem_bytes{id!=""})', NAME),
        ),
        HERE.graph(
            "Stalled for I/O or memory, by pod",
            "Part of the time in which some of its tasks waited (PSI), where the kernel has it.",
            "percentunit",
            Query(
                'topk(10, rate(ullage_pod_pressure_seconds_total{kind="some"}[$__rate_interval]))',
                "{{namespace}}/{{pod}} {{resource}}",
            ),
        ),
        HERE.graph(
            "Dentries and inodes, by container",
            "Kernel memory that can be reclaimed (cgroup v2): many small files.",
            "bytes",
            Query('topk(10, ullage_container_slab_reclaimable_bytes{id!=""})', NAME),
        ),
        HERE.graph(
            "Processes killed for memory, by container",
            "Since boot, by the kernel's log; a container that is made anew has a new id, and begins at one.",
            "short",
            Query(f"topk(10, sum by ({WHO}) (ullage_container_oom_kills_total))", NAME),
        ),
        HERE.rows(
            "Containers now",
            "Those of the largest page cache.",
            Table(("page cache", "of it inactive", "mapped", "limit"), ("bytes",) * 4),
            *(
                Query(f"max by (instance, {WHO}) ({expression})")
                for expression in (
                    'topk(50, ullage_container_page_cache_bytes{id!=""})',
                    'ullage_container_page_cache_inactive_bytes{id!=""}',
                    'ullage_container_mapped_file_bytes{id!=""}',
                    "ullage_container_memory_limit_bytes",
                )
            ),
        ),
    ),
)

SPACE = Row(
    "Space",
    (
        HERE.graph(
            "Inodes of writable layers",
            "The ten containers with most, running or not.",
            "short",
            Query('topk(10, ullage_container_writable_files{id!=""})', NAME),
        ),
        HERE.graph(
            "Bytes of writable layers",
            "The ten containers with most, running or not.",
            "bytes",
            Query('topk(10, ullage_container_writable_bytes{id!=""})', NAME),
        ),
        HERE.watermark(qgroup.QGROUP_REFERENCED, "Btrfs qgroups: of the referenced limit", NAME),
        HERE.watermark(qgroup.QGROUP_EXCLUSIVE, "Btrfs qgroups: of the exclusive limit", NAME),
        HERE.graph(
            "Btrfs, what a container alone holds",
            "Exclusive bytes of its qgroup: what its removal would free.",
            "bytes",
            Query('topk(10, ullage_qgroup_exclusive_bytes{id!=""})', NAME),
        ),
        HERE.graph(
            "Thin pools, mapped to a container",
            "Shared blocks count for each that has them.",
            "bytes",
            Query('topk(10, ullage_thin_device_mapped_bytes{id!=""})', NAME),
        ),
    ),
)

WRITES = Row(
    "Writes",
    (
        HERE.graph(
            "Made dirty, by container",
            "Bytes that its processes wrote, less what was truncated before it reached a disk.",
            "Bps",
            Query("topk(10, rate(ullage_container_written_bytes_total[$__rate_interval]))", NAME),
        ),
        HERE.graph(
            "Written to ZFS, by container",
            "Of mounted datasets that are a container's.",
            "Bps",
            Query('topk(10, rate(ullage_zfs_dataset_written_bytes_total{id!=""}[$__rate_interval]))', NAME),
        ),
    ),
)

FILES = Row(
    "Open files and watches",
    (
        HERE.graph(
            "Deleted files held open",
            "Bytes that are free only when these containers close them; `host` is what runs in none.",
            "bytes",
            Query(f"topk(10, {single('ullage_deleted_open_bytes')})", NAME),
        ),
        HERE.graph(
            "inotify watches",
            "The ten containers with most; `host` is what runs in none.",
            "short",
            Query(f"topk(10, {single('ullage_container_inotify_watches')})", NAME),
        ),
        HERE.graph(
            "inotify instances",
            "The ten containers with most; `host` is what runs in none.",
            "short",
            Query(f"topk(10, {single('ullage_container_inotify_instances')})", NAME),
        ),
        HERE.graph(
            "Changes that nobody sees",
            "Watches where events cannot arrive, and single files that were replaced under a container.",
            "short",
            Query("topk(10, ullage_inotify_blind_watches > 0)", f"blind watches {NAME}"),
            Query("topk(10, ullage_bind_mounts_stale > 0)", f"replaced files {NAME}"),
        ),
    ),
)

DASHBOARD = Dashboard(
    uid="ullage-containers",
    title="Ullage / Container storage",
    description="Whose page cache, quota, blocks, writes, open files and watches they are.",
    selector=NAMESPACE,
    rows=(CACHE, SPACE, WRITES, FILES),
)
