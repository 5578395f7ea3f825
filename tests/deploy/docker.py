"""Docker on a node of its own, with the image built there; and the agent's container, started from a pod's spec."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.deploy import image
from tests.deploy.node import WAIT, Node, node
from tests.deploy.pod import docker_arguments

_GET = (
    "import sys, urllib.request; print(urllib.request.urlopen('http://127.0.0.1:10940' + sys.argv[1]).read().decode())"
)
# the ConfigMap's file: so short that no test waits for a collector
CONFIG = "collectors:\n" + "".join(
    f"  {name}: {{interval: 1s, deadline: 1s}}\n" for name in ("filesystem", "pagecache", "qgroup", "writeamp")
)
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Docker:
    """The engine of a node, with its usual directories."""

    def __init__(self, on: Node, context: Path) -> None:
        self.node, self.context, self.wheel = on, context, image.context(context)

    def start(self) -> None:
        command = ["dockerd", "--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=overlay2"]
        options = ["--exec-opt=native.cgroupdriver=cgroupfs", f"--cgroup-parent=/{self.node.cgroup}/docker"]
        process = self.node.start("dockerd", *command, *options)
        end = time.monotonic() + WAIT
        while self.node.try_to("docker", "info").returncode:
            said = (self.node.directory / "dockerd.log").read_text()[-3000:]
            assert process.poll() is None, said
            assert time.monotonic() < end, said
            time.sleep(0.1)

    def build(self) -> None:
        """Build the image from its Dockerfile, on the base made here."""
        self("import", str(image.base()), image.BASE)
        arguments = {"BASE": image.BASE, "PIP_NO_INDEX": "1", "VERSION": "test"}
        given = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        self("build", "--network=none", *given, "--tag", image.NAME, str(self.context))

    def __call__(self, *arguments: str) -> str:
        """Run the docker command line; return what it prints."""
        return self.node.run("docker", *arguments)

    def sleeper(self, name: str, *options: str) -> str:
        """Start a container that does nothing; return its id."""
        command = ["run", "--detach", "--network=none", "--name", name, *options, "--entrypoint=sleep"]
        return self(*command, image.NAME, "1000")


class Agent:
    """The agent's container."""

    def __init__(self, docker: Docker, name: str) -> None:
        self.docker, self.name = docker, name

    def wait(self) -> None:
        """Wait until it is ready as the readiness probe asks."""
        end = time.monotonic() + WAIT
        while self.docker.node.try_to(*self._get("/-/ready")).returncode:
            assert time.monotonic() < end, self.log()
            time.sleep(0.2)

    def _get(self, path: str) -> list[str]:
        return ["docker", "exec", self.name, "python", "-c", _GET, path]

    def log(self) -> str:
        return self.docker.node.try_to("docker", "logs", self.name).stderr.decode()

    def python(self, script: str) -> str:
        """Run a script in the container, as whoever got into it could."""
        return self.docker("exec", self.name, "python", "-c", script)

    def series(self) -> Series:
        """Return all samples of its page."""
        text = self.docker.node.run(*self._get("/metrics"))
        uuids = set(self.docker.node.run("sh", "-c", "findmnt -n -t btrfs -o UUID || true").split())
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            # sysfs shows every btrfs of the machine, also those of other tests
            if sample.labels.get("uuid", "") in {*uuids, ""}
        }

    def of(self, metric: str, label: str) -> dict[str, float]:
        """Return a metric's values by one label."""
        return {dict(labels)[label]: value for (name, labels), value in self.series().items() if name == metric}


@contextlib.contextmanager
def docker(directory: Path) -> Iterator[Docker]:
    """Have a node with Docker and the image for the time of a block."""
    places = directory / "node", directory / "context"
    for place in places:
        place.mkdir()
    with node(places[0]) as on:
        made = Docker(on, places[1])
        made.start()
        made.build()
        yield made


def without(spec: Mapping[str, Any], capability: str) -> dict[str, Any]:
    """Return a pod's spec with one capability less."""
    changed = copy.deepcopy(dict(spec))
    changed["containers"][0]["securityContext"]["capabilities"]["add"].remove(capability)
    return changed


@contextlib.contextmanager
def agent(engine: Docker, spec: Mapping[str, Any], config: str = CONFIG) -> Iterator[Agent]:
    """Have the agent's container for the time of a block, made as the kubelet would make it."""
    for volume in spec["volumes"]:
        path = volume.get("hostPath", {})
        if path.get("type") == "DirectoryOrCreate":
            engine.node.run("mkdir", "-p", "-m", "0755", path["path"])
        elif path.get("type") == "Directory":
            engine.node.run("test", "-d", path["path"])
    arguments = docker_arguments(spec, image.NAME, engine.node.directory, config)
    engine("run", "--detach", "--network=none", "--name", "agent", *arguments)
    try:
        made = Agent(engine, "agent")
        made.wait()
        yield made
    finally:
        engine("rm", "--force", "agent")
