"""A reader with a bug two comparisons away from its seed, which nobody finds who does not see what is covered."""

from __future__ import annotations

SEED = b"7 419/512 13800/16384 - rw"


def parse(text: bytes) -> bytes:
    words = text.split(b" ")
    if len(words) == 5 and words[3] == b"-":
        mode = words[4]
        if mode[:1] == b"\xf7":
            if mode[1:2] == b"{":
                raise IndexError(text)
            return b"half the way"
        return mode
    return b""


def fuzz_planted(raw: bytes) -> None:
    parse(raw)
