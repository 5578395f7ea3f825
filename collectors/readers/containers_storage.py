"""The tables of containers/storage, which Podman, Buildah and CRI-O keep their layers, images and containers in.

Source: layers.go, images.go and containers.go of containers/storage; each file is a JSON list, and replaced as a whole.
`overlay-layers/layers.json`: `[{"id": "67a9…", "parent": "523d…", "diff-size": 1986560, "flags": {…}}]`, and since 2022
also volatile-layers.json; `overlay-images/images.json`; `overlay-containers/containers.json` and since 2022 also
volatile-containers.json. A layer with the flag `incomplete` was never finished, and goes when somebody next writes.
Where all that is: /etc/containers/storage.conf, man 5 containers-storage.conf.
"""

from __future__ import annotations

import tomllib
from typing import Any, NamedTuple

import msgspec

INCOMPLETE = "incomplete"


class Layer(NamedTuple):
    """A layer. `size` is the bytes of its archive as it was unpacked, None for one that was not."""

    id: str
    parent: str
    size: int | None
    is_incomplete: bool


class Image(NamedTuple):
    """An image: its uppermost layer, and those that are its uppermost for other mappings of users."""

    id: str
    layers: tuple[str, ...]


class Container(NamedTuple):
    """A container and its writable layer."""

    id: str
    layer: str


class Config(NamedTuple):
    """What a storage.conf says; empty where it is silent. `stores` are the roots of other stores that are read."""

    driver: str
    graph_root: str
    run_root: str
    stores: tuple[str, ...]


class _Options(msgspec.Struct):
    stores: list[str] = msgspec.field(name="additionalimagestores", default_factory=list)


class _Storage(msgspec.Struct):
    driver: str = ""
    graph_root: str = msgspec.field(name="graphroot", default="")
    run_root: str = msgspec.field(name="runroot", default="")
    image_store: str = msgspec.field(name="imagestore", default="")
    options: _Options = msgspec.field(default_factory=_Options)


class _Config(msgspec.Struct):
    storage: _Storage = msgspec.field(default_factory=_Storage)


class _Layer(msgspec.Struct):
    id: str
    parent: str | None = None
    size: int | None = msgspec.field(name="diff-size", default=None)
    flags: dict[str, Any] | None = None


class _Image(msgspec.Struct):
    id: str
    layer: str | None = None
    mapped: list[str] | None = msgspec.field(name="mapped-layers", default=None)


class _Container(msgspec.Struct):
    id: str
    layer: str | None = None


def parse_layers(text: bytes) -> list[Layer]:
    """Return the layers of a layers.json or volatile-layers.json; ValueError if it is none. An empty file has none."""
    return [
        Layer(
            each.id,
            each.parent or "",
            each.size if each.size is not None and each.size >= 0 else None,
            bool((each.flags or {}).get(INCOMPLETE)),
        )
        for each in _decode(text, _Layer)
    ]


def parse_images(text: bytes) -> list[Image]:
    """Return the images of an images.json; ValueError if it is none. An empty file has none."""
    return [
        Image(each.id, tuple(layer for layer in (each.layer, *(each.mapped or ())) if layer))
        for each in _decode(text, _Image)
    ]


def parse_containers(text: bytes) -> list[Container]:
    """Return the containers of a containers.json or volatile-containers.json; ValueError if it is none."""
    return [Container(each.id, each.layer or "") for each in _decode(text, _Container)]


def parse_config(text: bytes) -> Config:
    """Return what a storage.conf says; ValueError if it is none."""
    try:
        told = msgspec.convert(tomllib.loads(text.decode()), _Config).storage
    except (msgspec.ValidationError, RecursionError) as error:
        raise ValueError(str(error)) from error
    stores = (told.image_store, *told.options.stores)
    return Config(
        told.driver, _absolute(told.graph_root), _absolute(told.run_root), tuple(filter(None, map(_absolute, stores)))
    )


def _absolute(path: str) -> str:
    """Return a path of the system's store; one with `$HOME` in it is not."""
    return path if path.startswith("/") and "$" not in path else ""


def _decode(text: bytes, kind: Any) -> Any:
    if not text.strip():
        return []  # as containers/storage takes it
    try:
        return msgspec.json.decode(text, type=list[kind] | None) or []
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from error
