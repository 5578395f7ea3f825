"""The lab's kernel: Debian's cloud kernel from bookworm-backports, unpacked into the user's cache and never installed.

It boots without an initramfs, because virtio-pci, virtiofs, virtio-console and NVMe are built into it (Linux 6.12;
6.1 has them as modules). Device-mapper and the filesystems are modules.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.vm.errors import Unavailable

_SUITE = "bookworm-backports"
_META_PACKAGE = "linux-image-cloud-amd64"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_DOWNLOAD_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Kernel:
    """An unpacked kernel package. Its directory is named by the release."""

    root: Path

    @property
    def image(self) -> Path:
        """The bootable image."""
        return self.root / "boot" / f"vmlinuz-{self.root.name}"


def default_cache() -> Path:
    """Return where unpacked kernels are kept from one session to the next."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ullage" / "kernels"


def parse_repositories(uris: str) -> list[str]:
    """Return the repositories that `apt-get update --print-uris` would ask, each once, in order.

    One line: `'http://deb.example/debian/dists/bookworm/InRelease' deb.example_debian_dists_bookworm_InRelease 0`.
    """
    return list(dict.fromkeys(re.findall(r"^'(\S+)/dists/\S+/InRelease'", uris, re.MULTILINE)))


def download(target: Path) -> None:
    """Unpack the newest kernel of the suite into `target`, from the mirrors that this machine already uses."""
    refusals = []
    for repository in parse_repositories(_output("apt-get", "update", "--print-uris")):
        with tempfile.TemporaryDirectory(prefix="ullage-apt-") as scratch:
            try:
                _unpack(_download_package(repository, Path(scratch)), target)
            except Unavailable as error:
                refusals.append(str(error))
            else:
                return
    raise Unavailable("no mirror of this machine has the lab's kernel\n" + "\n".join(refusals))


def obtain(cache: Path, fetch: Callable[[Path], None] = download) -> Kernel:
    """Return the newest kernel in `cache`; `fetch` one into it when there is none.

    Sessions at the same time fetch it once. A fetch that was cut short leaves nothing that passes for a kernel.
    Delete the directory to get a newer one.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kernels = [kernel for kernel in map(Kernel, cache.iterdir()) if kernel.image.exists()]
        if kernels:
            return max(kernels, key=lambda kernel: kernel.root.stat().st_mtime)
        unfinished = cache / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        fetch(unfinished)
        (image,) = unfinished.glob("boot/vmlinuz-*")
        return Kernel(unfinished.rename(cache / image.name.removeprefix("vmlinuz-")))


def _download_package(repository: str, scratch: Path) -> Path:
    sources = scratch / "sources.list"
    sources.write_text(f"deb [signed-by={_KEYRING}] {repository} {_SUITE} main\n")
    for directory in ("lists/partial", "cache/archives/partial"):
        (scratch / directory).mkdir(parents=True)
    private = [
        "-qq",
        f"-oDir::Etc::SourceList={sources}",
        "-oDir::Etc::SourceParts=/dev/null",
        f"-oDir::State::Lists={scratch}/lists",
        f"-oDir::Cache={scratch}/cache",
        "-oAPT::Sandbox::User=root",  # apt's own user may not enter our directory
        "-oAPT::Update::Error-Mode=any",
    ]
    _output("apt-get", *private, "update")
    found = re.search(r"Depends: (linux-image-\d\S+)", _output("apt-cache", *private, "depends", _META_PACKAGE))
    if found is None:
        raise Unavailable(f"{repository} {_SUITE} has no {_META_PACKAGE}")
    _output("apt-get", *private, "download", found[1], cwd=scratch)
    (package,) = scratch.glob("*.deb")
    return package


def _unpack(package: Path, target: Path) -> None:
    _output("dpkg-deb", "--extract", str(package), str(target))
    (modules,) = target.glob("lib/modules/*")
    _output("depmod", "--basedir", str(target), modules.name)


def _output(*command: str, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True, timeout=_DOWNLOAD_SECONDS)
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"{command[0]}: {error.stderr.strip()}") from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable(str(error)) from error
    return done.stdout
