"""Kubernetes' binaries, built once from Debian's source package and kept in the user's cache."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.vm.cache import keep, shelf
from tests.vm.debian import output, parse_repositories

VERSION = "1.20.2"  # of Debian; a change of build.sh wants another name in the cache


def binaries() -> Path:
    """Return the directory of `bin` and `tools`, see build.sh."""
    return keep(shelf("k8s"), f"kubernetes-{VERSION}", _build)


def _build(target: Path) -> str:
    refusals = []
    for repository in parse_repositories(output("apt-get", "update", "--print-uris")):
        command = [str(Path(__file__).with_name("build.sh")), repository, str(target)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode == 0:
            return f"kubernetes-{VERSION}"
        refusals.append(done.stderr[-2000:])
    raise AssertionError("Kubernetes was not built:\n" + "\n".join(refusals))
