"""A layer on disk that changes at random, and what is truly in it."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

from collectors.layerwalk import Count


def truth(layer: Path, content: str) -> Count:
    """Return what a count of the layer must be, by a look at every inode."""
    files, sizes, inside, inside_sizes = set(), 0, set(), 0
    for directory, names, others in os.walk(layer):
        is_inside = f"{directory}/".startswith(f"{layer}/{content}/")
        entries = [f"{directory}/{name}" for name in names + others]
        for path in entries:
            found = os.lstat(path)
            if directory == str(layer) and path not in {f"{layer}/{name}" for name in names}:
                continue
            if found.st_ino not in files:
                files.add(found.st_ino)
                sizes += found.st_blocks * 512
            if (is_inside or path == f"{layer}/{content}") and found.st_ino not in inside:
                inside.add(found.st_ino)
                inside_sizes += found.st_blocks * 512
    return Count(len(files), sizes, len(inside), inside_sizes)


class Churn:
    """Changes a layer: makes, removes, moves, links, swaps."""

    def __init__(self, layer: Path, seed: int) -> None:
        self.layer = layer
        self._chance = random.Random(seed)
        self._number = 0
        for name in ("diff", "work"):
            (layer / name).mkdir(parents=True, exist_ok=True)

    def _directories(self) -> list[str]:
        return [path for top in ("diff", "work") for path, _, _ in os.walk(self.layer / top)]

    def _name(self) -> str:
        self._number += 1
        return f"n{self._chance.randrange(40)}"

    def change(self, times: int) -> None:
        """Make so many changes; one that makes no sense is none."""
        for _ in range(times):
            change = self._chance.choice(
                (self._make, self._make, self._make_directory, self._remove, self._move, self._link, self._replace)
            )
            try:
                change()
            except OSError:
                continue

    def _place(self) -> str:
        return self._chance.choice(self._directories())

    def _entries(self) -> list[str]:
        place = self._place()
        return [f"{place}/{name}" for name in sorted(os.listdir(place))]

    def _make(self) -> None:
        with open(f"{self._place()}/{self._name()}", "xb") as file:
            file.write(b"x" * self._chance.choice((0, 1, 5000)))

    def _make_directory(self) -> None:
        os.mkdir(f"{self._place()}/{self._name()}")

    def _remove(self) -> None:
        for path in self._entries()[:1]:
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)

    def _move(self) -> None:
        for path in self._entries()[-1:]:
            os.rename(path, f"{self._place()}/{self._name()}")

    def _link(self) -> None:
        for path in self._entries():
            if os.path.isfile(path):
                os.link(path, f"{self._place()}/{self._name()}")
                return

    def _replace(self) -> None:
        """Have a directory replaced by another of its name, which often has its inode."""
        for path in self._entries():
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
                os.mkdir(path)
                Path(path, "new").touch()
                return
