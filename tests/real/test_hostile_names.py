"""Names that containers choose, on their way through the whole agent: a real Prometheus, parsers, a page, a terminal.

Mount points, labels of real Docker containers, a cgroup and its task's name, an overlay's layers: each tries to forge
a series, a line of the log, an element of the page, an escape of the terminal.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from agent.metric import label
from tests.agent_process import Agent, running
from tests.bench.measure import free_port
from tests.e2e.stack import Program, fetch, until
from tests.real.cgroups import cgroup, memory_root
from tests.real.conftest import run
from tests.real.dockerd import Dockerd, dockerd, root_archive

pytestmark = [pytest.mark.root, pytest.mark.docker, pytest.mark.slow]

FORGED = "ullage_forged"
NAMES = (
    b'x"} 1\n' + FORGED.encode() + b'{a="b',
    b"x\n# EOF\nlevel=error event=" + FORGED.encode(),
    b"\\",
    b'\\"',
    b"'\"><script src=x>" + FORGED.encode(),
    b"\x1b[2J\x1b]0;title\x07\r",
    b"\xff\xfe\xed\xa0\x80",
    "\u202egnp.exe\u2066\u2028".encode(),
    b"%s%n%(x)s{0}$(reboot)`reboot`",
    b"n" * 255,
)
PARENT = f"ullage-evil-{os.getpid()}-pod"  # of cgroups
LIE = "etcd-master"
TASK = 'ctr"} 1 \\ <script> \x1b[2J \u202e'  # the kernel takes no newline in a cgroup's name


@pytest.fixture
def place(need: Callable[..., None]) -> Iterator[Path]:
    need("dockerd", "docker", "busybox", "prometheus")
    # a short path: a socket's may have 107 characters
    with tempfile.TemporaryDirectory(prefix="ullage-evil-") as made:
        yield Path(made)


@pytest.fixture
def mounts(place: Path, stack: contextlib.ExitStack) -> list[bytes]:
    """Mount a tmpfs at each name; and an overlay of layers with such names."""
    points = []
    for number, name in enumerate(NAMES):
        point = os.fsencode(place / str(number)) + b"/" + name.replace(b"/", b"_")
        os.makedirs(point)
        subprocess.run([b"mount", b"-t", b"tmpfs", name, point], check=True)
        stack.callback(subprocess.run, [b"umount", b"-l", point], check=True)
        points.append(point)
    layer = points[1] + b"/layer\n<script>"
    for directory in (layer, points[0] + b"/upper", points[0] + b"/work", points[2] + b"/merged"):
        os.mkdir(directory)
    options = b"lowerdir=%s,upperdir=%s,workdir=%s" % tuple(
        part.replace(b"\\", b"\\\\") for part in (layer, points[0] + b"/upper", points[0] + b"/work")
    )
    subprocess.run([b"mount", b"-t", b"overlay", b"evil", b"-o", options, points[2] + b"/merged"], check=True)
    stack.callback(subprocess.run, [b"umount", b"-l", points[2] + b"/merged"], check=True)
    return points


@pytest.fixture
def docker(place: Path) -> Iterator[Dockerd]:
    (place / "docker").mkdir()
    with dockerd(place / "docker") as made:
        yield made


@pytest.fixture
def pods(docker: Dockerd) -> Iterator[list[str]]:
    """Run containers of pods with hostile names, which are returned, and one whose image says that it is of a pod."""
    docker.import_image("busybox")
    pods = [name.decode("utf-8", "replace") for name in NAMES][:6]
    for number, pod in enumerate(pods):
        labels = [f"--label=io.kubernetes.{key}={pod}" for key in ("pod.name", "pod.namespace", "container.name")]
        uid = f"{number:032x}"
        place = f"--label=io.kubernetes.pod.uid={uid}", f"--cgroup-parent=/{PARENT}{uid}"
        docker.docker("run", "--detach", "--network=none", *labels, *place, "busybox", "/bin/sleep", "1000")
    said = f"LABEL io.kubernetes.pod.name={LIE} io.kubernetes.pod.namespace=kube-system io.kubernetes.pod.uid={0:032x}"
    docker.docker("import", "--change", said, "-", "liar", stdin=root_archive())
    docker.docker("run", "--detach", "--network=none", "--name=liar", "liar", "/bin/sleep", "1000")
    yield pods
    docker.docker("rm", "--force", *docker.docker("ps", "--all", "--quiet").split())
    for left in Path("/sys/fs/cgroup").glob(f"**/{PARENT}*"):  # Docker's own it removes, not what they are in
        left.rmdir()


class Evil(NamedTuple):
    """A node of hostile names, as label values, and the agent on it."""

    place: Path
    flags: list[str]
    points: set[str]
    pods: set[str]
    agent: Agent


@pytest.fixture
def evil(place: Path, docker: Dockerd, mounts: list[bytes], pods: list[str]) -> Iterator[Evil]:
    root = memory_root()
    assert root is not None
    (place / "state/io.containerd.runtime.v2.task/evil" / TASK).mkdir(parents=True)
    flags = [f"--runtime.docker.socket={docker.socket}", f"--runtime.docker.root={docker.root}"]
    flags.append(f"--runtime.containerd.state={place / 'state'}")
    with cgroup(root / "evil" / TASK), running(place, *flags, "--log.level=debug") as started:
        made = Evil(place, flags, {label(point) for point in mounts}, {label(pod) for pod in pods}, started)
        known = {*made.pods, "liar"}
        until(lambda: known <= values(parse_text(started.scrape()), "container"), "the containers are known")
        yield made


def values(families: object, name: str) -> set[str]:
    """Return the values of one label; no family is one that a name has forged."""
    found = set()
    for family in families:  # type: ignore[attr-defined]  # of a library without types
        assert family.name != FORGED
        found |= {sample.labels.get(name, "") for sample in family.samples}
    return found


class Page(HTMLParser):
    """Elements and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert not any(name.startswith("on") or (name in ("src", "href") and value == "x") for name, value in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_hostile_names_stay_what_they_are(evil: Evil) -> None:
    started = evil.agent
    openmetrics = "application/openmetrics-text; version=1.0.0"
    forms = {
        "text": parse_text(started.scrape()),
        "gzip": parse_text(gzip.decompress(started.fetch("/metrics", Accept_Encoding="gzip")).decode()),
        "openmetrics": parse_openmetrics(started.fetch("/metrics", Accept=openmetrics).decode()),
    }
    for form, families in forms.items():
        told = list(families)
        assert values(told, "mountpoint") >= evil.points, form
        assert values(told, "pod") >= evil.pods, form
        assert values(told, "container") >= {*evil.pods, label(TASK), "liar"}, form
        assert LIE not in values(told, "pod")

    assert json.loads(started.fetch("/api/v1/status"))["collectors"]
    page = Page(started.fetch("/").decode())
    assert not {"script", "img", "iframe"} & page.tags

    log = evil.agent.log
    assert [line for line in log.split("\n")[:-1] if not (line.startswith("timestamp=") and line.isprintable())] == []
    command = [sys.executable, "-m", "agent", "doctor", "--seconds=1", *evil.flags]
    done = subprocess.run(command, check=False, capture_output=True, timeout=120)
    shown = done.stdout.decode()
    assert done.returncode in (0, 1, 2, 3), done.stderr
    assert [line for line in shown.split("\n") if not line.isprintable()] == []
    assert FORGED not in [line.strip()[: len(FORGED)] for line in shown.split("\n")]


def test_a_real_prometheus_stores_them_as_they_are(evil: Evil, stack: contextlib.ExitStack) -> None:
    place = evil.place
    port = free_port()
    config = place / "prometheus.yml"
    target = evil.agent.url.removeprefix("http://")
    config.write_text(
        "global: {scrape_interval: 1s, scrape_timeout: 1s}\n"
        f'scrape_configs: [{{job_name: ullage, static_configs: [{{targets: ["{target}"]}}]}}]\n'
    )
    url = f"http://127.0.0.1:{port}"
    flags = [f"--config.file={config}", f"--storage.tsdb.path={place}/tsdb", f"--web.listen-address=127.0.0.1:{port}"]
    prometheus = Program("prometheus", place, ["prometheus", *flags], f"{url}/-/ready")
    stack.callback(prometheus.close)
    prometheus.start()

    def stored(name: str) -> set[str]:
        answer = json.loads(fetch(f"{url}/api/v1/label/{name}/values"))
        return set(answer["data"])

    until(
        lambda: stored("mountpoint") >= evil.points and stored("pod") >= evil.pods,
        "Prometheus has all names as they are",
    )
    assert FORGED not in stored("__name__")
    (scraped,) = json.loads(fetch(f"{url}/api/v1/targets"))["data"]["activeTargets"]
    assert (scraped["health"], scraped["lastError"]) == ("up", "")


def test_nothing_of_it_is_left() -> None:
    assert "ullage-evil-" not in run("cat", "/proc/self/mountinfo")
