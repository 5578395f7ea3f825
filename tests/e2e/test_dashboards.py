"""Every panel's expressions, run by a real Prometheus: on a real agent with loop devices and containers, on one with
the pools and drives of the virtual machine, and on what was recorded from others.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from dashboards.generate import DASHBOARDS
from tests.bench.measure import free_port
from tests.demo.guest import second_node
from tests.demo.pictures import concrete
from tests.demo.scene import Scene, scene
from tests.e2e.stack import until
from tests.generate import ROOT

SECONDS = 45.0  # of filling and emptying
PATIENCE = 120.0  # seconds
# by dashboard and panel: the reason for which it has no data here
EXCUSED: dict[tuple[str, str], str] = {
    ("fleet", "Full within two days, by the trend of an hour"): "a trend needs half an hour",
}
# whole pages of nodes with what this one has not: ZFS, Kubernetes' pods on cgroup v2, Docker on thin pools, mounts
# whose changes nobody sees, deleted files that are held open where every process may be looked at, errors in the log
RECORDED = (
    "zfs/healthy",
    "pagecache/v2-kubernetes",
    "thinpool/docker-loop",
    "inotify/docker",
    "openfiles/docker",
    "kernellog/node",
)
FAILING = """\
ullage_build_info{version="0.1.0",python="3.11"} 1
ullage_collector_errors_total{collector="qgroup",reason="malformed"} 1
ullage_collector_up{collector="qgroup"} 0
ullage_collector_page_withdrawn{collector="qgroup"} 1
"""


@pytest.fixture(scope="module")
def recorded() -> Iterator[int]:
    """The port of a server of recorded pages, of a node one of whose collectors fails."""
    pages = [(ROOT / "tests" / "trees" / tree / "expected.prom").read_bytes() for tree in RECORDED]
    page = b"".join(pages) + FAILING.encode()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def made(recorded: int) -> Iterator[Scene]:
    port = free_port()
    nodes = {"pools": port, "recorded": recorded, "down": free_port()}
    with second_node(port), scene({name: f"127.0.0.1:{number}" for name, number in nodes.items()}) as running:
        end = time.monotonic() + SECONDS
        running.play(lambda: time.monotonic() >= end, lambda _: None)
        until(lambda: running.stack.query('ALERTS{alertname="UllageTargetDown"}') != [], "a node is down")
        yield running


def has_data(panel: dict[str, Any], made: Scene) -> bool:
    """Return whether one of a panel's expressions gives something; all of them must be understood."""
    found = [made.stack.query(concrete(target["expr"])) for target in panel["targets"]]
    return any(found)


@pytest.mark.e2e
@pytest.mark.root
@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_panel_has_data_or_a_reason(name: str, made: Scene) -> None:
    board = json.loads((ROOT / "dashboards" / f"{name}.json").read_text())
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert {title for where, title in EXCUSED if where == name} <= {panel["title"] for panel in panels}

    def empty() -> set[str]:
        return {
            panel["title"] for panel in panels if not has_data(panel, made) and (name, panel["title"]) not in EXCUSED
        }

    with contextlib.suppress(AssertionError):  # what comes and goes has some time to come
        until(lambda: not empty(), "every panel has data", PATIENCE)
    assert empty() == set()
    for annotation in board["annotations"]["list"]:
        made.stack.query(concrete(annotation["expr"]))
