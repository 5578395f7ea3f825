"""Write amplification and wear: bytes at each layer that counts them, and what drives say of themselves."""

from __future__ import annotations

from collectors import writeamp
from dashboards.layout import Dashboard, Row
from dashboards.panels import Place, Query, Table
from dashboards.promql import NODE

HERE = Place(NODE)
DRIVE = "{{instance}} {{device}}"

LAYERS = Row(
    "Layers",
    (
        HERE.graph(
            "Amplification over an hour",
            "What each byte became, by layer; total is their product on the same drive. Recorded by our rules.",
            "short",
            Query('ullage:write_amplification:ratio{window="1h"}', "{{instance}} {{layer}} {{source}} {{device}}"),
        ),
        HERE.graph(
            "Amplification over five minutes",
            "Of filesystems. Nothing is said of less than 64 MiB. Recorded by our rules.",
            "short",
            Query('ullage:write_amplification:ratio{window="5m"}', "{{instance}} {{source}} {{device}}"),
        ),
        HERE.graph(
            "Written, as each layer counts it",
            "By who counted; layers are not to be added.",
            "Bps",
            Query(
                "topk(20, rate(ullage_logical_written_bytes_total[$__rate_interval]))",
                "{{instance}} {{layer}} {{source}} {{device}}",
            ),
        ),
        HERE.graph(
            "Reached the devices below, of the same layer",
            "What the layer above became.",
            "Bps",
            Query(
                "topk(20, rate(ullage_logical_device_written_bytes_total[$__rate_interval]))",
                "{{instance}} {{source}} {{device}} on {{drive}}",
            ),
        ),
        HERE.stacked(
            "Written to disks",
            "Physical disks only: nothing counts twice.",
            "Bps",
            Query("topk(20, rate(ullage_device_written_bytes_total[$__rate_interval]))", DRIVE),
        ),
        HERE.stacked(
            "Who writes",
            "The ten containers that make most page cache dirty.",
            "Bps",
            Query(
                "topk(10, rate(ullage_container_written_bytes_total[$__rate_interval]))",
                "{{namespace}}/{{pod}} {{container}} {{id}}",
            ),
        ),
    ),
)

DRIVES = Row(
    "Drives",
    (
        HERE.watermark(writeamp.WEAR, "Rated endurance that is used", DRIVE),
        HERE.graph(
            "Spare blocks left",
            "Part of those that the drive had.",
            "percentunit",
            Query("ullage_drive_spare_ratio", DRIVE),
        ),
        HERE.graph(
            "Sent to drives and written to flash",
            "By their own counts, over six hours; the second over the first is the drive's amplification.",
            "Bps",
            Query("rate(ullage_drive_host_written_bytes_total[6h])", f"{DRIVE} sent"),
            Query("rate(ullage_drive_media_written_bytes_total[6h])", f"{DRIVE} to flash"),
        ),
        HERE.rows(
            "Drives now",
            "By their own counts. Age is how long ago the drive said so: one that sleeps is not woken.",
            Table(("sent", "media errors", "losses of power", "age"), ("bytes", "short", "short", "s")),
            *(
                Query(f"max by (instance, device, model) ({name})")
                for name in (
                    "ullage_drive_host_written_bytes_total",
                    "ullage_drive_media_errors_total",
                    "ullage_drive_unsafe_shutdowns_total",
                    "ullage_drive_age_seconds",
                )
            ),
            span=12,
        ),
        HERE.states(
            "Critical warnings of drives",
            "1 while a drive warns.",
            Query("ullage_drive_critical_warning", f"{DRIVE} {{{{warning}}}}"),
        ),
    ),
)

DASHBOARD = Dashboard(
    uid="ullage-writes",
    title="Ullage / Write amplification and wear",
    description="Bytes written at each layer that truly counts them, from applications to flash.",
    selector=NODE,
    rows=(LAYERS, DRIVES),
)
