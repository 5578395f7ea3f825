"""Text that shows what is in it, as names come from containers: Unicode can hide characters and rearrange them."""

from __future__ import annotations

import re

# printable by their category, yet drawn as nothing: fillers, joiners, selectors of variants
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def plain(text: str) -> str:
    r"""Return text that moves no cursor, hides nothing and reorders nothing: `a\u202eb` for a right-to-left override.

    Control and format characters, line ends, spaces that are not the usual one, unassigned characters and surrogates
    are written as Python does. Letters of scripts that run from right to left stay: whoever shows them isolates them.
    """
    if text.isprintable() and not _UNSEEN.search(text):
        return text
    return "".join(each if each.isprintable() and not _UNSEEN.match(each) else _escaped(each) for each in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
