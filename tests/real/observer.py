"""Collectors at work in a process namespace of their own, on what is started there: `Observer` runs this file in it.

Commands come as lines of JSON, and each is answered by one. What others do on the machine is not seen in there.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from agent import log
from agent.budget import Budget
from agent.collector import Shared, Start
from agent.config import load
from agent.exposition import Pages
from agent.host import Host
from agent.latches import Latches
from agent.probe import HelperProber
from agent.runner import Runner
from collectors import inotify, openfiles
from collectors.processes import Processes
from tests.real.dockerd import Dockerd, dockerd

SETTINGS: dict[str, dict[str, Any]] = {
    "inotify": {"cpu_budget": 1.0},
    "openfiles": {"cpu_budget": 1.0, "held": 32 << 20},
}


class Watcher:
    """Both collectors on one host, as the agent has them."""

    def __init__(self, host: Host, **places: tuple[str, ...]) -> None:
        plans = [
            replace(plan, settings=msgspec.structs.replace(plan.settings, **SETTINGS[plan.name]))
            for plan in load(None, [inotify.COLLECTOR, openfiles.COLLECTOR], {}, places).plans
        ]
        shared, self._pages = Shared(), Pages()
        self._running = {}
        for plan in plans:
            runner = Runner(plan, host, Latches(None), self._pages)
            start = Start(runner.host, plan.settings, None, plan.runtimes, shared)
            self._running[runner] = plan.collector.start(start)

    def run(self) -> dict[str, Any]:
        """Do one run; return the series, the levels by target, and the findings as explanation and remedy."""
        levels: dict[str, int] = {}
        found: dict[str, list[str]] = {}
        for runner, running in self._running.items():
            # the newest pass may be one that the other collector has told already
            for _ in range(2):
                runner.run(running)
            assert runner.outcome.is_up, runner.outcome.reason
            levels |= {
                f"{level.watermark.name} {level.target}": level.level for t in runner.outcome.levels for level in t
            }
            for each in runner.outcome.findings:
                found[f"{each.finding.id} {each.target}"] = [each.explanation, each.remedy]
        text = b"".join(self._pages.members("text", gzip=False)).decode()
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        series = [[sample.name, sample.labels, sample.value] for sample in samples]
        return {"series": series, "levels": levels, "found": found}


def of(seen: dict[str, Any], name: str, **labels: str) -> float | None:
    """Return the value of a series that has these labels, None if there is none."""
    found = [value for each, has, value in seen["series"] if each == f"ullage_{name}" and labels.items() <= has.items()]
    assert len(found) < 2, (name, labels, found)
    return found[0] if found else None


class Observer:
    """The other end: it starts things in the namespace, and asks what is seen there."""

    def __init__(self, *unshare: str) -> None:
        command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *unshare, sys.executable, __file__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _ask(self, **command: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the observer ended at {command}"
        return json.loads(answer)

    def start(self, *argv: str) -> str:
        """Start a program; return its number there, once it has printed a line. It ends when its input does."""
        return str(self._ask(start=argv))

    def stop(self, pid: str) -> None:
        """End a program and wait for its end."""
        self._ask(stop=pid)

    def write(self, path: str, text: str) -> None:
        """Write a file as the first process there, such as a limit of its own."""
        self._ask(write=path, text=text)

    def run(self) -> dict[str, Any]:
        """Return what the collectors tell, see Watcher.run."""
        answer: dict[str, Any] = self._ask(run=True)
        return answer

    def rounds(self, share: float, seconds: float) -> list[tuple[float, dict[str, Any] | None]]:
        """Do a pass in rounds, so many seconds apart; return the CPU seconds of each, and what the last has found."""
        found = self._ask(rounds=[share, seconds])
        return [(cpu, told) for cpu, told in found]

    def close(self) -> None:
        """End all that was started there."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


@contextlib.contextmanager
def observer(*unshare: str) -> Iterator[Observer]:
    """Have an observer for the time of a block; `unshare` are more options of unshare(1)."""
    made = Observer(*unshare)
    try:
        yield made
    finally:
        made.close()


class Watched(NamedTuple):
    """A dockerd, and the collectors on this machine that know of it."""

    docker: Dockerd
    node: Watcher

    def follow(self, remedy: str) -> None:
        """Run what a remedy says, word by word, where `docker` means this one."""
        environment = os.environ | {"DOCKER_HOST": f"unix://{self.docker.socket}"}
        subprocess.run(["sh", "-c", remedy], check=True, env=environment, capture_output=True, timeout=120)


@contextlib.contextmanager
def watched() -> Iterator[Watched]:
    """Have a dockerd with an image of busybox for the time of a block, and the collectors."""
    prober = HelperProber()
    with tempfile.TemporaryDirectory(prefix="ullage-") as directory, dockerd(Path(directory)) as docker:
        docker.import_image("busybox")
        places = {"docker_roots": (str(docker.root),), "docker_sockets": (str(docker.socket),)}
        try:
            yield Watched(docker, Watcher(Host(prober=prober), **places))
        finally:
            prober.close()


def rounds(host: Host, share: float, seconds: float) -> list[tuple[float, dict[str, Any] | None]]:
    """Do one pass on a budget of its own, on a clock that goes on by so many seconds a round."""
    now = 0.0
    processes, budget = Processes(), Budget(share, clock=lambda: now, pause=lambda _: None)
    done: list[tuple[float, dict[str, Any] | None]] = []
    while True:
        began = time.thread_time()
        reading = processes.reading(host, budget, 0)
        told = None
        if reading is not None:
            told = {"processes": reading.processes, "descriptors": reading.descriptors, "skipped": reading.skipped}
        done.append((time.thread_time() - began, told))
        if told is not None:
            return done
        now += seconds


def serve() -> None:
    log.configure("error")
    host = Host(prober=HelperProber())
    watcher = Watcher(host)
    programs: dict[str, subprocess.Popen[bytes]] = {}
    for line in sys.stdin:
        command = json.loads(line)
        answer: Any = None
        if "start" in command:
            program = subprocess.Popen(command["start"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert program.stdout is not None
            answer = str(program.pid) if program.stdout.readline() else "it has ended"
            programs[answer] = program
        elif "stop" in command:
            with programs.pop(command["stop"]) as program:
                assert program.stdin is not None
                program.stdin.close()
                program.wait()
        elif "write" in command:
            Path(command["write"]).write_text(command["text"])
        elif "rounds" in command:
            answer = rounds(host, *command["rounds"])
        else:
            answer = watcher.run()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
