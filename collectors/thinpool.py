"""Device mapper's thin pools: data, metadata, mode, and what they lie on.

Source: the status and table of each pool by ioctl on /dev/mapper/control (CAP_SYS_ADMIN; linux/dm-ioctl.h,
drivers/md/dm-thin.c), /sys/dev/block/MAJ:MIN/ (inflight, stat, slaves, loop/backing_file), LVM's configuration and its
backups of volume groups below /etc/lvm. Bytes.

NOFLUSH is set always: without it a status commits the pool's metadata. Even so it hangs, unkillably, once a commit of
the pool is stuck in the kernel; so a helper process asks, and a pool that hangs is asked no more until it lets go;
lists and tables go on answering. How full a pool is does not tell all: after a burst that used up its metadata it is
read-only and needs a check at the size of its last commit. Mode and needs_check are findings of their own.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from agent.collector import Collector, Fact, Start, Yield
from agent.containers import LABELS as CONTAINER_LABELS
from agent.containers import Containers
from agent.errors import Denied, HostError, Malformed, Stuck, Vanished
from agent.finding import Finding
from agent.host import Host
from agent.metric import LabelSet, Metric, label
from agent.privileges import Want
from agent.watermark import Prediction, Tier, Watermark
from collectors.dockerinfo import MOVE_TO_OVERLAY2
from collectors.readers import dm
from collectors.readers.mountinfo import parse

CONTROL = "dev/mapper/control"
NO_CONTROL, NOT_ADMIN = "there is no /dev/mapper/control", "device mapper tells nothing without CAP_SYS_ADMIN"
SUBJECT = "device mapper"
BLOCK = "sys/dev/block"
KINDS_EVERY = 300.0  # seconds between looks at what a known device is: its table may be reloaded
LARGEST = 1 << 20  # bytes of one answer: a bound
STALLED_AT, STALLED_FOR = 15, 60.0  # requests in flight; seconds in which none completes
HELD_FOR = 300.0  # seconds: backups hold the metadata for as long as they read it
NO_AUTOEXTEND, AUTOEXTEND = 100, 20  # percent: LVM's defaults of threshold, which is never, and of amount
LAYERS = 8  # of devices on devices: a bound
DIGITS = 20  # of a u64
DOCKER, DOCKER_ID = re.compile(r"docker-\d+:\d+-\d+-[0-9a-f]{64}"), 64
NOBODY = ("", "", "", "")
# LVM checks a pool when it activates it; whether it then clears the flag depends on how it was built: Debian's does not
CLEARS_FLAG = 'global/thin_check_options=["-q","--clear-needs-check-flag"]'

POOL = ("pool",)
INFO = Metric(
    "ullage_thin_pool_info",
    "A thin pool: its kernel name, LVM's names, what it lies on (loop, device), the files behind its loop devices (1).",
    ("pool", "device", "vg_name", "lv_name", "backing", "data_file", "metadata_file"),
    "info",
)
DATA_USED = Metric("ullage_thin_pool_data_used_bytes", "Bytes of data blocks in use.", POOL)
DATA = Metric("ullage_thin_pool_data_size_bytes", "Bytes of data blocks in all.", POOL)
METADATA_USED = Metric("ullage_thin_pool_metadata_used_bytes", "Bytes of metadata blocks in use.", POOL)
METADATA = Metric("ullage_thin_pool_metadata_size_bytes", "Bytes of metadata blocks in all.", POOL)
RECOMMENDED = Metric(
    "ullage_thin_pool_metadata_recommended_bytes",
    "Bytes of metadata that thin_metadata_size recommends for the pool and its active volumes.",
    POOL,
)
BLOCK_SIZE = Metric("ullage_thin_pool_block_bytes", "Size of a data block.", POOL)
MODE = Metric("ullage_thin_pool_mode", "The pool's mode: rw, ro, out_of_data_space, fail, error (1).", ("pool", "mode"))
NO_SPACE = Metric("ullage_thin_pool_no_space", "What writes to a full pool do: queue or error (1).", ("pool", "policy"))
NEEDS_CHECK = Metric("ullage_thin_pool_needs_check", "Whether the metadata needs a check and repair (1).", POOL)
HELD_ROOT = Metric("ullage_thin_pool_held_root", "Whether a metadata snapshot is held, which keeps blocks (1).", POOL)
TRANSACTION = Metric("ullage_thin_pool_transaction_id", "The pool's transaction id, which its user counts up.", POOL)
DATA_LOW = Metric("ullage_thin_pool_data_low_water_bytes", "Free data below which the kernel tells so.", POOL)
METADATA_LOW = Metric(
    "ullage_thin_pool_metadata_low_water_bytes", "Free metadata below which the kernel tells so.", POOL
)
IN_FLIGHT = Metric(
    "ullage_thin_pool_in_flight",
    "Requests in flight: to the pool and its volumes, to its data, to its metadata device.",
    ("pool", "part"),
)
SUSPENDED = Metric("ullage_thin_pool_suspended", "Whether the pool is suspended (1).", POOL)
IS_STUCK = Metric("ullage_thin_pool_stuck", "Whether the pool's status does not answer (1).", POOL)
LOOP_BACKED = Metric("ullage_thin_pool_loop_backed", "Whether the pool lies on loop devices (1).", POOL)
THRESHOLD = Metric(
    "ullage_thin_pool_autoextend_threshold_ratio", "LVM extends the pool from here on; 1 is never.", POOL
)
AMOUNT = Metric("ullage_thin_pool_autoextend_ratio", "By what part of its size LVM extends the pool.", POOL)
MAPPED = Metric(
    "ullage_thin_device_mapped_bytes",
    "Bytes of the pool that are mapped to a thin device, by its kernel name and its own; shared ones count for each.",
    ("pool", "device", "name", *CONTAINER_LABELS),
)

THIN_METADATA = Watermark(
    name="thin_metadata",
    summary="Metadata of a thin pool.",
    used=METADATA_USED,
    size=METADATA,
    target=POOL,
    prediction=Prediction(),
    tiers=(
        Tier("warning", "warning", 0.65, 0.60, hold=120.0),
        Tier("high", "warning", 0.80, 0.75, hold=60.0),
        Tier("critical", "critical", 0.95, 0.90, hold=30.0),
    ),
)
THIN_DATA = Watermark(
    name="thin_data",
    summary="Data of a thin pool.",
    used=DATA_USED,
    size=DATA,
    target=POOL,
    prediction=Prediction(),
    tiers=(
        Tier("warning", "warning", 0.80, 0.75, hold=120.0),
        Tier("critical", "critical", 0.95, 0.90, hold=30.0),
    ),
)

IS_LOOP_BACKED = Finding(
    "thin-pool-loop-backed",
    "warning",
    "The thin pool {target} lies in files on loop devices ({files}): slow, and it fails when their filesystem is full.",
    f"For Docker: docker commit CONTAINER IMAGE for each whose files you need; {MOVE_TO_OVERLAY2}. Only to stay with "
    "devicemapper: dm.directlvm_device=/dev/DISK",
)
IS_SMALL = Finding(
    "thin-pool-metadata-small",
    "warning",
    "The metadata of the thin pool {target} has {size} bytes; thin_metadata_size recommends {recommended} for its "
    "{blocks} blocks and {thins} thin devices.",
    "{grow}",
)
NO_EXTENSION = Finding(
    "thin-pool-no-autoextend",
    "info",
    "LVM does not extend the thin pool {target} as it fills: thin_pool_autoextend_threshold is 100.",
    "Set activation/thin_pool_autoextend_threshold = 80 and thin_pool_autoextend_percent = 20 in /etc/lvm/lvm.conf, "
    "then: {monitor}",
)
READ_ONLY = Finding(
    "thin-pool-read-only",
    "critical",
    "The thin pool {target} takes no writes: its mode is {mode}.",
    "If out_of_data_space: {extend}. If ro: {grow}. If fail, or with thin-pool-needs-check: {repair}",
)
UNCHECKED = Finding(
    "thin-pool-needs-check",
    "critical",
    "The metadata of the thin pool {target} needs a check: a transaction was aborted, and the pool stays read-only.",
    "The metadata are most likely full: {grow}. Then {repair}",
)
STALLED = Finding(
    "thin-pool-io-stalled",
    "critical",
    "The thin pool {target} makes no progress: {why}.",
    "Look at the devices below it: dmsetup ls --tree; dmesg | grep -e device-mapper -e 'I/O error'. A suspended one "
    "goes on after: dmsetup resume NAME",
)
HELD = Finding(
    "thin-pool-held-root",
    "info",
    "A metadata snapshot of the thin pool {target} has been held for {minutes} minutes: blocks that are freed stay in "
    "use.",
    "If no backup or thin_delta runs: dmsetup message {target} 0 release_metadata_snap",
)


class _Volume(NamedTuple):
    """A device, what it is, and for a thin device the number of its pool."""

    device: dm.Device
    kind: str
    pool: str


class _Pool(NamedTuple):
    """A pool as its samples and remedies name it; `lvm` is the volume group and logical volume, if LVM made it."""

    name: str
    device: dm.Device
    lvm: tuple[str, str] | None
    table: dm.PoolTable

    @property
    def extend(self) -> str:
        """How to give it more data blocks."""
        if self.lvm:
            return f"lvextend --extents +20%LV {self._volume}"
        return f"grow its data device {self.table.data} and load the pool's table with the new length"

    def grow(self, missing: int | None) -> str:
        """How to give it so many bytes more of metadata, None where nothing tells how many."""
        if self.lvm:
            return f"lvextend --poolmetadatasize +{'SIZE' if missing is None else f'{missing}b'} {self._volume}"
        by = "" if missing is None else f" by {missing} bytes"
        return f"grow its metadata device {self.table.metadata}{by} and reload the pool's table"

    @property
    def repair(self) -> str:
        """How to have its metadata checked or, if they are damaged, repaired."""
        if not self.lvm:
            return (
                "unmount what uses it, remove the pool's device, thin_check --clear-needs-check-flag its metadata "
                f"device {self.table.metadata} (if that fails: thin_repair it to a new one), and make the pool anew"
            )
        group, name = map(label, self.lvm)
        every = f"--select 'pool_lv=\"{name}\"' {group}"
        return (
            f"unmount what uses it, then: lvchange --activate n {every}; lvchange --activate n {self._volume}; "
            f"lvchange --activate y --config '{CLEARS_FLAG}' {self._volume}; lvchange --activate y {every}   # if its "
            f"check fails: lvconvert --repair {self._volume}, and activate as before; a repair undoes what snapshots "
            "share, and may need metadata of several times the size"
        )

    @property
    def monitor(self) -> str:
        """How to have LVM watch it."""
        return f"lvchange --monitor y {self._volume}"

    @property
    def _volume(self) -> str:
        return "/".join(map(label, self.lvm or ()))


@dataclass(slots=True)
class _Progress:
    """Since when requests have been in flight, and none of them has completed."""

    completed: int
    since: float


@dataclass(slots=True)
class ThinPools:
    """The running collector."""

    start: Start
    clock: Callable[[], float] = time.monotonic
    _containers: Containers = field(init=False)
    _kinds: dict[dm.Device, _Volume] = field(default_factory=dict)
    _kinds_at: float = 0.0
    _size: int = 16384
    _progress: dict[tuple[str, str], _Progress] = field(default_factory=dict)
    _held: dict[str, float] = field(default_factory=dict)
    _configs: dict[str, tuple[tuple[int, int, int], dict[str, str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Prepare the names of containers."""
        self._containers = Containers(self.start.host, self.start.runtimes)

    def close(self) -> None:
        """Nothing is open."""

    def collect(self, host: Host) -> Iterator[Yield]:
        """Read every pool of the host."""
        volumes = self._volumes(host)
        pools = [each.device for each in volumes if each.kind == "thin-pool"]
        thins: dict[str, list[dm.Device]] = {pool.number: [] for pool in pools}
        for each in volumes:
            if each.kind == "thin" and each.pool in thins:
                thins[each.pool].append(each.device)
        alive = {pool.name for pool in pools}
        self._progress = {key: value for key, value in self._progress.items() if key[0] in alive}
        self._held = {key: value for key, value in self._held.items() if key in alive}
        owners = self._owners(host, [thin for each in thins.values() for thin in each])
        for pool in pools:
            with host.skipping():
                yield from self._pool(host, pool, thins[pool.number], owners)

    def _volumes(self, host: Host) -> list[_Volume]:
        devices = dm.parse_devices(self._ask(host, dm.LIST_DEVICES, "", 0, SUBJECT))
        now = self.clock()
        is_new_look = now - self._kinds_at >= KINDS_EVERY
        if is_new_look:
            self._kinds_at = now
        kinds: dict[dm.Device, _Volume] = {}
        for device in devices:
            known = self._kinds.get(device)
            if known is None or is_new_look:
                with host.skipping():
                    target = self._table(host, device)
                    pool = dm.parse_thin_table(target.text) if target.kind == "thin" else None
                    # a thin device of a pool that failed says no more than that it failed
                    known = known if target.kind == "thin" and known and not pool else None
                    known = known or _Volume(device, target.kind, pool or "")
            if known is not None:
                kinds[device] = known
        self._kinds = kinds
        return list(kinds.values())

    def _table(self, host: Host, device: dm.Device) -> dm.Target:
        """Return the device's one target with its table, which even a stuck pool tells: a question of its own name."""
        return self._target(host, device, dm.WANTS_TABLE, f"table of {device.name}")[0]

    def _target(self, host: Host, device: dm.Device, flags: int, subject: str) -> tuple[dm.Target, int]:
        """Return the device's one target, of no type where it has none or several, and the flags of the answer."""
        answer = self._ask(host, dm.TABLE_STATUS, device.name, flags | dm.NOFLUSH, subject)
        targets = dm.parse_targets(answer)
        return targets[0] if len(targets) == 1 else dm.Target("", 0, ""), dm.flags_of(answer)

    def _ask(self, host: Host, number: int, name: str, flags: int, subject: str) -> bytes:
        size = self._size if number == dm.LIST_DEVICES else 1024
        while True:
            answer = host.ioctl(CONTROL, number, dm.request(name, flags, size), label(subject))
            if not dm.flags_of(answer) & dm.BUFFER_FULL:
                return answer
            size *= 2
            if size > LARGEST:
                raise Malformed(subject, f"an answer of more than {LARGEST} bytes")
            if number == dm.LIST_DEVICES:
                self._size = size

    def _owners(self, host: Host, thins: list[dm.Device]) -> dict[str, LabelSet]:
        """Return the labels of the containers whose writable layers are among the devices, by the device's number."""
        owners: dict[str, LabelSet] = {}
        docker = {thin.number: thin.name[-DOCKER_ID:] for thin in thins if DOCKER.fullmatch(thin.name)}
        layers = self._containers.docker_layers("devicemapper") if docker else {}
        for number, layer in docker.items():
            if layer in layers and (found := self._containers.lookup_id(layers[layer])):
                owners[number] = found.labels
        others = {thin.number for thin in thins} - owners.keys()
        if others:
            with host.skipping():
                for mount in parse(host.read("proc/1/mountinfo"))[0]:
                    if mount.device in others and (found := self._containers.lookup_rootfs(mount.mountpoint)):
                        owners[mount.device] = found.labels
        self._containers.forget_unasked()
        return owners

    def _pool(
        self, host: Host, device: dm.Device, thins: list[dm.Device], owners: Mapping[str, LabelSet]
    ) -> Iterator[Yield]:
        name = label(device.name)
        target = self._table(host, device)
        table = dm.parse_pool_table(target.text)
        if table is None:
            raise Malformed(name, f"expected the table of a thin pool, got {target.text[:80]!r}")
        pool = _Pool(name, device, self._lvm(host, device), table)
        yield from _backing(host, pool)
        stalled = yield from self._flights(host, pool, thins)
        try:
            target, flags = self._target(host, device, 0, name)
        except Stuck:
            yield IS_STUCK(1, name)
            yield STALLED(name, why=stalled or "its status does not answer")
            raise
        yield IS_STUCK(0, name)
        if stalled:
            yield STALLED(name, why=stalled)
        yield SUSPENDED(int(bool(flags & dm.SUSPENDED)), name)
        with host.skipping():
            yield from self._status(pool, target.text, len(thins))
        if pool.lvm:
            yield from self._autoextend(host, pool, *pool.lvm)
        for thin in thins:
            try:
                target, _ = self._target(host, thin, 0, name)
            except Stuck:
                raise  # the others would hang as well, each for a deadline of its own
            except HostError as error:
                host.skip(error)
                continue
            mapped = dm.parse_thin_status(target.text)
            if mapped is not None:
                labels = owners.get(thin.number, NOBODY)
                yield MAPPED(mapped * dm.SECTOR, name, _kernel_name(thin), label(thin.name), *labels)

    def _lvm(self, host: Host, device: dm.Device) -> tuple[str, str] | None:
        with host.skipping():
            uuid = host.read_if_there(f"{BLOCK}/{device.number}/dm/uuid")
            names = dm.split_lvm_name(device.name)
            if uuid.startswith(b"LVM-") and names is not None:
                return names[:2]
        return None

    def _status(self, pool: _Pool, text: str, thins: int) -> Iterator[Yield]:
        name, table = pool.name, pool.table
        status = dm.parse_pool_status(text)
        if status is None:
            raise Malformed(name, f"expected the status of a thin pool, got {text[:80]!r}")
        yield MODE(1, name, status.mode)
        size = status.metadata_total * dm.METADATA_BLOCK if status.metadata_total is not None else None
        remedies = {"grow": pool.grow(size), "repair": pool.repair}
        if status.mode != "rw":
            yield READ_ONLY(name, mode=status.mode, extend=pool.extend, **remedies)
        if status.needs_check is not None:
            yield NEEDS_CHECK(int(status.needs_check), name)
        if status.needs_check:
            yield UNCHECKED(name, **remedies)
        block = table.block * dm.SECTOR
        yield BLOCK_SIZE(block, name)
        yield DATA_LOW(table.low_water * block, name)
        if status.no_space is not None:
            yield NO_SPACE(1, name, status.no_space)
        for metric, value, unit in (
            (TRANSACTION, status.transaction, 1),
            (DATA_USED, status.data_used, block),
            (DATA, status.data_total, block),
            (METADATA_USED, status.metadata_used, dm.METADATA_BLOCK),
            (METADATA, status.metadata_total, dm.METADATA_BLOCK),
            (METADATA_LOW, status.low_water, dm.METADATA_BLOCK),
        ):
            if value is not None:
                yield metric(value * unit, name)
        if status.transaction is not None:
            yield from self._root(name, is_held=status.held_root is not None)
        if status.data_total is not None and status.metadata_total is not None:
            yield from _sized(pool, status.data_total, status.metadata_total, thins)

    def _root(self, name: str, *, is_held: bool) -> Iterator[Yield]:
        yield HELD_ROOT(int(is_held), name)
        if not is_held:
            self._held.pop(name, None)
            return
        seconds = self.clock() - self._held.setdefault(name, self.clock())
        if seconds >= HELD_FOR:
            yield HELD(name, minutes=int(seconds / 60))

    def _flights(self, host: Host, pool: _Pool, thins: Iterable[dm.Device]) -> Generator[Yield, None, str]:
        """Yield the requests in flight; return why the pool is stalled, or an empty text."""
        why = ""
        parts = {
            "volumes": [pool.device.number, *(thin.number for thin in thins)],
            "data": [pool.table.data],
            "metadata": [pool.table.metadata],
        }
        for part, numbers in parts.items():
            flying = completed = read = 0
            for number in numbers:
                with host.skipping():
                    inflight = _numbers(host, f"{BLOCK}/{number}/inflight", 2)
                    stat = _numbers(host, f"{BLOCK}/{number}/stat", 8)
                    flying += sum(inflight[:2])
                    completed += stat[0] + stat[4]
                    read += 1
            key, now = (pool.device.name, part), self.clock()
            if not read:
                self._progress.pop(key, None)
                continue
            yield IN_FLIGHT(flying, pool.name, part)
            before = self._progress.get(key)
            if before is None or flying < STALLED_AT or completed != before.completed:
                self._progress[key] = _Progress(completed, now)
            elif now - before.since >= STALLED_FOR:
                seconds = int(now - before.since)
                why = why or f"{flying} requests to its {part} are in flight, and none completed for {seconds} seconds"
        return why

    def _autoextend(self, host: Host, pool: _Pool, group: str, volume: str) -> Iterator[Yield]:
        settings = self._config(host, "etc/lvm/lvm.conf")
        if settings is None:
            return
        threshold, amount = dm.autoextend(settings | (self._config(host, "etc/lvm/lvmlocal.conf") or {}))
        backup = self._config(host, f"etc/lvm/backup/{group}") or {}
        for way in (f"{group}/profile", f"{group}/logical_volumes/{volume}/profile"):
            profile = backup.get(way, "")
            if profile and "/" not in profile:
                more = dm.autoextend(self._config(host, f"etc/lvm/profile/{profile}.profile") or {})
                threshold = more[0] if more[0] is not None else threshold
                amount = more[1] if more[1] is not None else amount
        threshold = NO_AUTOEXTEND if threshold is None else threshold
        yield THRESHOLD(threshold / 100, pool.name)
        yield AMOUNT((AUTOEXTEND if amount is None else amount) / 100, pool.name)
        if threshold >= NO_AUTOEXTEND:
            yield NO_EXTENSION(pool.name, monitor=pool.monitor)

    def _config(self, host: Host, path: str) -> dict[str, str] | None:
        """Return the settings of a file of LVM's, None where there is none; read again when it was written anew."""
        try:
            signature = host.signature(path)
            known = self._configs.get(path)
            if known is None or known[0] != signature:
                known = self._configs[path] = (signature, dm.parse_lvm_config(host.read(path)))
        except Vanished:
            self._configs.pop(path, None)
            return None
        except HostError as error:
            host.skip(error)
            return None
        return known[1]


def _kernel_name(device: dm.Device) -> str:
    return "dm-" + device.number.partition(":")[2]


def _backing(host: Host, pool: _Pool) -> Iterator[Yield]:
    """Yield what the pool lies on."""
    with host.skipping():
        table = pool.table
        data, metadata = _files(host, table.data), _files(host, table.metadata)
        files = [label(each) for each in dict.fromkeys(data + metadata)]
        group, volume = map(label, pool.lvm or ("", ""))
        names = pool.name, _kernel_name(pool.device), group, volume, "loop" if files else "device"
        yield INFO(1, *names, label(",".join(data)), label(",".join(metadata)))
        yield LOOP_BACKED(int(bool(files)), pool.name)
        if files:
            yield IS_LOOP_BACKED(pool.name, files=", ".join(files))


def _sized(pool: _Pool, blocks: int, metadata_blocks: int, thins: int) -> Iterator[Yield]:
    size = metadata_blocks * dm.METADATA_BLOCK
    recommended = dm.recommended_metadata_bytes(blocks, thins)
    yield RECOMMENDED(recommended, pool.name)
    if size < recommended:
        sizes = {"size": size, "recommended": recommended, "grow": pool.grow(recommended - size)}
        yield IS_SMALL(pool.name, blocks=blocks, thins=thins, **sizes)


def _numbers(host: Host, path: str, least: int) -> list[int]:
    text = host.read(path)
    words = text.split()
    if len(words) < least or not all(word.isdigit() and len(word) <= DIGITS for word in words[:least]):
        raise Malformed(path, f"expected {least} numbers, got {text[:40]!r}")
    return [int(word) for word in words[:least]]


def _files(host: Host, number: str) -> list[str]:
    """Return the files behind the loop devices that the device lies on, itself or below it."""
    files: set[str] = set()
    todo = [(f"{BLOCK}/{number}", 0)]
    while todo:
        path, depth = todo.pop()
        file = host.read_if_there(f"{path}/loop/backing_file").rstrip(b"\n")
        if file:
            files.add(file.decode("utf-8", "surrogateescape"))
        if depth < LAYERS and host.exists(f"{path}/slaves"):
            todo += [(f"sys/class/block/{name}", depth + 1) for name in host.names(f"{path}/slaves")]
    return sorted(files)


def _needs(host: Host) -> str | None:
    if not host.glob("sys/block/dm-*"):
        return "device mapper has no device"
    if not host.exists(CONTROL):
        return NO_CONTROL
    try:
        host.ioctl(CONTROL, dm.LIST_DEVICES, dm.request(size=1024), SUBJECT)
    except Denied:
        return NOT_ADMIN
    except HostError:
        return None  # the run will tell
    return None


COLLECTOR = Collector(
    name="thinpool",
    summary="Device mapper: thin pools of Docker, containerd and LVM.",
    start=ThinPools,
    interval=15.0,
    deadline=12.0,
    metrics=(
        *(INFO, DATA_USED, DATA, METADATA_USED, METADATA, RECOMMENDED, BLOCK_SIZE, MODE, NO_SPACE, NEEDS_CHECK),
        *(HELD_ROOT, TRANSACTION, DATA_LOW, METADATA_LOW, IN_FLIGHT, SUSPENDED, IS_STUCK, LOOP_BACKED),
        *(THRESHOLD, AMOUNT, MAPPED),
    ),
    watermarks=(THIN_METADATA, THIN_DATA),
    findings=(IS_LOOP_BACKED, IS_SMALL, NO_EXTENSION, READ_ONLY, UNCHECKED, STALLED, HELD),
    needs=_needs,
    uevents=("block",),
    facts=(Fact("Thin pools", INFO),),
    wants=(
        Want(
            capabilities=("SYS_ADMIN",),
            device="/dev/mapper/control",
            there="sys/block/dm-*",
            lost="all of it",
            reasons=(NO_CONTROL, NOT_ADMIN),
        ),
    ),
)
