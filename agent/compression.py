"""Gzip from ready pieces: a page is compressed once, and a scrape joins the pages' pieces into one gzip member.

Gzip allows several members in a row, and Go's and Python's readers take them; but browsers and curl stop after the
first without a word. Deflate blocks, though, may be joined as they are, and the checksum of the whole follows from
those of the pieces. Sources: RFC 1951, RFC 1952, and crc32_combine of zlib's crc32.c, which Python does not offer.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"  # deflate, no name, no time, unknown system
_END = b"\x03\x00"  # an empty last block
_POLYNOMIAL = 0xEDB88320  # of CRC-32, its bits reversed as zlib has them
_ONE = 1 << 31  # x**0 in that order


class Piece(NamedTuple):
    """Compressed bytes that end at a byte's edge; `shifts` move a checksum over all that this piece holds."""

    deflated: bytes
    checksum: int
    size: int
    shifts: Sequence[Sequence[int]]


def compress(parts: Iterable[bytes]) -> Piece:
    """Return the parts as one piece. Level 1: compressing is the dearest step of all, and more gains little."""
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed, checksum, size = [], 0, 0
    for part in parts:
        packed.append(packer.compress(part))
        checksum = zlib.crc32(part, checksum)
        size += len(part)
    packed.append(packer.flush(zlib.Z_SYNC_FLUSH))
    return Piece(b"".join(packed), checksum, size, _tables(_power(8 * size)))


def join(pieces: Iterable[Piece]) -> list[bytes]:
    """Return a gzip file in parts that holds what the pieces hold."""
    parts, checksum, size = [_HEADER], 0, 0
    for piece in pieces:
        parts.append(piece.deflated)
        shifted = piece.checksum
        for table in piece.shifts:
            shifted ^= table[checksum & 15]
            checksum >>= 4
        checksum = shifted
        size += piece.size
    trailer = checksum.to_bytes(4, "little") + (size & 0xFFFFFFFF).to_bytes(4, "little")
    return [*parts, _END + trailer]


def _tables(factor: int) -> list[list[int]]:
    """Return the products of a factor with each value of each four bits, lowest first; `join` adds eight of them."""
    products = [factor]  # with x**0, x**1, ...: the highest bit's comes first
    for _ in range(31):
        products.append(_times_x(products[-1]))
    tables = []
    for lowest in range(0, 32, 4):
        table = [0]
        for bit in range(lowest, lowest + 4):
            table += [entry ^ products[31 - bit] for entry in table]
        tables.append(table)
    return tables


@lru_cache(maxsize=256)
def _power(exponent: int) -> int:
    """Return x**exponent modulo CRC-32's polynomial: a quarter of what compressing costs, but sizes come again."""
    result = _ONE
    for square in _SQUARES:
        if exponent & 1:
            result = _multiply(square, result)
        exponent >>= 1
        if not exponent:
            break
    return result


def _multiply(a: int, b: int) -> int:
    """Return the product of two polynomials over GF(2), modulo CRC-32's."""
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = a << 1 & 0xFFFFFFFF
        b = _times_x(b)
    return product


def _times_x(polynomial: int) -> int:
    return polynomial >> 1 ^ (_POLYNOMIAL if polynomial & 1 else 0)


def _squares() -> Iterator[int]:
    """Yield x**1, x**2, x**4, and so on, for exponents of 64 bits."""
    square = _times_x(_ONE)
    for _ in range(64):
        yield square
        square = _multiply(square, square)


_SQUARES = tuple(_squares())
