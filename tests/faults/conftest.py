"""What faults are injected into: real filesystems and runtimes, and the agent with every collector at a quick pace."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from collectors import ALL
from tests.agent_process import Agent, series
from tests.real.conftest import docker, filesystem, need, stack

__all__ = ["config", "directory", "docker", "filesystem", "need", "stack"]

PACE = 2  # seconds between the runs of every collector

Config = Callable[..., str]


def write_config(path: Path, pace: int = PACE, own: Mapping[str, str] | None = None) -> None:
    """Write a configuration in which each collector runs every `pace` seconds, some with settings of their own."""
    texts = {each.name: (own or {}).get(each.name, "") for each in ALL}
    lines = (f"  {name}: {{interval: {pace}s{', ' + text if text else ''}}}\n" for name, text in texts.items())
    path.write_text("collectors:\n" + "".join(lines))


def reload(agent: Agent) -> None:
    """Have the agent read its configuration again, and wait until it has."""
    code, body = agent.get("/-/reload", "POST")
    assert code == 200, body


def inode_level(page: str, mount: Path) -> list[float]:
    """Return the level of a mount's inodes, in a list that is empty while the page has none."""
    return series(page, "ullage_watermark_level", watermark="inodes", target=str(mount))


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Write the configuration anew; return the flag that names it."""

    def write(pace: int = PACE, **own: str) -> str:
        write_config(tmp_path / "ullage.yml", pace, own)
        return f"--config.file={tmp_path / 'ullage.yml'}"

    return write


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path: a socket's may have 107 characters."""
    with tempfile.TemporaryDirectory(prefix="ullage-") as made:
        yield Path(made)
