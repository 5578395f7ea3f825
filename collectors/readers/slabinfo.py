"""/proc/slabinfo, man 5 slabinfo, version 2.1: objects of the kernel's caches.

A line is `dentry 1199325 1200000 192 21 1 : tunables 0 0 0 : slabdata 57143 57143 0`.
"""

from __future__ import annotations

_PAGES_PER_SLAB = 5


def parse(text: bytes, page_size: int) -> dict[str, int]:
    """Return the bytes of each cache; lines of another shape are passed."""
    sizes = {}
    for line in text.splitlines()[2:]:
        fields, _, rest = line.partition(b":")
        numbers, data = fields.split(), rest.rpartition(b": slabdata")[2].split()
        try:
            sizes[numbers[0].decode("ascii", "replace")] = int(data[1]) * int(numbers[_PAGES_PER_SLAB]) * page_size
        except (IndexError, ValueError):
            continue
    return sizes
