"""A real Kubernetes of one node: kubelet, control plane and containerd, in a process tree of its own."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.docker import Series
from tests.deploy.node import Node
from tests.deploy.tools import tool
from tests.k8s import files

WAIT = 300.0  # seconds until a test gives up
_GET = "import sys, urllib.request; sys.stdout.buffer.write(urllib.request.urlopen(sys.argv[1], timeout=10).read())"


class Cluster:
    """The cluster. `images` are archives as `docker save` writes them."""

    def __init__(self, directory: Path, binaries: Path, images: list[Path]) -> None:
        files.write(directory)
        self._directory = directory
        tools = binaries / "tools"
        path = f"{binaries}/bin:{tools}/usr/bin:{tools}/usr/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
        self._env = ["env", f"PATH={path}"]
        namespaces = ("--net", "--uts", "--ipc", "--cgroup")
        own = ("containerd", "kubelet", "ullage", "etcd")
        self.node = Node(directory, own, namespaces, files.setup(directory, tools))
        self._images = images

    def start(self) -> None:
        """Start everything; return when the node is Ready."""
        for name, flags in files.programs(self._directory).items():
            if name == "kube-controller-manager":
                self.until(lambda: self._is_up("get", "--raw=/readyz"), "the API server is ready", "kube-apiserver")
            self.node.start(name, *self._env, name, *flags)
            if name == "containerd":
                self.until(lambda: not self.node.try_to("ctr", "version").returncode, "containerd is ready", name)
                for image in self._images:
                    self.node.run("ctr", "--namespace=k8s.io", "images", "import", str(image))
        self.until(
            lambda: self._is_up("wait", "--for=condition=Ready", f"node/{files.NODE}", "--timeout=1s"),
            "the node is Ready",
            "kubelet",
        )

    def _is_up(self, *arguments: str) -> bool:
        return self.node.try_to(*self._kubectl(*arguments)).returncode == 0

    def until(self, holds: Callable[[], bool], what: str, log: str = "kubelet") -> None:
        """Wait until something holds; fail with the end of a program's log."""
        end = time.monotonic() + WAIT
        while not holds():
            said = (self._directory / f"{log}.log").read_text(errors="replace")[-3000:]
            assert time.monotonic() < end, f"not within {WAIT:.0f} s: {what}\n{said}"
            time.sleep(0.2)

    def _kubectl(self, *arguments: str) -> list[str]:
        config = files.kubeconfig(self._directory, "admin")
        return [tool("kubectl"), f"--kubeconfig={config}", f"--cache-dir={self._directory}/kubectl", *arguments]

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        """Run kubectl as the administrator; return what it prints."""
        return self.node.run(*self._kubectl(*arguments), stdin=stdin.encode() or None)

    def helm(self, *arguments: str) -> str:
        """Run helm as the administrator; return what it prints."""
        config = files.kubeconfig(self._directory, "admin")
        return self.node.run("env", f"HOME={self._directory}", tool("helm"), f"--kubeconfig={config}", *arguments)

    def get(self, *arguments: str) -> Any:
        """Return an object, or a list of objects, as JSON has it."""
        return json.loads(self.kubectl("get", "--output=json", *arguments))

    def fetch(self, url: str) -> str:
        """Return what an address of the node's network answers."""
        return self.node.run(sys.executable, "-c", _GET, url)

    def samples(self, url: str) -> Series:
        """Return the samples of a page in Prometheus' text format."""
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.fetch(url))
            for sample in family.samples
        }


@contextlib.contextmanager
def cluster(directory: Path, binaries: Path, images: list[Path]) -> Iterator[Cluster]:
    """Have a cluster for the time of a block."""
    made = Cluster(directory, binaries, images)
    try:
        made.start()
        yield made
    finally:
        made.node.close()
