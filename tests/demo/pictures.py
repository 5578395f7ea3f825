"""Draws the pictures in docs/pictures: the demonstration, with the lab's machine as a second node, for some minutes.

`python -m tests.demo.pictures --minutes 6`. It needs all that the demonstration and the lab need; ZFS is shown only if
the lab has built it already.
"""

from __future__ import annotations

import argparse
import json
import time

from dashboards.generate import DASHBOARDS
from tests.bench.measure import free_port
from tests.demo.drawing import Source, draw
from tests.demo.guest import second_node
from tests.demo.scene import Scene, scene
from tests.generate import ROOT
from tests.promql import VARIABLES
from tests.vm.cache import default_cache
from tests.vm.kernel import obtain
from tests.vm.zfs import Zfs

PICTURES = ROOT / "docs" / "pictures"


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=6.0)
    seconds = 60 * parser.parse_args().minutes
    built = sorted((default_cache() / "zfs").glob(f"{obtain(default_cache()).release}_zfs-*"))
    port = free_port()
    with second_node(port, Zfs(built[-1]) if built else None), scene({"node-2": f"127.0.0.1:{port}"}) as made:
        start = time.time()
        end = time.monotonic() + seconds
        made.play(lambda: time.monotonic() >= end, print)
        draw_all(made, start)


if __name__ == "__main__":
    main()
