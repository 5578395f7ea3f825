"""A scrape of 20,000 ready samples, against the same server sending a constant of the same size."""

from __future__ import annotations

import http.client
import sys
from collections.abc import Iterator, Sequence

from agent.exposition import Form, Pages, Renderer, make_page
from agent.status import Status
from tests.bench.measure import Result, cpu_of, free_port, process, rounds, spent, wait_for
from tests.bench.rendering import families

SCRAPES = 500


class Served:
    """The app of a server that serves 20,000 samples, ready in ten pages, or a constant of that size."""

    lifecycle = False

    def __init__(self, *, is_constant: bool) -> None:
        pages = Pages()
        for number, family in enumerate(families()):
            pages.put(f"collector-{number}", make_page(Renderer(), [family], 0.0, float("inf")))
        self._pages = pages
        self._constant: dict[bool, list[bytes]] = {}
        if is_constant:
            self._constant = {gzip: [b"".join(pages.members("text", gzip=gzip))] for gzip in (False, True)}

    def metrics(self, form: Form, *, gzip: bool) -> Sequence[bytes]:
        return self._constant[gzip] if self._constant else self._pages.members(form, gzip=gzip)

    def is_ready(self) -> bool:
        return True

    def status(self, most: int | None = None) -> Status:  # noqa: ARG002  nobody asks
        return Status()

    def reload(self) -> None:
        """Nothing to reload."""


def serve(port: int, *, is_constant: bool) -> None:
    """Serve until killed."""
    import threading  # noqa: PLC0415  only the server's process needs it

    from agent.server import Server  # noqa: PLC0415  as above

    Server(f"127.0.0.1:{port}", Served(is_constant=is_constant)).start()
    threading.Event().wait()


def scrape(port: int, *, gzip: bool) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Accept": "text/plain", "Accept-Encoding": "gzip" if gzip else "identity"}
    for _ in range(SCRAPES):
        connection.request("GET", "/metrics", headers=headers)
        answer = connection.getresponse()
        assert answer.status == 200
        assert answer.read()
    connection.close()


def run() -> Iterator[Result]:
    ports = free_port(), free_port()
    commands = [
        [sys.executable, "-m", "tests.bench.scrape", str(port), kind]
        for port, kind in zip(ports, ("ready", "constant"), strict=True)
    ]
    with process(commands[0]) as ready, process(commands[1]) as constant:
        for port in ports:
            wait_for(f"http://127.0.0.1:{port}/-/healthy")
        for gzip in (False, True):
            values, detail = rounds(
                lambda gzip=gzip: spent(lambda: scrape(ports[0], gzip=gzip), lambda: cpu_of(ready.pid)) / SCRAPES,  # type: ignore[misc]
                lambda gzip=gzip: spent(lambda: scrape(ports[1], gzip=gzip), lambda: cpu_of(constant.pid)) / SCRAPES,  # type: ignore[misc]
            )
            kind = "gzip" if gzip else "plain"
            yield Result(f"scrape of 20,000 ready samples, {kind}, against a constant", values, 1.2, detail=detail)


if __name__ == "__main__":
    serve(int(sys.argv[1]), is_constant=sys.argv[2] == "constant")
