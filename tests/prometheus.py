"""Prometheus' programs: those installed here, and the newest of any Debian suite, unpacked into the user's cache."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.refusal import refuse
from tests.vm.cache import keep, shelf
from tests.vm.debian import Archive, from_archive, unpack
from tests.vm.errors import Unavailable

NEWEST_SUITE = "sid"
PACKAGES = ("prometheus", "promtool", "prometheus-alertmanager")


def installed(program: str) -> str:
    """Return a program of this machine; the test is skipped where it is missing, and fails in CI."""
    path = os.environ.get(program.upper().replace("-", "_")) or shutil.which(program)
    if path is None:
        refuse(f"{program} is not installed")
    return str(path)


def newest(program: str) -> str:
    """Return a program of the newest packages; downloaded once. They need nothing that bookworm has not."""

    def make(unfinished: Path) -> str:
        version = ""

        def fetch(archive: Archive) -> None:
            nonlocal version
            for package in archive.download(PACKAGES):
                unpack(package, unfinished)
                if package.name.startswith("promtool_"):
                    version = package.name.split("_")[1]

        from_archive(fetch, NEWEST_SUITE)
        return f"prometheus-{version}"

    try:
        directory = keep(shelf("prometheus"), "prometheus-*", make)
    except Unavailable as error:
        refuse(str(error))
    return str(directory / "usr" / "bin" / program)
