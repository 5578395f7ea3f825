"""/proc/slabinfo, man 5 slabinfo, version 2.1: objects of the kernel's caches.

A line is `dentry 1199325 1200000 192 21 1 : tunables 0 0 0 : slabdata 57143 57143 0`.
"""

from __future__ import annotations

_PAGES_PER_SLAB = 5
_DIGITS = 20  # of a u64; a float cannot hold what has hundreds


def parse(text: bytes, page_size: int) -> dict[str, int]:
    """Return the bytes of each cache; lines of another shape are passed."""
    sizes = {}
    for line in text.splitlines()[2:]:
        fields, _, rest = line.partition(b":")
        numbers, data = fields.split(), rest.rpartition(b": slabdata")[2].split()
        try:
            slabs, pages = data[1], numbers[_PAGES_PER_SLAB]
        except IndexError:
            continue
        if all(number.isdigit() and len(number) <= _DIGITS for number in (slabs, pages)):
            sizes[numbers[0].decode("ascii", "replace")] = int(slabs) * int(pages) * page_size
    return sizes
