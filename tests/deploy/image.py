"""The image, built by a real engine from the Dockerfile; its base made by mmdebstrap, for no registry is asked.

The base is kept in the user's cache. Dependencies' wheels are fetched by the machine's own pip, as the build has no
network.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.vm.cache import keep, shelf
from tests.vm.debian import output, parse_repositories

ROOT = Path(__file__).resolve().parents[2]
SUITE = "bookworm"
BASE, NAME = "ullage.test/base", "ullage.test/ullage"
KEEP_BASE = 30 * 86_400  # seconds: Debian's point releases come every two months
_EXCLUDED = ("usr/share/man", "usr/share/doc", "usr/share/locale")


def base() -> Path:
    """Return the archive of a Debian with Python and its venv module, as slim as Debian's own slim images."""
    for old in shelf("image").glob("base-*"):
        if time.time() - old.stat().st_mtime > KEEP_BASE:
            shutil.rmtree(old)
    return keep(shelf("image"), f"base-{SUITE}", _bootstrap) / "base.tar"


def _bootstrap(target: Path) -> str:
    target.mkdir()
    refusals = []
    for repository in parse_repositories(output("apt-get", "update", "--print-uris")):
        excluded = [f"--dpkgopt=path-exclude=/{path}/*" for path in _EXCLUDED]
        command = ["mmdebstrap", "--quiet", "--variant=minbase", "--include=python3-venv", *excluded]
        done = subprocess.run(
            [*command, SUITE, str(target / "base.tar"), f"deb {repository} {SUITE} main"],
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode == 0:
            return f"base-{SUITE}"
        refusals.append(done.stderr[-1000:])
    raise AssertionError("no mirror of this machine gives a base:\n" + "\n".join(refusals))


def wheel() -> Path:
    """Return the wheel that `make image` ships: that of `make build`, which makes it if it is not there."""
    command = ["make", "--no-print-directory", "build"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (made,) = (ROOT / "dist").glob("ullage-*.whl")
    return made


def context(directory: Path) -> Path:
    """Put what the Dockerfile needs into a directory: our wheel, those of dependencies, the lock. Return our wheel."""
    dist = directory / "dist"
    dist.mkdir()
    ours = wheel()
    shutil.copy(ours, dist)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    download = ["download", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    command = [*pip, *download, "--dest", str(dist), "--requirement", str(ROOT / "requirements.lock")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("Dockerfile", ".dockerignore", "requirements.lock"):
        shutil.copy(ROOT / name, directory)
    return ours
