"""Layers and drivers: what images and containers hold, what belongs to nobody, and how overlay is mounted."""

from __future__ import annotations

from dashboards.layout import Dashboard, Row
from dashboards.panels import Place, Query, Table
from dashboards.promql import NODE

HERE = Place(NODE)
STORE = "{{instance}} {{store}} {{state}}"
WHO = "{{instance}} {{namespace}}/{{pod}} {{container}} {{id}}"

STORES = Row(
    "Stores",
    (
        HERE.stacked(
            "Inodes by what they belong to",
            "Of layers in all stores. Orphans belong to no image and no container, and no prune removes them.",
            "short",
            Query("sum by (instance, store, state) (ullage_layers_files)", STORE),
        ),
        HERE.stacked(
            "Bytes by what they belong to",
            "An image's as its runtime recorded them, of all others what is allocated on disk.",
            "bytes",
            Query("sum by (instance, store, state) (ullage_layers_bytes)", STORE),
        ),
        HERE.graph(
            "Layers by what they belong to",
            "In all storage directories.",
            "short",
            Query("sum by (instance, store, state) (ullage_layers)", STORE),
        ),
        HERE.graph(
            "Links that are not live",
            "Through which layers are mounted: what leads nowhere may keep a container from its start.",
            "short",
            Query('ullage_layers_links{state!="live"}', STORE),
        ),
        HERE.graph(
            "Age of counts",
            "For how long the oldest count of inodes may have been wrong, and since when the oldest bytes hold.",
            "s",
            Query("ullage_layers_count_age_seconds", "{{instance}} {{store}} inodes"),
            Query("ullage_layers_bytes_age_seconds", "{{instance}} {{store}} bytes"),
        ),
        HERE.graph(
            "Counted so far",
            "Of the layers that shall be; counting is held to a part of one core.",
            "percentunit",
            Query("ullage_layers_count_progress_ratio", "{{instance}} {{store}}"),
        ),
        HERE.rows(
            "Drivers",
            "Whose store it is, of what driver, on what filesystem.",
            Table(("is so",), ("short",)),
            Query(
                "max by (instance, runtime, driver, store, backing_filesystem, version) (ullage_storage_driver_info)"
            ),
            span=16,
        ),
        HERE.rows(
            "Types of directory entries",
            "Whether the filesystem of a store keeps them; overlayfs needs them.",
            Table(("kept",), ("short",)),
            Query("max by (instance, mountpoint) (ullage_filesystem_d_type_supported)"),
            span=8,
        ),
    ),
)

CONTAINERS = Row(
    "Containers",
    (
        HERE.graph(
            "Inodes of writable layers",
            "The ten containers with most, running or not.",
            "short",
            Query('topk(10, ullage_container_writable_files{id!=""})', WHO),
        ),
        HERE.graph(
            "Bytes of writable layers",
            "The ten containers with most, running or not.",
            "bytes",
            Query('topk(10, ullage_container_writable_bytes{id!=""})', WHO),
        ),
        HERE.graph(
            "Layers below the writable one",
            "The ten deepest containers.",
            "short",
            Query("topk(10, ullage_container_layers)", WHO),
        ),
        HERE.graph(
            "Of the page for mount data",
            "What the overlay mounts of containers took of the page that their options must fit in.",
            "percentunit",
            Query("topk(10, ullage_container_overlay_mount_data_ratio)", WHO),
        ),
    ),
)

OVERLAY = Row(
    "Overlay",
    (
        HERE.rows(
            "Mounts by option",
            "What is in force, given or by default. Mounts that differ share layers badly.",
            Table(("mounts",), ("short",)),
            Query("sum by (instance, option, value) (ullage_overlay_mounts)"),
            span=12,
        ),
        HERE.rows(
            "Parameters of the module",
            "1 for Y, 0 for N, numbers as they are: the defaults of mounts to come.",
            Table(("is",), ("short",)),
            Query("max by (instance, parameter) (ullage_overlay_module_parameter)"),
            span=12,
        ),
    ),
)

DASHBOARD = Dashboard(
    uid="ullage-layers",
    title="Ullage / Layers and drivers",
    description="What the layers of images and containers hold, which belong to nobody, and how they are mounted.",
    selector=NODE,
    rows=(STORES, CONTAINERS, OVERLAY),
)
