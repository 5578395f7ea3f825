"""The agent in a process of its own: what it serves, what it logs, and what it holds."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

WAIT = 120.0  # seconds until a test gives up
SCRAPE = 10.0  # seconds that a scrape may take, as Prometheus has it
AGENT = (sys.executable, "-m", "agent")
URL = re.compile(r"url=(https?://\S+)")


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a process and its helpers hold: KiB of anonymous memory, descriptors, threads, processes.

    Proportional memory would change with every other process that begins or ends to use the same libraries.
    """

    memory: int
    descriptors: int
    threads: int
    processes: int


class Agent:
    """A running `ullage run`, from its log's first words on."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self._log = log
        self.wait_for_log("url=")
        match = URL.search(self.log)
        assert match is not None
        self.url = match[1].rstrip("/")

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_for_log(self, text: str, times: int = 1) -> None:
        end = time.monotonic() + WAIT
        while self.log.count(text) < times:
            assert time.monotonic() < end, f"{text!r} not in log:\n{self.log[-3000:]}"
            self.check()
            time.sleep(0.02)

    def check(self) -> None:
        """Fail if the process has ended."""
        assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.log[-3000:]}"

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
        request = urllib.request.Request(self.url + path, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=SCRAPE) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def wait_until_ready(self) -> None:
        end = time.monotonic() + WAIT
        while self.get("/-/ready")[0] != 200:
            assert time.monotonic() < end, self.log[-3000:]
            time.sleep(0.02)

    def fetch(self, path: str, **headers: str) -> bytes:
        """Return what a path has, which must be there; headers have underscores for hyphens."""
        code, body = self.get(path, **{name.replace("_", "-"): value for name, value in headers.items()})
        assert code == 200, (code, body[:1000])
        return body

    def scrape(self) -> str:
        """Return the page of a scrape that must succeed."""
        return self.fetch("/metrics").decode()

    def until(self, condition: Callable[[str], object], what: str) -> str:
        """Scrape until a page is as wanted; return it."""
        end = time.monotonic() + WAIT
        while not condition(page := self.scrape()):
            assert time.monotonic() < end, f"not within {WAIT:.0f} s: {what}\n{agents_own(page)}\n{self.log[-3000:]}"
            self.check()
            time.sleep(0.1)
        return page

    def until_fresh(self, collectors: Sequence[str] = ()) -> str:
        """Wait until each of these collectors (none: all that are up) has succeeded in two runs from now on."""
        page = self.scrape()
        wanted = collectors or [name for name, is_up in by_collector(page, "up").items() if is_up]
        for _ in range(2):
            before = by_collector(page, "last_success_timestamp_seconds")
            page = self.until(
                lambda page, before=before: all(  # type: ignore[misc]  # mypy does not see the default
                    by_collector(page, "last_success_timestamp_seconds").get(name) != before.get(name)
                    for name in wanted
                ),
                f"a new run of each of {wanted}",
            )
        return page

    def footprint(self) -> Footprint:
        """Return what it holds now. A helper that ends meanwhile is left out."""
        pids = [self.process.pid, *children(self.process.pid)]
        memory = descriptors = threads = processes = 0
        for pid in pids:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
                held = len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))
                anonymous = re.search(r"^Anonymous:\s+(\d+) kB", rollup, re.MULTILINE)
                memory += int(anonymous[1]) if anonymous else 0
                descriptors += held[0]
                threads += held[1]
                processes += 1
        return Footprint(memory, descriptors, threads, processes)

    def stop(self) -> None:
        """End it as a service manager does, which must be clean."""
        self.process.terminate()
        assert self.process.wait(WAIT) == 0, self.log[-3000:]


def children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += [int(child) for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split()]
    return found


def flags_of(directory: Path) -> list[str]:
    """Return the flags of an agent on a free port, with its state in a directory."""
    return ["run", "--web.listen-address=127.0.0.1:0", f"--path.state={directory / 'state'}"]


@contextlib.contextmanager
def running(
    directory: Path,
    *arguments: str,
    command: Sequence[str] = AGENT,
    environment: Mapping[str, str] | None = None,
    enter: Path | None = None,
) -> Iterator[Agent]:
    """Have an agent for the time of a block; it is killed at its end. Its log and state are in `directory`.

    Later flags win over those given here. It is begun in the cgroup `enter`; `environment` is added to ours.
    """
    log = directory / "agent.log"
    whole = [*command, *flags_of(directory), *arguments]
    if enter is not None:
        whole = ["sh", "-c", f'echo $$ > {enter}/cgroup.procs && exec "$@"', "sh", *whole]
    with open(log, "w") as stderr:
        process = subprocess.Popen(
            whole, stderr=stderr, stdout=subprocess.DEVNULL, text=True, env={**os.environ, **(environment or {})}
        )
    try:
        yield Agent(process, log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()


def series(page: str, name: str, **labels: str) -> list[float]:
    """Return the values of a metric's series that have these labels."""
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    lines = (line for line in page.splitlines() if line.startswith((f"{name}{{", f"{name} ")))
    return [float(line.rpartition(" ")[2]) for line in lines if all(each in line for each in wanted)]


def by_collector(page: str, name: str) -> dict[str, float]:
    """Return `ullage_collector_<name>` by collector."""
    found = re.findall(rf'^ullage_collector_{name}\{{collector="(\w+)"\}} (\S+)$', page, re.MULTILINE)
    return {collector: float(value) for collector, value in found}


def agents_own(page: str) -> str:
    """Return what a page tells of the collectors, for a failure's message."""
    names = ("up", "supported", "overdue", "errors_total", "last_success_timestamp_seconds")
    return "\n".join(
        line for line in page.splitlines() if line.startswith(tuple(f"ullage_collector_{name}{{" for name in names))
    )
