from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.vm.errors import Unavailable
from tests.vm.kernel import Kernel, header_packages, obtain


def unpack(target: Path, release: str = "6.12.1-cloud-amd64") -> None:
    (target / "boot").mkdir(parents=True)
    (target / "boot" / f"vmlinuz-{release}").touch()


def test_sessions_at_the_same_time_fetch_one_kernel(tmp_path: Path) -> None:
    fetched = []

    def fetch(target: Path) -> None:
        fetched.append(target)
        time.sleep(0.05)  # long enough for the others to come in between
        unpack(target)

    with ThreadPoolExecutor(4) as sessions:
        kernels = list(sessions.map(lambda _: obtain(tmp_path, fetch), range(4)))

    assert kernels == [Kernel(tmp_path / "kernels" / "6.12.1-cloud-amd64")] * 4
    assert len(fetched) == 1


def test_a_fetch_that_was_cut_short_is_begun_anew(tmp_path: Path) -> None:
    def fetch_half(target: Path) -> None:
        unpack(target, release="5.0-half")
        raise Unavailable("the mirror went away")

    with pytest.raises(Unavailable):
        obtain(tmp_path, fetch_half)

    kernel = obtain(tmp_path, unpack)

    assert kernel.image == tmp_path / "kernels" / "6.12.1-cloud-amd64" / "boot" / "vmlinuz-6.12.1-cloud-amd64"


def test_modules_are_built_with_the_headers_and_what_of_linux_they_depend_on() -> None:
    dependencies = ["linux-base", "linux-headers-6.12.1-common", "linux-image-6.12.1", "linux-kbuild-6.12.1", "gcc-12"]

    assert header_packages("6.12.1-cloud-amd64", dependencies) == [
        "linux-headers-6.12.1-cloud-amd64",
        "linux-headers-6.12.1-common",
        "linux-kbuild-6.12.1",
    ]
