"""bbolt files: containerd's snapshots (metadata.db of a snapshotter), and those of Docker's BuildKit (snapshots.db).

Sources: go.etcd.io/bbolt (page.go, bucket.go, meta in db.go; the byte order is the machine's, and all of ours are
little-endian); containerd's core/snapshots/storage/bolt.go; moby's builder-next/adapters/snapshot/snapshot.go.
A file is pages. Two of them, in turn, hold a checksum and where the tree of the newest transaction begins; a writer
puts what it changes on free pages and writes its own of the two last. So a copy is whole if no transaction ended while
it was made: then the next one may have begun, but it writes to pages that the copy's tree has none of.
A page of a tree is its head and elements, `(flags, position, size of key, size of value)` each; a value may be a
bucket, which is the number of its first page, or with number 0 that page itself behind it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

KINDS = {1: "view", 2: "active", 3: "committed", 4: "snapshot"}

_MAGIC, _VERSION = 0xED0CDAED, 2
_META = struct.Struct("<IIIIQQQQQQ")
_META_SUMMED = 56  # bytes before the checksum
_HEAD = struct.Struct("<QHHI")
_BRANCH, _LEAF = 0x01, 0x02
_BRANCH_ELEMENT = struct.Struct("<IIQ")
_LEAF_ELEMENT = struct.Struct("<IIII")
_IS_BUCKET = 0x01
_BUCKET = struct.Struct("<QQ")  # first page, sequence
_PAGE_SIZES = tuple(1 << power for power in range(9, 17))  # of real machines: 4 to 64 KiB
_FNV_OFFSET, _FNV_PRIME, _U64 = 0xCBF29CE484222325, 0x100000001B3, (1 << 64) - 1
_DEEPEST = 32  # a tree of 2^31 pages with two on each branch
_VARINT = 10  # bytes of the longest


class Snapshot(NamedTuple):
    """A snapshot of containerd: of `namespace` by its `name` there; `directory` is what its directory is called.

    `kind` is view, active, committed, or snapshot: a copy of an active one that nobody writes to. `parent` is the key
    of another one. `size` is bytes on the disk, with all directories, and `inodes` their number; containerd counts both
    once, when it commits.
    """

    key: str
    namespace: str
    name: str
    directory: int
    kind: str
    parent: str
    size: int | None
    inodes: int | None


class BuildSnapshot(NamedTuple):
    """A snapshot of Docker's BuildKit. `layer` is the one that it was committed as, empty if it is one itself."""

    key: str
    layer: str
    parent: str


class _Meta(NamedTuple):
    page_size: int
    root: int
    transaction: int


class _File:
    """A copy of a file. It has as many pages to give as it holds: no page of a sound one is met twice."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._meta = _newest(data)
        self._left = len(data) // self._meta.page_size

    def root(self) -> dict[bytes, bytes | _Bucket]:
        return dict(self._items(self._meta.root, 0))

    def open(self, bucket: _Bucket) -> dict[bytes, bytes | _Bucket]:
        """Return what a bucket holds."""
        if len(bucket.value) < _BUCKET.size:
            raise ValueError("a bucket is cut")
        page, _ = _BUCKET.unpack_from(bucket.value)
        if page:
            return dict(self._items(page, 0))
        return dict(_leaf(memoryview(bucket.value)[_BUCKET.size :]))

    def _items(self, number: int, depth: int) -> Iterator[tuple[bytes, bytes | _Bucket]]:
        page = self._page(number)
        _, flags, count, _ = _HEAD.unpack_from(page)
        if flags & _LEAF:
            yield from _leaf(page)
            return
        if not flags & _BRANCH or depth >= _DEEPEST:
            raise ValueError(f"page {number} is none of a tree: flags {flags:#x}, depth {depth}")
        _check_room(page, count)
        for at in range(count):
            _, _, child = _BRANCH_ELEMENT.unpack_from(page, _HEAD.size + at * _BRANCH_ELEMENT.size)
            yield from self._items(child, depth + 1)

    def _page(self, number: int) -> memoryview:
        size = self._meta.page_size
        if not 2 <= number < len(self._data) // size:  # noqa: PLR2004  behind the two that say where trees begin
            raise ValueError(f"page {number} lies outside the file")
        found, _, _, overflow = _HEAD.unpack_from(self._data, number * size)
        self._left -= 1 + overflow
        end = (number + 1 + overflow) * size
        if found != number or self._left < 0 or end > len(self._data):
            raise ValueError(f"page {number} is another, is met twice, or lies outside the file")
        return memoryview(self._data)[number * size : end]


class _Bucket(NamedTuple):
    value: bytes


def newest_transaction(data: bytes) -> int:
    """Return the number of the newest transaction of a file, or of its beginning: two pages.

    Raises ValueError if it is no file of bbolt, or was caught half written.
    """
    return _newest(data).transaction


def parse_snapshots(data: bytes) -> list[Snapshot]:
    """Return the snapshots that a snapshotter's metadata.db has; ValueError if it is none, or is damaged.

    A key is `k8s.io/9/sha256:7706…`; the number in it is not that of the directory.
    """
    file = _File(data)
    top = file.root()
    if not top:
        return []  # containerd has not written to it yet
    version = _bucket(file, top, b"v1")
    if b"snapshots" not in version:
        return []
    found = []
    for key, value in _bucket(file, version, b"snapshots").items():
        if isinstance(value, _Bucket):
            found.append(_snapshot(_text(key), file.open(value)))
    return found


def parse_build_snapshots(data: bytes) -> list[BuildSnapshot]:
    """Return the snapshots that BuildKit's snapshots.db has; ValueError if it is none, or is damaged.

    A key is the name of a layer of the graph driver, but for those with `committed`, and for layers of images.
    """
    file = _File(data)
    found = []
    for key, value in file.root().items():
        if isinstance(value, _Bucket):
            fields = file.open(value)
            layer = _text(_value(fields, b"committed"))
            found.append(BuildSnapshot(_text(key), layer, _text(_value(fields, b"parent"))))
    return found


def _snapshot(key: str, fields: Mapping[bytes, bytes | _Bucket]) -> Snapshot:
    directory, kind = _uvarint(_value(fields, b"id")), _uvarint(_value(fields, b"kind"))
    if directory is None or kind not in KINDS:
        raise ValueError(f"the snapshot {key!r} has no id, or no kind that we know")
    namespace, _, rest = key.partition("/")
    number, _, name = rest.partition("/")
    if not (number.isascii() and number.isdigit() and name):
        namespace, name = "", key  # who uses a snapshotter without containerd's namespaces has keys of its own
    size, inodes = (_varint(_value(fields, name_of)) for name_of in (b"size", b"inodes"))
    return Snapshot(key, namespace, name, directory, KINDS[kind], _text(_value(fields, b"parent")), size, inodes)


def _newest(data: bytes) -> _Meta:
    """Return the newest of the two pages that say where the tree begins, and is as it was written."""
    first = _meta(data, 0)
    # the second says where it is itself: the first may be damaged
    sizes = (first.page_size,) if first is not None else _PAGE_SIZES
    metas = [first, *(meta for size in sizes if (meta := _meta(data, size)) is not None and meta.page_size == size)]
    found = [meta for meta in metas if meta is not None]
    if not found:
        raise ValueError("is no file of bbolt, or was caught half written")
    return max(found, key=lambda meta: meta.transaction)


def _meta(data: bytes, start: int) -> _Meta | None:
    at = start + _HEAD.size
    if len(data) < at + _META.size:
        return None
    magic, version, page_size, _, root, _, _, _, transaction, checksum = _META.unpack_from(data, at)
    if (magic, version) != (_MAGIC, _VERSION) or page_size not in _PAGE_SIZES:
        return None
    return _Meta(page_size, root, transaction) if _fnv(data[at : at + _META_SUMMED]) == checksum else None


def _fnv(data: bytes) -> int:
    """Return the 64 bits of FNV-1a."""
    found = _FNV_OFFSET
    for byte in data:
        found = (found ^ byte) * _FNV_PRIME & _U64
    return found


def _leaf(page: memoryview) -> Iterator[tuple[bytes, bytes | _Bucket]]:
    if len(page) < _HEAD.size:
        raise ValueError("a page is cut")
    _, flags, count, _ = _HEAD.unpack_from(page)
    if not flags & _LEAF:
        raise ValueError(f"a page is no leaf: flags {flags:#x}")
    _check_room(page, count)
    left = len(page)
    for at in range(_HEAD.size, _HEAD.size + count * _LEAF_ELEMENT.size, _LEAF_ELEMENT.size):
        kind, position, key_size, value_size = _LEAF_ELEMENT.unpack_from(page, at)
        start = at + position
        middle, end = start + key_size, start + key_size + value_size
        left -= key_size + value_size  # no two lie on each other: else a small page could stand for gigabytes
        if end > len(page) or left < 0:
            raise ValueError("an element lies outside its page, or on another")
        value = bytes(page[middle:end])
        yield bytes(page[start:middle]), _Bucket(value) if kind & _IS_BUCKET else value


def _check_room(page: memoryview, count: int) -> None:
    if _HEAD.size + count * _LEAF_ELEMENT.size > len(page):  # those of a branch are as long
        raise ValueError("a page has more elements than room for them")


def _bucket(file: _File, items: Mapping[bytes, bytes | _Bucket], name: bytes) -> dict[bytes, bytes | _Bucket]:
    match items.get(name):
        case _Bucket() as found:
            return file.open(found)
    raise ValueError(f"has no bucket {name.decode()}")


def _value(fields: Mapping[bytes, bytes | _Bucket], name: bytes) -> bytes:
    found = fields.get(name, b"")
    return found if isinstance(found, bytes) else b""


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _uvarint(raw: bytes) -> int | None:
    """Return a number in Go's unsigned form: seven bits a byte, lowest first; None if there is none."""
    found = 0
    for place, byte in enumerate(raw[:_VARINT]):
        found |= (byte & 0x7F) << 7 * place
        if not byte & 0x80:
            return found if found <= _U64 else None
    return None


def _varint(raw: bytes) -> int | None:
    """Return a number in Go's signed form: its sign is the lowest bit; None if there is none that we can mean."""
    found = _uvarint(raw)
    return None if found is None or found & 1 else found >> 1
