"""containerd's configuration, /etc/containerd/config.toml (man 5 containerd-config.toml): where its files are."""

from __future__ import annotations

import tomllib
from typing import Any, NamedTuple

_OVERLAYFS = ("io.containerd.snapshotter.v1.overlayfs", "overlayfs")  # the second by version 1 of the file


class Config(NamedTuple):
    """What a config.toml says; empty where it is silent. `overlayfs` is where that snapshotter's files are instead."""

    root: str
    state: str
    overlayfs: str


def parse_config(text: bytes) -> Config:
    """Return what a config.toml says; ValueError if it is none."""
    try:
        told = tomllib.loads(text.decode())
    except RecursionError as error:
        raise ValueError(str(error)) from error
    plugins = told.get("plugins")
    places = [_path(plugins.get(name), "root_path") for name in _OVERLAYFS] if isinstance(plugins, dict) else []
    return Config(_path(told, "root"), _path(told, "state"), next(filter(None, places), ""))


def _path(table: Any, name: str) -> str:
    found = table.get(name) if isinstance(table, dict) else None
    return found if isinstance(found, str) and found.startswith("/") else ""
