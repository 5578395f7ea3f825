"""`make demo`: Ullage at work on this machine, with Prometheus and Alertmanager, until Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
import urllib.error

from tests.demo.scene import CYCLE, lack, scene
from tests.e2e.stack import fetch

CONTAINERS = "Two containers with limits write on it as well; a third one, on overlay2, makes files."
NO_CONTAINERS = "Without dockerd, docker and busybox on this machine there are no containers."


def has_page(url: str) -> bool:
    """Return whether there is such a page: Debian's Prometheus has its old web interface only, others the new one."""
    try:
        return bool(fetch(url))
    except urllib.error.HTTPError:
        return False


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end by itself after so long")
    seconds = parser.parse_args().seconds
    missing = lack()
    if missing:
        print(f"the demonstration cannot run here: {missing}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), scene() as made:
        web = made.stack.url + ("/classic" if has_page(f"{made.stack.url}/classic/alerts") else "")
        print(
            f"""\
An ext4 with 1,024 inodes is filled and emptied every {CYCLE / 60:g} minutes: {made.ext4}
So are three subvolumes of a btrfs, each up to its limit: {made.btrfs}
{CONTAINERS if made.has_containers else NO_CONTAINERS}

Open:
  {made.stack.agent_url}/                the agent's status page
  {made.stack.agent_url}/metrics
  {web}/alerts  Prometheus with our rules; no alert waits for long here
  {web}/graph?g0.expr=ullage%3Ainodes%3Aratio&g0.tab=0&g0.range_input=10m
  {made.stack.alertmanager_url}/                Alertmanager with our example: what is inhibited is not told

Who is told of what follows. Ctrl-C ends it and removes everything.
""",
            flush=True,
        )
        end = time.monotonic() + seconds
        try:
            made.play(lambda: time.monotonic() >= end, lambda line: print(line, flush=True))
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            print("removing everything", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
