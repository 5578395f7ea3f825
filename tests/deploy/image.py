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


def context(directory: Path) -> Path:
    """Return what the Dockerfile is built from: our wheel, the wheels of all dependencies, the lock; and the wheel."""
    dist = directory / "dist"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    download = ["download", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    for command in (
        ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(dist), str(ROOT)],
        [*download, "--dest", str(dist), "--requirement", str(ROOT / "requirements.lock")],
    ):
        done = subprocess.run([*pip, *command], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for name in ("Dockerfile", ".dockerignore", "requirements.lock"):
        shutil.copy(ROOT / name, directory)
    return next(dist.glob("ullage-*.whl"))
