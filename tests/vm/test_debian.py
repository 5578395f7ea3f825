from __future__ import annotations

from tests.vm.debian import parse_dependencies, parse_repositories


def test_each_repository_of_apt_is_found_once() -> None:
    uris = """\
'http://deb.example/debian/dists/bookworm/InRelease' deb.example_debian_dists_bookworm_InRelease 0
'http://deb.example/debian/dists/bookworm-updates/InRelease' deb.example_debian_dists_bookworm-updates_InRelease 0
'https://security.example/dists/bookworm-security/InRelease' security.example_dists_bookworm-security_InRelease 0
'http://deb.example/debian/dists/bookworm/main/binary-all/Packages.xz' deb.example_dists_bookworm_main_Packages 0
"""

    assert parse_repositories(uris) == ["http://deb.example/debian", "https://security.example"]


def test_dependencies_are_read_with_their_alternatives() -> None:
    text = """\
linux-headers-6.12.1-cloud-amd64
  Depends: linux-base
 |Depends: linux-image-6.12.1-cloud-amd64
  Depends: linux-image-6.12.1-cloud-amd64-unsigned
  Depends: <linux-compiler>
  Conflicts: linux-old
"""

    assert parse_dependencies(text) == [
        "linux-base",
        "linux-image-6.12.1-cloud-amd64",
        "linux-image-6.12.1-cloud-amd64-unsigned",
        "<linux-compiler>",
    ]
