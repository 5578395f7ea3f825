from __future__ import annotations

import base64
import copy
import hashlib
import os
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest

from agent.statuspage import CONTENT_SECURITY_POLICY, render

VOID = {"meta", "link", "rect", "br"}
TIERS = [
    {"name": "warning", "severity": "warning", "raise": 0.8, "clear": 0.75},
    {"name": "critical", "severity": "critical", "raise": 0.9, "clear": 0.85},
]
STATUS: dict[str, Any] = {
    "agent": {"version": "1.2.3", "started_at": 0.0, "config_file": "/etc/ullage.yml", "ready": True, "node": "n1"},
    "collectors": [
        {
            "name": "filesystem",
            "summary": "Filesystems.",
            "state": "up",
            "reason": None,
            "last_success": 1.0,
            "age_seconds": 3.25,
            "duration_seconds": 0.0042,
            "interval_seconds": 300.0,
            "progress": 0.427,
            "series": 412,
            "series_budget": 10_000,
            "errors": {"permission": 3},
            "first_errors": ["/mnt/x: Permission denied"],
        },
        {"name": "zfs", "state": "unsupported", "reason": "no ZFS here"},
        {"name": "layers", "state": "overdue"},
    ],
    "watermarks": [
        {
            "watermark": "inodes",
            "target": "/",
            "tier": None,
            "severity": None,
            "level": 0,
            "ratio": 0.5,
            "tiers": TIERS,
        },
        {
            "watermark": "inodes",
            "target": "/var/lib/docker",
            "tier": "critical",
            "severity": "critical",
            "level": 2,
            "ratio": 0.934,
            "tiers": TIERS,
        },
    ],
    "findings": [
        {
            "finding": "no-d-type",
            "severity": "warning",
            "target": "/var/lib/docker",
            "explanation": "Whiteouts cannot be told from files.",
            "remedy": "mkfs.xfs -n ftype=1 DEVICE",
        }
    ],
}


class Page(HTMLParser):
    """Checks that tags are balanced, and keeps what matters."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page.decode())
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.text += data

    def all(self, tag: str, name: str) -> list[str | None]:
        return [attributes.get(name) for found, attributes in self.tags if found == tag]


def test_everything_is_shown() -> None:
    text = Page(render(STATUS)).text
    for shown in (
        "n1", "ready", "version 1.2.3", "1970-01-01 00:00:00 UTC", "/etc/ullage.yml",
        "filesystem", "Filesystems.", "up", "3.25 s ago", "4.2 ms", "5 min", "412", "of 10000", "permission 3",
        "43 % counted", "/mnt/x: Permission denied", "no ZFS here", "overdue",
        "/var/lib/docker", "93.4 %", "critical", "50.0 %", "clear",
        "no-d-type", "Whiteouts cannot be told from files.", "mkfs.xfs -n ftype=1 DEVICE",
    ):  # fmt: skip
        assert shown in text


def test_the_worst_comes_first() -> None:
    text = Page(render(STATUS)).text
    assert text.index("93.4 %") < text.index("50.0 %")
    assert text.index("overdue") < text.index("unsupported")


def test_bars_are_as_wide_as_the_ratio_and_marked_at_each_edge() -> None:
    page = Page(render(STATUS))
    assert [width for width in page.all("rect", "width") if width != "100%"] == ["93.40%", "50.00%"]
    assert page.all("line", "x1")[:4] == ["75.00%", "80.00%", "85.00%", "90.00%"]
    assert page.all("line", "class")[:2] == ["clear", "raise"]
    assert page.all("svg", "aria-label") == ["inodes at 93.4 %", "inodes at 50.0 %"]


@pytest.mark.parametrize(("ratio", "width"), [(-0.5, "0.00%"), (1.7, "100.00%")])
def test_bars_stay_within_their_track(ratio: float, width: str) -> None:
    widths = Page(render({"watermarks": [{"ratio": ratio, "tiers": TIERS}]})).all("rect", "width")
    assert widths == ["100%", width]


def test_an_unknown_ratio_has_no_bar_and_is_not_called_clear() -> None:
    for ratio in (None, float("nan"), float("inf")):
        page = Page(render({"watermarks": [{"watermark": "inodes", "ratio": ratio, "tiers": TIERS}]}))
        assert page.all("rect", "width") == ["100%"]
        assert "clear at" in page.text
        assert page.all("span", "class") == ["pill info"]  # that of the header alone


def leaves(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every place of a status as its container and its key there."""
    if isinstance(value, dict | list):
        for key in range(len(value)) if isinstance(value, list) else list(value):
            yield value, key
            yield from leaves(value[key])


@pytest.mark.parametrize("number", range(len(list(leaves(STATUS)))))
def test_any_value_may_be_none(number: int) -> None:
    status = copy.deepcopy(STATUS)
    container, key = list(leaves(status))[number]
    if isinstance(container, list):
        del container[key]
    else:
        container[key] = None
    Page(render(status))


def test_an_empty_status_is_a_page() -> None:
    assert "first round" in Page(render({})).text


def test_a_failed_reload_is_told() -> None:
    assert "its last reload failed" in Page(render({"agent": {"config_reloaded": False}})).text


def test_nothing_that_a_container_names_becomes_markup() -> None:
    evil = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>&amp;"
    status = copy.deepcopy(STATUS)
    for container, key in list(leaves(status)):
        if isinstance(container[key], str) and key not in ("state", "severity"):
            container[key] = evil
    status["collectors"][0]["errors"] = {evil: evil}
    for values in (status["collectors"], status["watermarks"], status["findings"]):
        values[0] |= {"state": evil, "severity": evil}
    plain, attacked = Page(render(STATUS)), Page(render(status))
    assert {tag for tag, _ in attacked.tags} == {tag for tag, _ in plain.tags}
    assert attacked.text.count(evil) > 10
    assert not [name for _, attributes in attacked.tags for name in attributes if name.startswith("on")]


def test_names_that_are_no_utf8_are_shown_somehow() -> None:
    page = render({"findings": [{"target": os.fsdecode(b"/mnt/\xff")}]})
    assert "/mnt/?" in Page(page).text


def test_the_browser_is_allowed_its_style_and_nothing_else() -> None:
    match = re.search(r"<style>(.*?)</style>", render(STATUS).decode(), re.DOTALL)
    assert match is not None
    digest = base64.b64encode(hashlib.sha256(match[1].encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}';" in CONTENT_SECURITY_POLICY
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    page = Page(render(STATUS))
    assert not {"script", "img", "iframe", "form", "object"} & {tag for tag, _ in page.tags}
    assert not [tag for tag, attributes in page.tags if "style" in attributes or "src" in attributes]
    assert all(path and path.startswith("/") for path in page.all("a", "href"))


def test_a_page_of_thousands_is_cut_and_says_so() -> None:
    watermarks = [{"watermark": "inodes", "target": str(n), "ratio": n / 5000} for n in range(5000)]
    page = Page(render({"watermarks": watermarks, "findings": [{"finding": "x"}] * 1000}))
    assert "5000, the first 200 shown" in page.text
    assert "1000, the first 200 shown" in page.text
    assert len(page.all("svg", "role")) == 200
    assert "100.0 %" in page.text
