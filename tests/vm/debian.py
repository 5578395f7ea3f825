"""Packages of another suite of Debian's, downloaded with lists of our own and unpacked: never installed."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.vm.errors import Unavailable

SUITE = "bookworm-backports"

_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_SECONDS = 600.0
_COMPLAINT = 2000  # characters: a compiler has much to say, and the cause last


class Archive:
    """A suite as one repository has it. `scratch` is an empty directory for apt's files and the packages."""

    def __init__(self, repository: str, scratch: Path, suite: str = SUITE) -> None:
        self._scratch = scratch
        self._suite = suite
        sources = scratch / "sources.list"
        sources.write_text(f"deb [signed-by={_KEYRING}] {repository} {suite} main contrib\n")
        for directory in ("lists/partial", "cache/archives/partial"):
            (scratch / directory).mkdir(parents=True)
        self._private = [
            "-qq",
            f"-oDir::Etc::SourceList={sources}",
            "-oDir::Etc::SourceParts=/dev/null",
            f"-oDir::State::Lists={scratch}/lists",
            f"-oDir::Cache={scratch}/cache",
            "-oAPT::Sandbox::User=root",  # apt's own user may not enter our directory
            "-oAPT::Update::Error-Mode=any",
        ]
        output("apt-get", *self._private, "update")

    def dependencies(self, package: str) -> list[str]:
        """Return the names of the packages that a package of the suite depends on."""
        return parse_dependencies(output("apt-cache", *self._private, "depends", package))

    def download(self, packages: Iterable[str]) -> list[Path]:
        """Return the packages' files, below `scratch`, in no order."""
        directory = Path(tempfile.mkdtemp(dir=self._scratch))
        wanted = [f"{package}/{self._suite}" for package in packages]
        output("apt-get", *self._private, "download", *wanted, cwd=directory)
        return list(directory.glob("*.deb"))


def parse_repositories(uris: str) -> list[str]:
    """Return the repositories that `apt-get update --print-uris` would ask, each once, in order.

    One line: `'http://deb.example/debian/dists/bookworm/InRelease' deb.example_debian_dists_bookworm_InRelease 0`.
    """
    return list(dict.fromkeys(re.findall(r"^'(\S+)/dists/\S+/InRelease'", uris, re.MULTILINE)))


def parse_dependencies(text: str) -> list[str]:
    """Return what `apt-cache depends` says a package depends on, alternatives and all.

    One line: `  Depends: linux-kbuild-6.12.1`, or ` |Depends: linux-image-6.12.1` for the first of two alternatives.
    """
    return re.findall(r"^ [ |]Depends: (\S+)", text, re.MULTILINE)


def from_archive(fetch: Callable[[Archive], None], suite: str = SUITE) -> None:
    """Call `fetch` with the archive of each mirror that this machine already uses, until one has what it wants."""
    refusals = []
    for repository in parse_repositories(output("apt-get", "update", "--print-uris")):
        with tempfile.TemporaryDirectory(prefix="ullage-apt-") as scratch:
            try:
                fetch(Archive(repository, Path(scratch), suite))
            except Unavailable as error:
                refusals.append(str(error))
            else:
                return
    raise Unavailable("no mirror of this machine has what the lab needs\n" + "\n".join(refusals))


def unpack(package: Path, target: Path) -> None:
    """Unpack a package's files below a directory."""
    target.mkdir(parents=True, exist_ok=True)
    output("dpkg-deb", "--extract", str(package), str(target))


def output(*command: str, cwd: Path | None = None, seconds: float = _SECONDS) -> str:
    """Return the stdout of a command; raise Unavailable if it fails."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True, timeout=seconds)
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"{command[0]}: {error.stderr.strip()[-_COMPLAINT:]}") from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable(str(error)) from error
    return done.stdout
