"""A container that makes very many files in one directory: they are counted, and nobody waits for that."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.agent_process import running, series
from tests.faults.conftest import Config
from tests.real.conftest import run
from tests.real.dockerd import Dockerd, dockerd
from tests.scraper import scraped

pytestmark = [pytest.mark.root, pytest.mark.docker, pytest.mark.slow]

FILES = 250_000  # a million takes four times as long, and no more memory
GROWTH = 8 << 10  # KiB: names are not kept


@pytest.fixture
def in_memory(
    directory: Path, tmp_path: Path, need: Callable[..., None], stack: contextlib.ExitStack
) -> Iterator[Dockerd]:
    """A Docker whose storage makes files quickly."""
    need("dockerd", "docker", "busybox", "mount")
    store = tmp_path / "store"
    store.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"nr_inodes={2 * FILES}", "none", str(store))
    stack.callback(run, "umount", "-l", str(store))
    with dockerd(directory, root=store) as made:
        made.import_image("busybox")
        yield made


def test_hundreds_of_thousands_of_files_in_one_directory_are_counted_and_stall_nobody(
    in_memory: Dockerd, tmp_path: Path, config: Config
) -> None:
    container = in_memory.run("one", "mkdir /crowd; exec sleep 1000")
    layer = (in_memory.root / f"image/overlay2/layerdb/mounts/{container}/mount-id").read_text()
    places = (f"--runtime.docker.socket={in_memory.socket}", f"--runtime.docker.root={in_memory.root}")

    def files(page: str) -> list[float]:
        return series(page, "ullage_container_writable_files", container="one")

    with running(tmp_path, config(layers="cpu_budget: 0.5"), *places) as agent:
        (first,) = files(agent.until(files, "the container's layer"))
        agent.until_fresh()
        before = agent.footprint()
        with scraped(agent):
            crowd = os.open(in_memory.root / "overlay2" / layer / "diff/crowd", os.O_RDONLY | os.O_DIRECTORY)
            for number in range(FILES):
                os.mknod(str(number), dir_fd=crowd)
            os.close(crowd)
            agent.until(lambda page: files(page) == [first + FILES], "all the files")
            agent.until_fresh()
        after = agent.footprint()
        assert after.memory - before.memory < GROWTH, (before, after)
        agent.stop()
