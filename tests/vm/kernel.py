"""The lab's kernel: Debian's cloud kernel from bookworm-backports, unpacked into the user's cache and never installed.

It boots without an initramfs, because virtio-pci, virtiofs, virtio-console and NVMe are built into it (Linux 6.12;
6.1 has them as modules). Device-mapper and the filesystems are modules.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.vm.cache import keep
from tests.vm.debian import SUITE, Archive, from_archive, output, unpack
from tests.vm.errors import Unavailable

_META_PACKAGE = "linux-image-cloud-amd64"
_IMAGE = "linux-image-"


@dataclass(frozen=True, slots=True)
class Kernel:
    """An unpacked kernel package. Its directory is named by the release."""

    root: Path

    @property
    def release(self) -> str:
        """What `uname -r` says there."""
        return self.root.name

    @property
    def image(self) -> Path:
        """The bootable image."""
        return self.root / "boot" / f"vmlinuz-{self.release}"

    @property
    def headers(self) -> list[Path]:
        """The packages, not unpacked, that modules for this kernel are built with."""
        return sorted(self.root.glob("headers/*.deb"))


def download(target: Path) -> None:
    """Unpack the newest kernel of the suite into `target`, from the mirrors that this machine already uses."""

    def fetch(archive: Archive) -> None:
        names = [name for name in archive.dependencies(_META_PACKAGE) if name.startswith(_IMAGE)]
        if not names:
            raise Unavailable(f"{SUITE} has no {_META_PACKAGE}")
        release = names[0].removeprefix(_IMAGE)
        headers = header_packages(release, archive.dependencies(f"linux-headers-{release}"))
        # the headers come along because the suite keeps them for no kernel but its newest
        (target / "headers").mkdir(parents=True, exist_ok=True)
        for package in archive.download([*names, *headers]):
            if package.name.startswith(_IMAGE):
                unpack(package, target)
            else:
                shutil.move(package, target / "headers")
        output("depmod", "--basedir", str(target), release)

    from_archive(fetch)


def header_packages(release: str, dependencies: list[str]) -> list[str]:
    """Return the packages that modules are built with: a release's headers, and what of Linux they depend on."""
    return [
        f"linux-headers-{release}",
        *(name for name in dependencies if name.startswith(("linux-headers-", "linux-kbuild-"))),
    ]


def obtain(cache: Path, fetch: Callable[[Path], None] = download) -> Kernel:
    """Return the newest kernel in `cache`; `fetch` one into it when there is none.

    Delete its directory to get a newer one.
    """

    def make(target: Path) -> str:
        fetch(target)
        (image,) = target.glob("boot/vmlinuz-*")
        return image.name.removeprefix("vmlinuz-")

    return Kernel(keep(cache / "kernels", "*-cloud-amd64", make))
