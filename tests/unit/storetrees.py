"""Trees as Docker, containerd and containers/storage keep their layers in, with what the real ones have in them."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from pathlib import Path

CORPUS = Path(__file__).resolve().parents[1] / "fuzz" / "corpus"


def hexadecimal(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def short(layer: str) -> str:
    """Return the name of a layer's link, 26 characters."""
    return base64.b32encode(hashlib.sha256(layer.encode()).digest()).decode()[:26]


class Overlay:
    """A directory of layers with links, as Docker and containers/storage have it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "l").mkdir(parents=True, exist_ok=True)

    def layer(self, name: str, *lowers: str) -> str:
        """Make a layer on others, the uppermost first; return its name."""
        for directory in ("diff", "work"):
            (self.path / name / directory).mkdir(parents=True)
        (self.path / name / "link").write_text(short(name))
        if lowers:
            (self.path / name / "lower").write_text(":".join(f"l/{short(each)}" for each in lowers))
        (self.path / "l" / short(name)).symlink_to(f"../{name}/diff")
        return name

    def lowers(self, name: str) -> list[str]:
        """Return the layers that a layer and its lowers are."""
        by_link = {short(each.name): each.name for each in self.path.iterdir()}
        lower = self.path / name / "lower"
        below = [by_link[each[2:]] for each in lower.read_text().split(":")] if lower.exists() else []
        return [name, *below]

    def link(self, name: str) -> Path:
        return self.path / "l" / short(name)


class DockerTree(Overlay):
    """A data-root with the overlay2 driver."""

    def __init__(self, root: Path) -> None:
        super().__init__(root / "overlay2")
        self.root = root
        self.layerdb = root / "image/overlay2/layerdb"
        for each in ("sha256", "mounts", "tmp"):
            (self.layerdb / each).mkdir(parents=True)
        self.images = root / "image/overlay2/imagedb/content/sha256"
        self.images.mkdir(parents=True)
        self._diffs: dict[str, list[str]] = {}

    def image(self, name: str, parent: str = "", cache_id: str = "") -> str:
        """Make an image of one layer more than another has; return that layer."""
        layer = self.layer(cache_id or hexadecimal(name), *(self.lowers(parent) if parent else ()))
        diffs = self._diffs[layer] = [*self._diffs.get(parent, ()), f"sha256:{hexadecimal('diff ' + name)}"]
        place = self.layerdb / "sha256" / self.chain(layer).removeprefix("sha256:")
        place.mkdir()
        (place / "cache-id").write_text(layer)
        (place / "size").write_text("1982291")
        (self.images / hexadecimal("image " + name)).write_text(json.dumps({"rootfs": {"diff_ids": diffs}}))
        return layer

    def chain(self, layer: str) -> str:
        chain, *others = self._diffs[layer]
        for diff in others:
            chain = f"sha256:{hexadecimal(f'{chain} {diff}')}"
        return chain

    def container(self, name: str, image: str) -> tuple[str, str]:
        """Make a container; return its id and its layer."""
        mount = hexadecimal("mount " + name)
        init = self.layer(f"{mount}-init", *self.lowers(image))
        self.layer(mount, init, *self.lowers(image))
        place = self.layerdb / "mounts" / hexadecimal(name)
        place.mkdir()
        (place / "mount-id").write_text(mount)
        (place / "init-id").write_text(init)
        return place.name, mount

    def write_set(self, name: str = "write-set-3489632647") -> Path:
        """Begin to unpack a layer."""
        place = self.layerdb / "tmp" / name
        place.mkdir()
        (place / "tar-split.json.gz").touch()
        return place

    def buildkit(self) -> Path:
        """Have BuildKit's snapshots as recorded; return their file."""
        file = self.root / "buildkit/snapshots.db"
        file.parent.mkdir()
        shutil.copy(CORPUS / "bolt/buildkit-snapshots.db", file)
        return file


class ContainerdTree:
    """The overlayfs snapshotter of a root, with the snapshots 1 to 5 as recorded."""

    def __init__(self, root: Path) -> None:
        self.path = root / "io.containerd.snapshotter.v1.overlayfs"
        self.ingest = root / "io.containerd.content.v1.content/ingest"
        self.ingest.mkdir(parents=True)
        for number in range(1, 6):
            self.snapshot(str(number))
        shutil.copy(CORPUS / "bolt/containerd-metadata.db", self.path / "metadata.db")

    def snapshot(self, name: str) -> None:
        for directory in ("fs", "work"):
            (self.path / "snapshots" / name / directory).mkdir(parents=True)


class ContainersTree(Overlay):
    """A graph root of containers/storage, with tables as the test says."""

    def __init__(self, root: Path) -> None:
        super().__init__(root / "overlay")
        self.root = root
        (self.path / ".has-mount-program").touch()
        for each in ("layers", "containers", "images"):
            (root / f"overlay-{each}").mkdir()
        self.write("layers", [])

    def write(self, table: str, entries: list[dict[str, object]]) -> Path:
        """Write a table such as `layers` or `volatile-layers`; return its file."""
        file = self.root / f"overlay-{table.rpartition('-')[2]}" / f"{table}.json"
        file.write_text(json.dumps(entries))
        return file
