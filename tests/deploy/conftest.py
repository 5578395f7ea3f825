"""A node with Docker and the image for the tests of one file: it has filesystems that other tests would see."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.docker import Docker, docker
from tests.deploy.tools import kustomized, pod_of
from tests.refusal import refuse

TOOLS = ("dockerd", "docker", "mmdebstrap", "unshare", "nsenter", "mkfs.ext4", "mkfs.btrfs", "btrfs")


@pytest.fixture(scope="session")
def amd64() -> None:
    """What tools.lock names is for one architecture."""
    if platform.machine() != "x86_64":
        refuse("kubectl and helm are here for x86_64 only")


@pytest.fixture(scope="module")
def engine() -> Iterator[Docker]:
    """Docker on a node of its own, with the image built."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        refuse(f"not found: {', '.join(missing)}" if missing else "needs root")
    with tempfile.TemporaryDirectory(prefix="ullage-deploy-") as directory, docker(Path(directory)) as made:
        yield made


@pytest.fixture(scope="session")
def spec(amd64: None) -> dict[str, Any]:  # noqa: ARG001  it may skip
    """The pod of the shipped DaemonSet."""
    return pod_of(kustomized("base"))
