"""What is judged of a VolumeSnapshotClass (snapshot.storage.k8s.io/v1), and of it beside the storage classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agent.storagelint.kubernetes import TEXTS, Kind
from agent.storagelint.objects import Message, Object, Rule, hint_of, nearest, short

SNAPSHOT_DRIVER = Rule(
    "snapshot-class-unmatched",
    "warning",
    "{name} is of the driver {driver}, but no StorageClass given has it as provisioner ({provisioners}){hint}: it can "
    "snapshot none of their volumes.",
)
NO_SNAPSHOTS = Rule(
    "snapshot-class-absent", "info", "no VolumeSnapshotClass given is of the driver {provisioner} of {name}."
)
RULES = (SNAPSHOT_DRIVER, NO_SNAPSHOTS)
OFFLINE = "whether the driver can snapshot (CREATE_DELETE_SNAPSHOT); snapshots are crash-consistent at best"
SNAPSHOT_CLASS = Kind(
    "VolumeSnapshotClass",
    "snapshot.storage.k8s.io/v1",
    {"driver": "text", "parameters": TEXTS, "deletionPolicy": ("Delete", "Retain")},
    needed=("driver", "deletionPolicy"),
    default="snapshot.storage.kubernetes.io/is-default-class",
    default_by="driver",
)
_NAMED = 5  # provisioners, in one message


def match(snapshots: Sequence[Object], classes: Sequence[Object]) -> Iterator[Message]:
    """Find drivers of snapshot classes that are no storage class's provisioner, and the other way round."""
    drivers, provisioners = _named(snapshots, "driver"), _named(classes, "provisioner")
    if not drivers or not provisioners:
        return
    known = sorted({provisioner for _, provisioner in provisioners})
    for each, driver in drivers:
        if driver not in known:
            told, hint = ", ".join(map(short, known[:_NAMED])), hint_of(nearest(driver, known))
            at = each.node.get("driver")
            yield each.say(SNAPSHOT_DRIVER, at, driver=short(driver), provisioners=told, hint=hint)
    can_snapshot = {driver for _, driver in drivers}
    for each, provisioner in provisioners:
        if provisioner not in can_snapshot and not provisioner.startswith("kubernetes.io/"):
            yield each.say(NO_SNAPSHOTS, each.node.get("provisioner"), provisioner=short(provisioner))


def _named(objects: Sequence[Object], key: str) -> list[tuple[Object, str]]:
    return [(each, name) for each in objects if (name := each.node.text_of(key))]
