from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.vm.errors import Unavailable
from tests.vm.kernel import Kernel, obtain, parse_repositories


def unpack(target: Path, release: str = "6.12.1-cloud-amd64") -> None:
    (target / "boot").mkdir(parents=True)
    (target / "boot" / f"vmlinuz-{release}").touch()


def test_each_repository_of_apt_is_found_once() -> None:
    uris = """\
'http://deb.example/debian/dists/bookworm/InRelease' deb.example_debian_dists_bookworm_InRelease 0
'http://deb.example/debian/dists/bookworm-updates/InRelease' deb.example_debian_dists_bookworm-updates_InRelease 0
'https://security.example/dists/bookworm-security/InRelease' security.example_dists_bookworm-security_InRelease 0
'http://deb.example/debian/dists/bookworm/main/binary-all/Packages.xz' deb.example_dists_bookworm_main_Packages 0
"""

    assert parse_repositories(uris) == ["http://deb.example/debian", "https://security.example"]


def test_sessions_at_the_same_time_fetch_one_kernel(tmp_path: Path) -> None:
    fetched = []

    def fetch(target: Path) -> None:
        fetched.append(target)
        time.sleep(0.05)  # long enough for the others to come in between
        unpack(target)

    with ThreadPoolExecutor(4) as sessions:
        kernels = list(sessions.map(lambda _: obtain(tmp_path, fetch), range(4)))

    assert kernels == [Kernel(tmp_path / "6.12.1-cloud-amd64")] * 4
    assert len(fetched) == 1


def test_a_fetch_that_was_cut_short_is_begun_anew(tmp_path: Path) -> None:
    def fetch_half(target: Path) -> None:
        unpack(target, release="5.0-half")
        raise Unavailable("the mirror went away")

    with pytest.raises(Unavailable):
        obtain(tmp_path, fetch_half)

    assert obtain(tmp_path, unpack).image == tmp_path / "6.12.1-cloud-amd64" / "boot" / "vmlinuz-6.12.1-cloud-amd64"
