"""A real Chromium without a window, driven by its DevTools protocol over a pipe, which takes no library.

The protocol: https://chromedevtools.github.io/devtools-protocol/; over --remote-debugging-pipe it is JSON ended by NUL,
commands on descriptor 3, answers and events on 4.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

WAIT = 120.0  # seconds until a test gives up
COMMAND = "chromium"
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-extensions"),
    *("--disable-sync", "--hide-scrollbars", "--force-color-profile=srgb"),
)
DOMAINS = ("Page", "Runtime", "Log", "Network", "Audits")


def lack() -> str:
    """Return what this machine lacks, or nothing."""
    return "" if shutil.which(COMMAND) else f"not found: {COMMAND}"


class Browser:
    """One page of a browser of its own. `events` are all that it has told: method and parameters."""

    def __init__(self, profile: Path) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._number = 0
        self._buffer = b""
        self._session = ""
        self._log = open(profile.with_suffix(".log"), "wb")  # noqa: SIM115  it is closed with the browser
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # the shell gives the descriptors their numbers; dash knows none over 9
        shell = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        command = ["bash", "-c", shell, COMMAND, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, pass_fds=(theirs_in, theirs_out)
        )
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            target = self.ask("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in DOMAINS:
                self.ask(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + WAIT
        while True:
            answer = self._receive(end)
            if answer is None:
                raise AssertionError(f"{method}: no answer within {WAIT:.0f} s\n{self._told()}")
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer}"
                result: dict[str, Any] = answer["result"]
                return result

    def _receive(self, end: float) -> dict[str, Any] | None:
        """Return the next message, None if none comes until then; events are kept."""
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                return None
            part = os.read(self._in, 1 << 16)
            if not part:
                raise AssertionError(f"the browser has ended\n{self._told()}")
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        if "method" in message:
            self.events.append((message["method"], message["params"]))
        return message

    def _told(self) -> str:
        return Path(self._log.name).read_text(errors="replace")[-3000:]

    @property
    def loads(self) -> int:
        """How many pages were loaded so far."""
        return sum(name == "Page.loadEventFired" for name, _ in self.events)

    def open(self, url: str) -> None:
        """Go to an address and wait until it is loaded."""
        loads = self.loads
        self.ask("Page.navigate", url=url)
        self.until(lambda: self.loads > loads, f"{url} is loaded")

    def click(self, link: str) -> None:
        """Click the link of this text and wait until what it leads to is loaded."""
        loads = self.loads
        click = f"[...document.links].find(each => each.innerText == {json.dumps(link)}).click()"
        self.ask("Runtime.evaluate", expression=click, userGesture=True)
        self.until(lambda: self.loads > loads, f"what {link} leads to is loaded")

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until a condition holds, taking events meanwhile."""
        end = time.monotonic() + WAIT
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(
                    f"not within {WAIT:.0f} s: {what}; seen: {[name for name, _ in self.events][-20:]}"
                )
            self._receive(min(end, time.monotonic() + 0.1))

    def value(self, expression: str) -> Any:
        """Return what a script's expression is on the page; the page's own policy does not concern it."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def show_as(self, width: int, height: int, scheme: str) -> None:
        """Have a window of this size, in CSS pixels, that prefers a scheme of colors: light or dark."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def picture(self, path: Path) -> None:
        """Write what the window shows into a PNG file."""
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        """End the browser, which ends its own children with it."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(30)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        os.close(self._out)
        os.close(self._in)
        self._log.close()


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Have a browser for the time of a block."""
    made = Browser(profile)
    try:
        yield made
    finally:
        made.close()
