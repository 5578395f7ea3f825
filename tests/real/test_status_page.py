"""The status page in a real Chromium, of a real agent: a container, filesystems, and names that want to break out.

One browser looks at it in all tests; what it has complained of, and whom it has asked, is judged in the last ones.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.bench.measure import free_port
from tests.browser import Browser, browser, lack
from tests.e2e.stack import Program, fetch, until
from tests.real.conftest import run
from tests.real.dockerd import dockerd
from tests.refusal import refuse

pytestmark = [pytest.mark.root, pytest.mark.docker, pytest.mark.slow]

# markup, quotes, an entity; an override of direction, a character without width, a line's end; letters from the right
LETTERS = "\u05d0\u05d1\u05d2-123"
EVIL = (
    f"""<script>document.title="evil"</script><img src=x onerror=document.title='e'>&amp;\u202egnp\u200b\n{LETTERS}"""
)
SHOWN = EVIL.replace("\u202e", "\\u202e").replace("\u200b", "\\u200b").replace("\n", "\\n")
CONFIG = """
collectors:
  filesystem: {{interval: 1s}}
  overlay: {{interval: 1s}}
  pagecache: {{interval: 1s}}
  layers: {{interval: 1s}}
runtime: {{docker: {{root: [{root}], socket: [{socket}]}}}}
"""
WORK = "dd if=/dev/zero of=/tmp/file bs=1M count=20; for i in 1 2 3; do : > /tmp/$i; done; sync; sleep 10000"
MIB = 1 << 20
WIDTHS = (320, 360, 800, 980, 1200)  # CSS pixels: the least that WCAG asks for, a phone, tablets, a desk


@dataclass
class Scene:
    """The agent's address, the browser, and a filesystem of 8 MiB with a hostile name."""

    url: str
    browser: Browser
    mount: Path

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(fetch(f"{self.url}api/v1/status"))
        return status

    def text(self) -> str:
        text: str = self.browser.value("document.body.innerText")
        return text

    def ratio(self) -> str:
        """Return the row that the page has of that filesystem's bytes."""
        script = """[...document.querySelectorAll("tr")].map(row => row.innerText).filter(text =>
            text.includes(%s) && text.includes("filesystem_bytes")).join("|")"""
        row: str = self.browser.value(script % json.dumps(f"{SHOWN}/fill"))
        return row


def mount_overlay(point: Path, lower: Path, upper: Path, work: Path, made: ExitStack) -> None:
    """Mount by mount(2): mount(8) has a meaning of its own for quotes."""
    for each in (point, lower, work):
        each.mkdir(parents=True, exist_ok=True)
    libc = ctypes.CDLL(None, use_errno=True)
    data = os.fsencode(f"lowerdir={lower},upperdir={upper},workdir={work}")
    assert libc.mount(b"overlay", os.fsencode(point), b"overlay", 0, data) == 0, os.strerror(ctypes.get_errno())
    # a test may have done what the remedy says
    made.callback(subprocess.run, ("umount", "-l", str(point)), check=False, capture_output=True)


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    if os.geteuid() != 0 or lack():
        refuse(lack() or "needs root")
    with ExitStack() as made:
        # a short path: a socket's may have 107 characters
        directory = Path(made.enter_context(tempfile.TemporaryDirectory(prefix="ullage-page-")))
        scratch = directory / "scratch"
        scratch.mkdir()
        run("mount", "-t", "tmpfs", "scratch", str(scratch))
        made.callback(run, "umount", "-l", str(scratch))
        evil = scratch / EVIL
        for name in ("fill", "upper"):
            (evil / name).mkdir(parents=True)
        run("mount", "-t", "tmpfs", "-o", "size=8m", "small", str(evil / "fill"))
        made.callback(run, "umount", "-l", str(evil / "fill"))
        (scratch / "link").symlink_to(evil / "upper")
        mount_overlay(evil / "one", scratch / "lower", evil / "upper", evil / "work-1", made)
        mount_overlay(evil / "two", scratch / "lower", scratch / "link", evil / "work-2", made)
        (directory / "docker").mkdir()
        docker = made.enter_context(dockerd(directory / "docker"))
        docker.import_image("busybox")
        docker.run("web", WORK)
        config = directory / "ullage.yml"
        config.write_text(CONFIG.format(root=docker.root, socket=docker.socket))
        url = f"http://127.0.0.1:{free_port()}/"
        command = [
            sys.executable,
            "-m",
            "agent",
            "run",
            f"--config.file={config}",
            f"--path.state={directory / 'state'}",
        ]
        agent = Program("agent", directory, [*command, f"--web.listen-address={url[7:-1]}"], f"{url}-/ready")
        made.callback(agent.close)
        agent.start()
        seen = made.enter_context(browser(directory / "browser"))
        seen.show_as(1200, 900, "light")
        scene = Scene(url, seen, evil / "fill")
        wanted = {"Page cache", "Writable inodes"}
        until(lambda: wanted <= {top["title"] for top in scene.status()["top"]}, "the container is in both rankings")
        yield scene


def test_it_shows_what_the_status_says(scene: Scene) -> None:
    scene.browser.open(scene.url)
    status, text = scene.status(), scene.text()
    node = status["node"]
    for shown in (node["hostname"], node["os"], node["kernel"], node["cgroup"], "Storage drivers", "docker · overlay2"):
        assert shown in text
    for collector in status["collectors"]:
        assert collector["name"] in text
        assert collector["reason"] is None or collector["reason"] in text
    for watermark in status["watermarks"]:
        assert watermark["watermark"] in text
    assert "Page cache" in text
    assert "Writable inodes" in text
    assert "web" in text
    assert scene.browser.value("document.querySelectorAll('svg .raise').length") > 0
    assert scene.browser.value("document.querySelectorAll('svg .clear').length") > 0


def test_a_finding_is_shown_with_its_remedy_and_one_click_selects_that(scene: Scene) -> None:
    until(lambda: "overlay-shared-upper" in str(scene.status()["findings"]), "the finding is there")
    scene.browser.open(f"{scene.url}?refresh=off")
    (found,) = [each for each in scene.status()["findings"] if each["finding"] == "overlay-shared-upper"]
    text = scene.text()
    assert "overlay-shared-upper" in text
    assert "First seen" in text
    assert scene.browser.value(f"[...document.links].some(link => link.href == {json.dumps(found['runbook'])})")
    place = "[...document.querySelectorAll('pre')].find(each => each.innerText.includes('umount'))"
    scene.browser.value(f"{place}.scrollIntoView()")
    box = scene.browser.value(f"(({{x, y}}) => [x, y])({place}.getBoundingClientRect())")
    for kind in ("mousePressed", "mouseReleased"):
        at = {"x": box[0] + 20, "y": box[1] + 15}
        scene.browser.ask("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **at)
    assert scene.browser.value("getSelection().toString()") == scene.browser.value(f"{place}.innerText")


def test_names_break_out_of_nothing(scene: Scene) -> None:
    scene.browser.open(scene.url)
    text = scene.text()
    assert text.count(SHOWN) >= 3  # of the watermarks, and in the finding
    assert not {"\u202e", "\u200b"} & set(text)
    assert scene.browser.value("document.querySelectorAll('script, img, iframe, object').length") == 0
    assert scene.browser.value("document.title").startswith("Ullage")


@pytest.mark.parametrize("element", ["td", "pre", "p"])
def test_letters_from_the_right_stand_in_the_order_of_the_path(scene: Scene, element: str) -> None:
    scene.browser.open(scene.url)
    script = """(letters => {
        for (const each of document.querySelectorAll(%s)) for (const node of each.childNodes) {
            const start = node.nodeType == Node.TEXT_NODE ? node.data.indexOf(letters) : -1;
            if (start < 0) continue;
            return [...letters].map((_, at) => {
                const range = document.createRange();
                range.setStart(node, start + at);
                range.setEnd(node, start + at + 1);
                const box = range.getBoundingClientRect();
                return [box.y, box.x];
            });
        }
    })(%s)"""
    places = scene.browser.value(script % (json.dumps(element), json.dumps(LETTERS)))
    assert places == sorted(places)
    assert len({tuple(place) for place in places}) == len(LETTERS)


def test_it_refreshes_itself_shows_what_has_changed_and_stays_where_it_was(scene: Scene) -> None:
    page = scene.browser
    page.show_as(1200, 300, "light")
    page.open(scene.url)
    before = scene.ratio()
    assert "clear" in before
    page.value("scrollTo(0, 250)")
    loads, made_at = page.loads, page.value("performance.timeOrigin")
    (scene.mount / "file").write_bytes(b"x" * (7 * MIB + MIB // 2))
    page.until(lambda: page.loads > loads and "critical" in scene.ratio(), "the page shows it by itself")
    assert page.value("performance.timeOrigin") > made_at
    assert "93." in scene.ratio()
    assert page.value("scrollY") == 250
    (scene.mount / "file").unlink()
    page.until(lambda: "clear" in scene.ratio(), "the page shows that it is over")
    page.show_as(1200, 900, "light")


def test_it_can_be_paused(scene: Scene) -> None:
    page = scene.browser
    page.open(scene.url)
    assert page.value("document.querySelectorAll('meta[http-equiv=refresh]').length") == 1
    for link, is_refreshing in (("pause", 0), ("refresh again", 1)):
        page.click(link)
        assert page.value("document.querySelectorAll('meta[http-equiv=refresh]').length") == is_refreshing


def check_width(scene: Scene, width: int) -> None:
    """Nothing reaches out of a window of this width, nor out of what it is in."""
    scene.browser.show_as(width, 780, "light")
    scene.browser.open(scene.url)
    script = "[...document.querySelectorAll('body *')].filter(each => %s).map(each => each.outerHTML.slice(0, 200))"
    assert scene.browser.value(script % f"each.getBoundingClientRect().right > {width}") == []
    assert scene.browser.value(script % "each.clientWidth && each.scrollWidth > each.clientWidth") == []
    assert scene.browser.value("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_window(scene: Scene, width: int) -> None:
    check_width(scene, width)


def brightness(color: str) -> int:
    """Return the sum of the three parts of `rgb(17, 21, 27)`."""
    return sum(map(int, color.removeprefix("rgb(").removesuffix(")").split(",")))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_light_or_dark_as_the_person_prefers(scene: Scene, scheme: str) -> None:
    scene.browser.show_as(1200, 900, scheme)
    scene.browser.open(scene.url)
    style = "getComputedStyle(document.body)"
    page, ink = (brightness(scene.browser.value(f"{style}.{name}")) for name in ("backgroundColor", "color"))
    assert (page > ink) == (scheme == "light")
    assert abs(page - ink) > 400


def test_what_its_remedy_ends_is_shown_as_recently_gone(scene: Scene) -> None:
    (found,) = [each for each in scene.status()["findings"] if each["finding"] == "overlay-shared-upper"]
    run("sh", "-c", found["remedy"].partition(": ")[2])
    until(lambda: "overlay-shared-upper" in str(scene.status()["findings_gone"]), "the finding is gone")
    for width in WIDTHS:
        check_width(scene, width)
        assert "Recently gone" in scene.text()
        assert scene.text().count(SHOWN) >= 3


def complaints(page: Browser) -> list[tuple[str, dict[str, Any]]]:
    """Return what a person would see in the browser's console."""
    names = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Audits.issueAdded")
    return [(name, parameters) for name, parameters in page.events if name in names]


def test_the_browser_has_nothing_to_complain_of(scene: Scene) -> None:
    scene.browser.open(scene.url)
    assert scene.browser.loads > 10
    assert complaints(scene.browser) == []


def test_nobody_but_the_agent_was_asked(scene: Scene) -> None:
    scene.browser.open(scene.url)
    urls = [
        parameters["request"]["url"] for name, parameters in scene.browser.events if name == "Network.requestWillBeSent"
    ]
    assert len(urls) > 10
    assert [url for url in urls if not url.startswith((scene.url, "data:"))] == []


def test_a_script_that_got_in_would_not_run_and_be_complained_of(scene: Scene) -> None:
    """The policy itself; and that the tests above could fail."""
    scene.browser.open(scene.url)
    add = "document.body.append(Object.assign(document.createElement(%s), {%s}))"
    scene.browser.value(add % ("'script'", "text: 'document.title = \"evil\"'"))
    scene.browser.value(add % ("'img'", "src: 'http://192.0.2.1/x.png'"))
    scene.browser.until(
        lambda: sum("Content Security Policy" in str(each) for each in complaints(scene.browser)) >= 2,
        "the browser complains of both",
    )
    assert scene.browser.value("document.title").startswith("Ullage")
    failed = [parameters.get("blockedReason") for name, parameters in scene.browser.events if "loadingFailed" in name]
    assert failed == ["csp"]
