"""One cluster for the tests of one file, with the agent's image and two small ones made by a real engine."""

from __future__ import annotations

import io
import os
import platform
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy import image
from tests.deploy.docker import docker
from tests.deploy.tools import kustomized, pod_of
from tests.k8s.binaries import binaries
from tests.k8s.cluster import Cluster, cluster
from tests.real.dockerd import root_archive
from tests.refusal import refuse

TOOLS = ("dockerd", "docker", "mmdebstrap", "containerd", "runc", "ctr", "ip", "unshare", "nsenter", "gcc", "openssl")
BUSYBOX, PAUSE = "ullage.test/busybox:1", "ullage.test/pause:1"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images as an archive; the agent's has the name that the manifests give it."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        refuse(f"not found: {', '.join(missing)}" if missing else "needs root")
    if platform.machine() != "x86_64":
        refuse("kubectl is here for x86_64 only")
    if not Path("/sys/fs/cgroup/memory").is_dir():
        refuse("this Kubernetes' node is one with cgroup v1")
    archive = tmp_path_factory.mktemp("images") / "images.tar"
    pause = io.BytesIO()
    with tarfile.open(fileobj=pause, mode="w") as tar:
        tar.add(binaries() / "bin" / "pause", "pause")
    wanted = pod_of(kustomized("base"))["containers"][0]["image"]
    with tempfile.TemporaryDirectory(prefix="ullage-image-") as directory, docker(Path(directory)) as engine:
        engine.node.run("docker", "import", "-", BUSYBOX, stdin=root_archive())
        engine.node.run("docker", "import", '--change=ENTRYPOINT ["/pause"]', "-", PAUSE, stdin=pause.getvalue())
        engine("tag", image.NAME, wanted)
        engine("save", f"--output={archive}", wanted, BUSYBOX, PAUSE)
    return archive


@pytest.fixture(scope="module")
def kubernetes(images: Path) -> Iterator[Cluster]:
    """The cluster, its node Ready."""
    with (
        tempfile.TemporaryDirectory(prefix="ullage-k8s-") as directory,
        cluster(Path(directory), binaries(), [images]) as made,
    ):
        yield made
