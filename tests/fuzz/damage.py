"""What can become of a file on its way: cut, reordered, extended, or written by somebody who means harm."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

HOSTILE = (
    b"",
    b"\0",
    b"\n\n\n",
    b"-1\n",
    b"9" * 400,  # more than a float holds
    b"9" * 5000,  # more than int() takes
    b"18446744073709551615\n",
    b"\xff\xfe\xed\xa0\x80\n",
    b"[" * 100_000,  # deeper than a parser of JSON goes
    b'{"data-root": "/a\\u0000b"}',
    b'{"data-root": "/a\\ud800b"}',
    b'{"annotations": {"io.kubernetes.cri.container-name": "\\u0000\\n\\"\\\\"}}',
)


def cut(text: bytes, chance: random.Random) -> bytes:
    return text[: chance.randrange(len(text) + 1)]


def shuffle(text: bytes, chance: random.Random) -> bytes:
    lines = text.splitlines(keepends=True)
    chance.shuffle(lines)
    return b"".join(lines)


def double(text: bytes, chance: random.Random) -> bytes:
    lines = text.splitlines(keepends=True) or [text]
    return b"".join([*lines, chance.choice(lines), *lines])


def insert(text: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(text) + 1)
    return text[:place] + chance.randbytes(chance.randrange(1, 40)) + text[place:]


def flip(text: bytes, chance: random.Random) -> bytes:
    flipped = bytearray(text)
    for _ in range(chance.randrange(1, 9) if text else 0):
        flipped[chance.randrange(len(text))] = chance.choice((0, 1, 255, chance.randrange(256)))
    return bytes(flipped)


def swap_number(text: bytes, chance: random.Random) -> bytes:
    words = text.split(b" ")
    words[chance.randrange(len(words))] = chance.choice((b"0", b"-1", b"9" * 400, b"9" * 5000, b"18446744073709551615"))
    return b" ".join(words)


def replace(_: bytes, chance: random.Random) -> bytes:
    return chance.choice(HOSTILE)


DAMAGES: Sequence[Callable[[bytes, random.Random], bytes]] = (cut, shuffle, double, insert, flip, swap_number, replace)
