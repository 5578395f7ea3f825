r"""overlayfs as the mount table and the module's parameters show it (fs/overlayfs/params.c, super.c).

Super options: `rw,lowerdir=/l/A:/l/B,upperdir=/u/diff,workdir=/u/work,metacopy=on`, or where the layers were set one by
one (Linux 6.8) `lowerdir+=/l/A,lowerdir+=/l/B,datadir+=/d`. Space, tab, newline, comma and backslash are octal escapes
there (`\054`), and with `lowerdir+` the colon too (`\072`). Below that, the older form has overlayfs's own escapes: a
backslash before a colon, a comma or a backslash of a name.

An option is shown only where it differs from the module's parameter, as that is *now*: so an absent one has the
parameter's value, whatever that was at the mount (seen on 6.18 with each parameter changed under a mount).
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from collectors.readers.mountinfo import unescape

UNKNOWN = "unknown"
OPTIONS = ("redirect_dir", "metacopy", "index", "nfs_export", "verity", "volatile", "userxattr")
_VALUES = {
    "redirect_dir": ("on", "off", "follow", "nofollow"),
    "metacopy": ("on", "off"),
    "index": ("on", "off"),
    "nfs_export": ("on", "off"),
    "verity": ("on", "off", "require"),
    "volatile": ("on", "off"),
    "userxattr": ("on", "off"),
}
_ADDED = ("lowerdir+", "datadir+")
_TAKEN = re.compile(r"\\(.)", re.DOTALL)
_SEPARATOR = re.compile(r"(?<!\\)((?:\\\\)*):")
_DIGITS = 15  # what a float holds exactly


class Layers(NamedTuple):
    """The layers of a mount, topmost first, as the paths that were given; `upper` is empty where it is read-only.

    `told` are options by name, as far as they are shown. `data_bytes` is what mount(2) was given of what is shown, None
    where the layers were set one by one, which has no limit.
    """

    lowers: tuple[str, ...]
    data_lowers: tuple[str, ...]
    upper: str
    work: str
    told: Mapping[str, str]
    data_bytes: int | None


def parse_options(options: Iterable[str]) -> Layers:
    """Return the layers and options of a mount's super options, split at commas and still escaped."""
    lowers, data_lowers, told = list[str](), list[str](), dict[str, str]()
    paths = {"upperdir": "", "workdir": ""}
    size, is_added = 0, False
    for option in options:
        key, _, escaped = option.partition("=")
        value = unescape(escaped)
        if key in _ADDED:
            is_added = True
            (lowers if key == "lowerdir+" else data_lowers).extend([value] if value else [])
        elif key == "lowerdir":
            above, below = _split(value)
            lowers, data_lowers = [*lowers, *above], [*data_lowers, *below]
        elif key in paths:
            paths[key] = _TAKEN.sub(r"\1", value)
        elif key == "volatile" or option == "fsync=volatile":
            told["volatile"] = "on"
        elif key in _VALUES:
            told[key] = value or "on"
        else:
            continue  # rw, and what the kernel shows unasked, such as uuid=on
        size += len(os.fsencode(f"{key}={value}" if value else key)) + 1
    return Layers(
        tuple(lowers), tuple(data_lowers), paths["upperdir"], paths["workdir"], told, None if is_added else size
    )


def _split(text: str) -> tuple[list[str], list[str]]:
    """Return the lower layers of `A:B::D`, and those for data alone, which stand after two colons (since 6.5)."""
    parts = _SEPARATOR.sub("\\1\0", text).split("\0")
    names = [_TAKEN.sub(r"\1", part) for part in parts]
    first = next((place for place, name in enumerate(names) if place and not name), len(names))
    return [name for name in names[:first] if name], [name for name in names[first:] if name]


def resolve(layers: Layers, mountpoint: str) -> Layers:
    """Return the layers with whole paths where the mount tells what they are relative to; others are empty.

    Docker mounts from its storage directory when the options would not fit a page: `lowerdir=l/A:l/B,upperdir=ID/diff`
    at `/var/lib/docker/overlay2/ID/merged`.
    """
    home, layer = posixpath.split(posixpath.dirname(mountpoint))
    is_dockers = layer and layers.upper == f"{layer}/diff"

    def whole(path: str) -> str:
        if path.startswith("/"):
            return path
        return posixpath.join(home, path) if path and is_dockers else ""

    return layers._replace(lowers=tuple(map(whole, layers.lowers)), upper=whole(layers.upper), work=whole(layers.work))


def parse_parameter(text: bytes) -> int | None:
    """Return a module's parameter: 1 and 0 for Y and N, numbers as they are, None for anything else."""
    word = text.strip()
    if word in (b"Y", b"N"):
        return int(word == b"Y")
    return int(word) if word.isdigit() and len(word) <= _DIGITS else None


def effective(told: Mapping[str, str], parameters: Mapping[str, int]) -> dict[str, str]:
    """Return the value in force of each of OPTIONS; `unknown` where its parameter is not known."""
    found = {
        "metacopy": told.get("metacopy") or _switch(parameters, "metacopy"),
        "index": told.get("index") or _switch(parameters, "index"),
        "nfs_export": told.get("nfs_export") or _switch(parameters, "nfs_export"),
        "redirect_dir": told.get("redirect_dir") or _switch(parameters, "redirect_dir"),
        # these have no parameter
        "verity": told.get("verity", "off"),
        "volatile": told.get("volatile", "off"),
        "userxattr": told.get("userxattr", "off"),
    }
    if found["redirect_dir"] == "off":  # then redirects that are there are followed, or not
        follow = _switch(parameters, "redirect_always_follow")
        found["redirect_dir"] = {"on": "follow", "off": "nofollow"}.get(follow, UNKNOWN)
    return {name: found[name] if found[name] in _VALUES[name] else UNKNOWN for name in OPTIONS}


def _switch(parameters: Mapping[str, int], name: str) -> str:
    if name not in parameters:
        return UNKNOWN
    return "on" if parameters[name] else "off"
