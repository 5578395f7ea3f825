"""The lab's OpenZFS: Debian's zfs-dkms from bookworm-backports, built for the lab's kernel into the user's cache.

The build takes minutes (three on two cores), so a session that will need it begins it early, in the background.
The tools are Debian's own, unpacked; neither they nor the modules ever come to this host. No package has the modules.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.vm import kernel
from tests.vm.cache import default_cache, keep
from tests.vm.debian import Archive, from_archive, output, unpack
from tests.vm.errors import LabError, Unavailable
from tests.vm.kernel import Kernel
from tests.vm.machine import Machine

_SOURCE = "zfs-dkms"
_TOOLS = ("zfsutils-linux", "libzfs6linux", "libzpool6linux", "libnvpair3linux", "libuutil3linux")
_MODULES = ("spl", "zfs")  # in the order to load them in
_NEEDED = ("gcc", "make", "strip")
_BUILD_SECONDS = 1500.0
_INSTALL_SECONDS = 120.0
_CHECKOUT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Zfs:
    """Modules for one kernel, in `modules`, and what goes over a machine's root, in `layer`."""

    root: Path

    def install(self, machine: Machine) -> None:
        """Put the tools into a running machine, which sees `root`, and load the modules there."""
        loading = [f'insmod "$0/modules/{name}.ko"' for name in _MODULES]
        script = " && ".join(['cp -a "$0/layer/." /', "ldconfig", *loading])
        machine.run(["sh", "-c", script, str(self.root)], timeout=_INSTALL_SECONDS)


def entry_name(release: str, version: str, gcc: str) -> str:
    """Return what a build is kept as: all that it depends on."""
    return f"{release}_zfs-{version}_gcc-{gcc}"


def merge_usr(layer: Path) -> None:
    """Move what packages have in /bin, /sbin and /lib below /usr, as Debian's root has links there."""
    for name in ("bin", "sbin", "lib"):
        if (layer / name).exists():
            shutil.copytree(layer / name, layer / "usr" / name, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(layer / name)


def adapt_headers(usr: Path, release: str) -> Path:
    """Make unpacked headers usable below `usr` instead of /usr; return the release's own."""
    headers = usr / "src" / f"linux-headers-{release}"
    makefile = headers / "Makefile"
    makefile.write_text(makefile.read_text().replace("/usr/src/", f"{usr}/src/"))
    # Without debugging information half the time is enough. The C side of it, autoconf.h, stays: it shapes structures.
    settings = headers / "include" / "config" / "auto.conf"
    settings.write_text(re.sub(r"^CONFIG_DEBUG_INFO.*\n", "", settings.read_text(), flags=re.MULTILINE))
    (headers / "vmlinux").unlink(missing_ok=True)  # its types would be added to the modules, by a tool that is not here
    return headers


def build(base: Kernel, target: Path) -> str:
    """Build into `target` and return the version; takes minutes, and 200 MB of the temporary directory."""
    layer = target / "layer"
    with tempfile.TemporaryDirectory(prefix="ullage-zfs-") as scratch:
        source = Path(scratch)

        def fetch(archive: Archive) -> None:
            for package in archive.download([_SOURCE, *_TOOLS]):
                unpack(package, source if package.name.startswith(_SOURCE) else layer)

        from_archive(fetch)
        for package in base.headers:
            unpack(package, source)
        headers = adapt_headers(source / "usr", base.release)
        (common,) = headers.parent.glob("linux-headers-*-common")
        (zfs,) = headers.parent.glob("zfs-*")
        where = [f"--with-linux={common}", f"--with-linux-obj={headers}"]
        configure = [f"{zfs}/configure", "--disable-dependency-tracking", "--with-config=kernel", *where]
        output(*configure, cwd=zfs, seconds=_BUILD_SECONDS)
        output("make", f"-j{os.cpu_count()}", cwd=zfs, seconds=_BUILD_SECONDS)
        (target / "modules").mkdir()
        for name in _MODULES:
            module = shutil.copy(zfs / "module" / f"{name}.ko", target / "modules")
            output("strip", "--strip-debug", str(module))
    merge_usr(layer)
    return zfs.name.removeprefix("zfs-")


def compiler() -> str:
    """Return the version of this host's compiler; raise Unavailable when something to build with is absent."""
    absent = [tool for tool in _NEEDED if shutil.which(tool) is None]
    if absent:
        raise Unavailable(f"ZFS needs {', '.join(absent)}; see tests/packages.txt")
    return output("gcc", "-dumpfullversion").strip()


def obtain(cache: Path, base: Kernel, gcc: str, make: Callable[[Kernel, Path], str] = build) -> Zfs:
    """Return the newest ZFS in `cache` for a kernel and a compiler; `make` one when there is none."""
    pattern = entry_name(base.release, "*", gcc)
    return Zfs(keep(cache / "zfs", pattern, lambda target: entry_name(base.release, make(base, target), gcc)))


class Obtaining:
    """`obtain`, in a process of its own that gives way to all others. All of it ends with the thread that began it.

    Its temporary directory is in memory, and nobody else sees it: tests that measure this host's disks go on meanwhile.
    """

    def __init__(self) -> None:
        memory = default_cache() / "memory"
        memory.mkdir(parents=True, exist_ok=True)
        alone = ["unshare", "--mount", "--propagation=private", "--pid", "--kill-child"]
        # no session of its own: where the kernel schedules by sessions, being nice means nothing outside of it
        script = 'mount -t tmpfs memory "$TMPDIR" && exec nice -n 19 "$0" -m tests.vm.zfs'
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *alone, "sh", "-c", script, sys.executable],
            cwd=_CHECKOUT,
            env=os.environ | {"TMPDIR": str(memory)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @cached_property
    def result(self) -> Zfs:
        """What came of it, waited for; raises Unavailable if nothing did."""
        try:
            said, complaint = self._process.communicate(timeout=_BUILD_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"ZFS was not built in {_BUILD_SECONDS:g} s") from error
        if self._process.returncode != 0:
            raise Unavailable(f"ZFS cannot be had\n{complaint.strip()}")
        return Zfs(Path(said.strip()))

    def stop(self) -> None:
        """End it, if it has not ended."""
        self._process.kill()
        self._process.communicate()


def main() -> None:
    cache = default_cache()
    try:
        print(obtain(cache, kernel.obtain(cache), compiler()).root)
    except LabError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
