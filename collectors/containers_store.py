"""Layers of Podman, Buildah and CRI-O: containers/storage with its overlay driver.

Source: drivers/overlay/overlay.go, layers.go and store.go of containers/storage; below a graph root
  overlay/ID/{diff,link,lower,work,merged,empty}, overlay/l/
  overlay-layers/layers.json, overlay-containers/containers.json, overlay-images/images.json; see the reader
What goes with the next boot is in tables called `volatile-…`, in the graph root or in the run root. Additional image
stores are graph roots by themselves; a layer may be on one of theirs. A layer is in a table before it has a directory.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from agent.errors import HostError, Malformed
from agent.host import Host
from collectors.layerlinks import Chain, Faults, affected, find_faults, read_chains, read_links, still_names
from collectors.readers import containers_storage
from collectors.readers.containers_storage import Image
from collectors.stored import (
    TICK,
    BrokenLink,
    Layer,
    Scan,
    State,
    Times,
    Unknown,
    directories,
    look_at,
    mounted_below,
    newest,
    times,
)

CONTENT = "diff"
_LAYER = re.compile(r"[0-9a-f]{64}")
_NO_LAYERS = ("l", "staging", "tempdirs")  # links; what is downloaded, or is about to go
_TABLES = (
    "overlay-layers/layers.json",
    "overlay-layers/volatile-layers.json",
    "overlay-containers/containers.json",
    "overlay-containers/volatile-containers.json",
)
_Entry = TypeVar("_Entry")


@dataclass(slots=True)
class _Tables:
    """What the tables of all stores say; `is_whole` is False where one could not be read."""

    layers: dict[str, containers_storage.Layer] = field(default_factory=dict)
    containers: dict[str, str] = field(default_factory=dict)  # ids by writable layer
    is_whole: bool = True

    def state(self, name: str) -> State | None:
        """Return what a layer is, None if it is in no table."""
        layer = self.layers.get(name)
        if layer is not None and layer.is_incomplete:
            return "incomplete"
        if name in self.containers:
            return "container"
        return "image" if layer is not None else None


@dataclass(slots=True)
class ContainersStore:
    """The overlay directory of the graph root `root`. `roots` are all graph and run roots of the node."""

    root: str
    path: str
    runtime: str
    roots: tuple[str, ...]
    unknown: Unknown = field(default_factory=Unknown)
    is_live: bool | None = None
    clock: Callable[[], float] = time.time
    driver: str = "overlay"

    def signature(self, host: Host) -> Hashable:
        """Return what is another one whenever a new scan could find something else."""
        return self._watched(host), self.unknown.stamp(self.clock())

    def _watched(self, host: Host) -> Times:
        return times(
            host, [self.path, f"{self.path}/l", *(f"{root}/{each}" for root in self.roots for each in _TABLES)]
        )

    def scan(self, host: Host, mounted: Collection[str], now: float) -> Scan:
        """Read what is there; see Store."""
        changed = newest(self._watched(host))
        links = read_links(host, self.path)
        names = [name for name in directories(host, self.path) if name not in _NO_LAYERS]
        tables = self._tables(host)
        looks = look_at(host, self.path, names, CONTENT)
        chains = read_chains(host, self.path, looks)
        states = {name: tables.state(name) for name in looks}
        strangers = {name: seen for name, seen in looks.items() if states[name] is None and _LAYER.fullmatch(name)}
        in_use = mounted_below(self.path, mounted)
        orphans = self.unknown.judge(strangers, in_use, now, is_known=tables.is_whole)
        if now - changed < TICK:
            self.unknown.look_again(now)
        elsewhere = {name for root in self.roots if root != self.root for name in host.listed(f"{root}/overlay/l")}
        faults = find_faults(host, links, chains, looks, elsewhere)
        count = links.of()
        layers = [
            Layer(
                name,
                states[name] or ("orphan" if name in orphans else "incomplete"),
                f"{self.path}/{name}",
                CONTENT,
                seen.identity,
                seen.files + count[name],
                tables.containers.get(name, ""),
                states[name] in ("image", "container")
                or (name in strangers and name not in in_use and self.unknown.is_old(seen, now)),
                tables.layers[name].size if name in tables.layers else None,
                len(chains.get(name, Chain()).lowers or ()),
            )
            for name, seen in looks.items()
        ]
        broken = tuple(self._broken(host, faults, chains, tables))
        return Scan(tuple(layers), faults.counts, broken, faults.litter, is_whole=tables.is_whole)

    def _tables(self, host: Host) -> _Tables:
        found = _Tables()
        for root in self.roots:
            for name in ("layers", "volatile-layers"):
                layers = self._table(host, f"{root}/overlay-layers/{name}.json", containers_storage.parse_layers)
                found.is_whole &= layers is not None
                found.layers |= {each.id: each for each in layers or ()}
            for name in ("containers", "volatile-containers"):
                path = f"{root}/overlay-containers/{name}.json"
                containers = self._table(host, path, containers_storage.parse_containers)
                found.is_whole &= containers is not None
                found.containers |= {each.layer: each.id for each in containers or () if each.layer}
        # no layer is an orphan where there is no table of layers
        found.is_whole &= host.exists(f"{self.root}/overlay-layers/layers.json")
        return found

    def _table(self, host: Host, path: str, parse: Callable[[bytes], list[_Entry]]) -> list[_Entry] | None:
        """Return a table's entries; None if it cannot be read, which is counted."""
        try:
            return parse(host.read_if_there(path))
        except HostError as error:
            host.skip(error)
        except ValueError as error:
            host.skip(Malformed(path, f"is not the JSON that we expect: {error}"[:500]))
        return None

    def _broken(self, host: Host, faults: Faults, chains: Mapping[str, Chain], tables: _Tables) -> Iterator[BrokenLink]:
        images: list[Image] | None = None
        for broken in faults.broken:
            if broken.why == "missing" and broken.layer:
                continue  # it is made anew with the next mount
            layers = set(affected(broken, chains, tables.layers, has_children=True)) - tables.containers.keys()
            containers = [
                tables.containers[name]
                for name in affected(broken, chains, tables.containers, has_children=False)
                if not broken.link or still_names(host, f"{self.path}/{name}", broken)
            ]
            if images is None:
                path = f"{self.root}/overlay-images/images.json"
                images = self._table(host, path, containers_storage.parse_images) or []
            count = sum(not layers.isdisjoint(image.layers) for image in images)
            if layers or containers:
                yield BrokenLink(broken.layer, broken.link, broken.why, tuple(sorted(containers)), count)
