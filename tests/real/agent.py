"""The whole agent as a process of its own, with its default configuration."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil

WAIT = 120.0  # seconds until a test gives up
URL = re.compile(r"url=(http://\S+)")


class Agent:
    """The agent, its log and what it serves. `flags` are those of `ullage run`."""

    def __init__(self, directory: Path, *flags: str) -> None:
        self.log = directory / "agent.log"
        flags = ("--web.listen-address=127.0.0.1:0", f"--path.state={directory / 'state'}", *flags)
        with open(self.log, "wb") as stderr:
            self.process = subprocess.Popen([sys.executable, "-m", "agent", "run", *flags], stderr=stderr)
        end = time.monotonic() + WAIT
        while not (match := URL.search(self.log.read_text(errors="replace"))):
            assert time.monotonic() < end, self.log.read_text(errors="replace")
            time.sleep(0.05)
        self.url = match[1].rstrip("/")

    def fetch(self, path: str, timeout: float = 10.0, **headers: str) -> bytes:
        """Return what a path has, as bytes."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with urllib.request.urlopen(urllib.request.Request(self.url + path, headers=named), timeout=timeout) as answer:
            body: bytes = answer.read()
            return body

    def get(self, path: str, timeout: float = 10.0) -> str:
        return self.fetch(path, timeout).decode()

    def scrape(self, timeout: float = 10.0) -> str:
        return self.get("/metrics", timeout)

    def footprint(self) -> tuple[int, int, int]:
        """Return the numbers of its threads, descriptors and child processes."""
        process = psutil.Process(self.process.pid)
        return process.num_threads(), process.num_fds(), len(process.children())

    def memory(self) -> int:
        """Return its resident bytes."""
        resident: int = psutil.Process(self.process.pid).memory_info().rss
        return resident

    def close(self) -> None:
        self.process.terminate()
        assert self.process.wait(WAIT) == 0


@contextlib.contextmanager
def agent(directory: Path, *flags: str) -> Iterator[Agent]:
    """Have an agent for the time of a block."""
    made = Agent(directory, *flags)
    try:
        yield made
    finally:
        made.close()
