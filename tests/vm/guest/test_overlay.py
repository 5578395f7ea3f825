"""The overlay collector where /etc/docker/daemon.json is the test's own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.real.dockerd import dockerd
from tests.real.test_overlay import node_of
from tests.vm.guest.pools import run

CONFIG = Path("/etc/docker/daemon.json")


@pytest.fixture
def config() -> Iterator[Path]:
    CONFIG.parent.mkdir(exist_ok=True)
    yield CONFIG
    CONFIG.unlink()


@pytest.mark.vm(deadline=500)
def test_an_option_that_stops_docker_is_told_until_the_remedy_is_done(short: Path, disk: Path, config: Path) -> None:
    with ExitStack() as stack, dockerd(short, "overlay2", disk / "docker") as docker:
        node = node_of(docker, stack)
        assert node.run() == set()
        config.write_text(json.dumps({"storage-opts": ["overlay2.min_space=10GB"]}))
        assert node.run() == {("daemon-options-unknown", f"{config} overlay2.min_space")}
        remedy = re.fullmatch(
            r"Take (\S+) out of storage-opts in (\S+); systemctl restart docker then succeeds\.",
            node.remedy("daemon-options-unknown"),
        )
        assert remedy is not None
        assert remedy[2] == str(config)
        docker.quit()
        with pytest.raises(AssertionError, match=r"unknown option overlay2\.min_space"):
            docker.start()
        docker.kill()  # the containerd that it left behind, as it did a mount of its root
        run("umount", str(docker.root))
        settings = json.loads(config.read_text())
        settings["storage-opts"] = [each for each in settings["storage-opts"] if not each.startswith(f"{remedy[1]}=")]
        config.write_text(json.dumps(settings))
        docker.start()
        assert node.run() == set()
