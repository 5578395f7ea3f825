"""Docker's layers, as its overlay2 graph driver and its own database of images keep them.

Sources: moby's daemon/graphdriver/overlay2/overlay.go, image/rootfs.go.
`overlay2/ID/lower` is `l/OYIERDYJWJIKQQ34D5X5GQ7WOA:l/JIKRBBDA3UCB4CHXEKME3OM3GB`, the uppermost first, and each of
them a link `../ID/diff`. containers/storage has taken both over.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import msgspec

_NAME = re.compile(r"[A-Z0-9]{26}")
_LOWER = re.compile(r"l/[A-Z0-9]{26}")
_TARGET = re.compile(r"\.\./([^/]+)/diff/?")


class _RootFs(msgspec.Struct):
    layers: list[str] | None = msgspec.field(name="diff_ids", default=None)


class _Image(msgspec.Struct):
    rootfs: _RootFs = msgspec.field(default_factory=_RootFs)


def parse_lower(text: bytes) -> tuple[str, ...]:
    """Return the names in `l/` that a `lower` file has, the uppermost first; empty for those of another form."""
    return tuple(
        part.removeprefix("l/") if _LOWER.fullmatch(part) else ""
        for part in text.decode("utf-8", "replace").strip().split(":")
        if part
    )


def parse_link(text: bytes) -> str:
    """Return the name in `l/` that a `link` file has; empty if that is empty, as a crash leaves it.

    Raises ValueError if it has anything else in it: in somebody's own store it may be a link to somebody else's file,
    whose content is not for us to tell.
    """
    name = text.decode("utf-8", "replace").strip()
    if name and not _NAME.fullmatch(name):
        raise ValueError("has no name of a link in it")
    return name


def parse_target(link: str) -> str | None:
    """Return the directory of the layer that a link in `l/` leads to; None for one that leads elsewhere."""
    match = _TARGET.fullmatch(link)
    return match[1] if match is not None and match[1] not in (".", "..") else None


def parse_top_layer(text: bytes) -> str:
    """Return the chain id, `sha256:…`, of an image's uppermost layer, empty if it has none; ValueError if it is none.

    A layer's chain id is the digest of that below it and of its own content's digest, with a space between.
    """
    chain = ""
    for layer in _decode(text, _Image).rootfs.layers or ():
        chain = f"sha256:{hashlib.sha256(_utf8(f'{chain} {layer}')).hexdigest()}" if chain else layer
    return chain


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _decode(text: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from error
