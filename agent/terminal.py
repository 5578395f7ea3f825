"""Text for a person's terminal, of which a container may have written a part."""

from __future__ import annotations


def plain(text: str) -> str:
    """Return text that does nothing to a terminal: what is not printable is shown as an escape."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
