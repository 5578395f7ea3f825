"""Draws the pictures in docs/pictures: the demonstration, with the lab's machine as a second node, for some minutes.

`python -m tests.demo.pictures --minutes 6`. It needs all that the demonstration and the lab need, and Chromium; ZFS is
shown only if the lab has built it already. `--status` takes those of the status page alone, without the lab.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from dashboards.generate import DASHBOARDS
from tests.bench.measure import free_port
from tests.browser import browser
from tests.demo.drawing import Source, draw
from tests.demo.guest import second_node
from tests.demo.scene import Scene, scene
from tests.generate import ROOT
from tests.promql import VARIABLES
from tests.vm.cache import default_cache
from tests.vm.kernel import obtain
from tests.vm.zfs import Zfs

PICTURES = ROOT / "docs" / "pictures"
STATUS = {"status-light": (1100, 1100, "light"), "status-dark": (360, 780, "dark")}  # width and height in CSS pixels

COLORS = 128  # in a picture of the status page, which makes it a third as large


def concrete(expression: str) -> str:
    """Return an expression as Grafana asks it when everything is chosen, with short intervals of scrapes."""
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, "30s" if variable == "$__rate_interval" else value)
    return expression


def draw_all(made: Scene, start: float) -> None:
    """Draw each dashboard, from a time in Unix seconds until now."""
    PICTURES.mkdir(exist_ok=True)
    source = Source(made.stack.url, start, time.time(), concrete)
    for name in DASHBOARDS:
        board = json.loads((ROOT / "dashboards" / f"{name}.json").read_text())
        draw(board, source, PICTURES / f"{name}.png")


def take_status(made: Scene) -> None:
    """Take the pictures of the status page, as a browser shows it."""
    with tempfile.TemporaryDirectory() as directory, browser(Path(directory) / "browser") as page:
        for name, (width, height, scheme) in STATUS.items():
            page.show_as(width, height, scheme)
            page.open(f"{made.stack.agent_url}/")
            page.picture(PICTURES / f"{name}.png")
            with Image.open(PICTURES / f"{name}.png") as taken:
                taken.quantize(COLORS).save(PICTURES / f"{name}.png", optimize=True)


@contextlib.contextmanager
def second() -> Iterator[dict[str, str]]:
    """Have the lab's machine as a second node; give its name and where its agent is."""
    built = sorted((default_cache() / "zfs").glob(f"{obtain(default_cache()).release}_zfs-*"))
    port = free_port()
    with second_node(port, Zfs(built[-1]) if built else None):
        yield {"node-2": f"127.0.0.1:{port}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--status", action="store_true", help="take only those of the status page")
    arguments = parser.parse_args()
    seconds = 60 * arguments.minutes
    with contextlib.ExitStack() as opened:
        made = opened.enter_context(scene({} if arguments.status else opened.enter_context(second())))
        start, end = time.time(), time.monotonic() + seconds
        made.play(lambda: time.monotonic() >= end, print)
        take_status(made)
        if not arguments.status:
            draw_all(made, start)


if __name__ == "__main__":
    main()
