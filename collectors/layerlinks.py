"""The short links to layers, `l/`, that overlay mounts are made of, and which of them do not lead where they should.

Source: moby's daemon/graphdriver/overlay2/overlay.go, and drivers/overlay/overlay.go of containers/storage, which has
it from there. A layer is mounted by the links that its `lower` names. Docker never makes a link anew, but
containers/storage does while the layer itself is there.
Both make a layer's directory before its link, and remove the link before it. So what was listed is looked at once more,
in that order, before it counts as broken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from agent.errors import HostError, Malformed, Vanished
from agent.host import Host
from collectors.readers.docker_layers import parse_link, parse_lower, parse_target
from collectors.stored import Why

LINK_MOST = 128  # bytes: 26 by both
LOWER_MOST = 1 << 17  # bytes: 128 layers take 3.7 KiB, those of containers/storage 500


class Chain(NamedTuple):
    """What a layer's own files say: its `link`, the links of those below it; None for a file that is not there."""

    link: str | None = None
    lowers: tuple[str, ...] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether a file is there with nothing in it, as a crash of the machine leaves it."""
        return self.link == "" or self.lowers == ()


class Broken(NamedTuple):
    """A link that leads nowhere, or a layer whose own files are empty: then `link` is empty. `layer` may be unknown."""

    layer: str
    link: str
    why: Why


@dataclass(frozen=True, slots=True)
class Links:
    """A store's links as they were listed, with the layer that each leads to; None for one that leads elsewhere."""

    path: str  # of the store
    targets: Mapping[str, str | None]

    def of(self) -> Counter[str]:
        """Return how many links lead to each layer."""
        return Counter(target for target in self.targets.values() if target is not None)


def read_links(host: Host, path: str) -> Links:
    """Read the links of the store at `path`. Its layers have to be listed after them."""
    targets: dict[str, str | None] = {}
    for name in host.listed(f"{path}/l"):
        try:
            targets[name] = parse_target(host.link(f"{path}/l/{name}"))
        except HostError:
            continue  # it is gone, or no link at all
    return Links(path, targets)


def read_chain(host: Host, path: str) -> Chain:
    """Return what the layer at `path` says of links. Raises a HostError."""
    link, lower = _start(host, f"{path}/link", LINK_MOST), _start(host, f"{path}/lower", LOWER_MOST)
    try:
        return Chain(None if link is None else parse_link(link), None if lower is None else parse_lower(lower))
    except ValueError as error:
        raise Malformed(f"{path}/link", str(error)) from error


def read_chains(host: Host, path: str, names: Iterable[str]) -> dict[str, Chain]:
    """Return what these layers of the store at `path` say; those that refuse are counted, and left out."""
    chains: dict[str, Chain] = {}
    for name in names:
        with host.skipping():
            chains[name] = read_chain(host, f"{path}/{name}")
    return chains


def _start(host: Host, path: str, most: int) -> bytes | None:
    try:
        text = host.read_start(path, most)
    except Vanished:
        return None
    if len(text) == most:
        raise Malformed(path, f"is longer than {most} bytes")
    return text


@dataclass(frozen=True, slots=True)
class Faults:
    """What is wrong with a store's links: how many of each kind, and each by itself."""

    counts: Mapping[str, int]
    broken: tuple[Broken, ...]
    litter: tuple[str, ...]


def find_faults(
    host: Host, links: Links, chains: Mapping[str, Chain], layers: Collection[str], elsewhere: Collection[str] = ()
) -> Faults:
    """Return what is wrong. `layers` were listed after the links, `chains` has those whose files could be read.

    A dangling link that no layer names is litter. `elsewhere` are links of other stores that layers may name too.
    """
    named = {lower for chain in chains.values() for lower in chain.lowers or () if lower}
    own = {chain.link: name for name, chain in chains.items() if chain.link}
    dangling = [
        name
        for name, target in links.targets.items()
        if (target is None or target not in layers) and _is_dangling(host, links.path, name)
    ]
    missing = [
        name
        for name in sorted((named | own.keys()) - links.targets.keys() - set(elsewhere))
        if not _is_there(host, f"{links.path}/l/{name}")
    ]
    empty = [name for name, chain in chains.items() if chain.is_empty]
    broken = [
        *(Broken(own.get(name) or links.targets[name] or "", name, "dangling") for name in dangling if name in named),
        *(Broken(own.get(name, ""), name, "missing") for name in missing),
        *(Broken(name, "", "empty") for name in empty),
    ]
    live = len(links.targets) - len(dangling)
    counts = {"live": live, "dangling": len(dangling), "missing": len(missing), "empty": len(empty)}
    return Faults(counts, tuple(broken), tuple(name for name in dangling if name not in named))


def still_names(host: Host, path: str, broken: Broken) -> bool:
    """Return whether the layer at `path`, whose `lower` named a broken link, is there and does so still."""
    try:
        return broken.link in (read_chain(host, path).lowers or ())
    except HostError:
        return False


def _is_dangling(host: Host, path: str, name: str) -> bool:
    try:
        target = parse_target(host.link(f"{path}/l/{name}"))
        if target is not None:
            host.lstat(f"{path}/{target}/diff")
            return False
    except Vanished:
        pass
    except HostError:
        return False
    return _is_there(host, f"{path}/l/{name}")


def _is_there(host: Host, path: str) -> bool:
    try:
        host.link(path)
    except Vanished:
        return False
    except HostError:
        return True
    return True


def is_affected(broken: Broken, name: str, chain: Chain, *, has_children: bool) -> bool:
    """Return whether the layer `name` cannot be mounted; or with `has_children` no new layer be made on it."""
    if not broken.link:
        return name == broken.layer and (chain.lowers == () or (has_children and chain.link == ""))
    is_own = has_children and (chain.link == broken.link or name == broken.layer)  # the layer itself may be gone
    return broken.link in (chain.lowers or ()) or is_own


def affected(broken: Broken, chains: Mapping[str, Chain], names: Iterable[str], *, has_children: bool) -> list[str]:
    """Return which layers a broken link hits; see `is_affected`."""
    return [name for name in names if is_affected(broken, name, chains.get(name, Chain()), has_children=has_children)]
