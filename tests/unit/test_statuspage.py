from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Iterable
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest

from agent.status import (
    Agent,
    CollectorStatus,
    FactStatus,
    FindingStatus,
    GoneStatus,
    Node,
    Status,
    TierStatus,
    TopItem,
    TopStatus,
    WatermarkStatus,
)
from agent.statuspage import CONTENT_SECURITY_POLICY, ROWS, render

VOID = {"meta", "link", "rect", "br"}
TIERS = (TierStatus("warning", "warning", 0.8, 0.75), TierStatus("critical", "critical", 0.9, 0.85))
RUNBOOK = "https://example.org/UllageFindingWarning.md#no-d-type"
STATUS = Status(
    time=7200.0,
    agent=Agent("1.2.3", "n1", 0.0, "/etc/ullage.yml", ready=True),
    node=Node("n1", "6.1.0", "Debian GNU/Linux 12 (bookworm)", "v2", 3600.0),
    facts=[FactStatus("Storage drivers", "ullage_driver_info", [{"runtime": "docker", "driver": "overlay2", "x": ""}])],
    top=[
        TopStatus("Page cache", "ullage_cache_bytes", "bytes", [TopItem("shop", "web", "main", "ca97", 3 << 30)]),
        TopStatus("Writable inodes", "ullage_files", "inodes", [TopItem("", "", "", "f00d", 12345)]),
    ],
    collectors=[
        CollectorStatus(
            name="filesystem",
            summary="Filesystems.",
            state="up",
            last_success=1.0,
            age_seconds=3.25,
            duration_seconds=0.0042,
            cpu_seconds=3.0,
            interval_seconds=300.0,
            progress=0.427,
            series=412,
            series_budget=10_000,
            series_dropped=7,
            errors={"permission": 3},
        ),
        CollectorStatus("zfs", "ZFS.", "unsupported", "no ZFS here"),
        CollectorStatus("layers", "Layers.", "overdue"),
    ],
    watermarks=[
        WatermarkStatus("inodes", "/var/lib/docker", 2, "critical", "critical", 0.934, TIERS),
        WatermarkStatus("inodes", "/", 0, None, None, 0.5, TIERS),
    ],
    watermark_targets=2,
    findings=[
        FindingStatus(
            finding="no-d-type",
            severity="warning",
            target="/var/lib/docker",
            explanation="Whiteouts cannot be told from files.",
            remedy="mkfs.xfs -n ftype=1 DEVICE",
            runbook=RUNBOOK,
            first_seen=0.0,
            last_seen=7195.0,
        )
    ],
    findings_gone=[GoneStatus("orphan-layers", "warning", "/srv", RUNBOOK, 60.0, 7080.0)],
)


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


def watermark(ratio: float | None, tier: str | None = None) -> WatermarkStatus:
    return WatermarkStatus("inodes", "/", 0, tier, "info" if tier else None, ratio, TIERS)


def of(watermarks: Iterable[WatermarkStatus]) -> Page:
    shown = list(watermarks)
    return Page(render(Status(watermarks=shown, watermark_targets=len(shown))))


@pytest.mark.parametrize(
    "shown",
    [
        *("n1", "ready", "version 1.2.3", "1970-01-01 00:00:00 UTC", "/etc/ullage.yml"),
        *("As of 1970-01-01 02:00:00 UTC", "6.1.0", "Debian GNU/Linux 12 (bookworm)", "v2", "(60 min ago)"),
        *("Storage drivers", "docker · overlay2", "Page cache", "shop/web/main", "ca97", "3.0 GiB", "12,345 inodes"),
        *("filesystem", "Filesystems.", "up", "3.25 s", "4.2 ms", "1 %", "5 min", "412", "of 10000", "7 dropped"),
        *("permission 3", "43 % counted", "no ZFS here", "overdue", "never"),
        *("/var/lib/docker", "93.4 %", "critical", "50.0 %", "clear"),
        *("no-d-type", "Whiteouts cannot be told from files.", "mkfs.xfs -n ftype=1 DEVICE", "Runbook"),
        *("First seen 1970-01-01 00:00:00 UTC (2 h ago), last seen 1970-01-01 01:59:55 UTC (5 s ago)",),
        *("Recently gone 1", "orphan-layers", "/srv", "1970-01-01 01:58:00 UTC (2 min ago)"),
    ],
)
def test_everything_is_shown(shown: str) -> None:
    assert shown in Page(render(STATUS)).text


def test_the_worst_comes_first() -> None:
    text = Page(render(STATUS)).text
    assert text.index("93.4 %") < text.index("50.0 %")
    assert text.index("overdue") < text.index("unsupported")


def test_bars_are_as_wide_as_the_ratio_and_marked_at_each_edge() -> None:
    page = of(STATUS.watermarks)
    assert [width for width in page.all("rect", "width") if width != "100%"] == ["93.40%", "50.00%"]
    assert page.all("line", "x1")[:4] == ["75.00%", "80.00%", "85.00%", "90.00%"]
    assert page.all("line", "class")[:2] == ["clear", "raise"]
    assert page.all("svg", "aria-label") == ["inodes at 93.4 %", "inodes at 50.0 %"]


@pytest.mark.parametrize(("ratio", "width"), [(-0.5, "0.00%"), (1.7, "100.00%")])
def test_bars_stay_within_their_track(ratio: float, width: str) -> None:
    assert of([watermark(ratio)]).all("rect", "width") == ["100%", width]


@pytest.mark.parametrize("ratio", [None, float("nan"), float("inf")])
def test_an_unknown_ratio_has_no_bar_and_is_not_called_clear(ratio: float | None) -> None:
    page = of([watermark(ratio)])
    assert page.all("rect", "width") == ["100%"]
    assert "clear at" in page.text
    assert page.all("span", "class") == ["pill info"]  # that of the header alone


def test_an_empty_status_is_a_page() -> None:
    text = Page(render(Status())).text
    assert "first round" in text
    assert "Recently gone" not in text


@pytest.mark.parametrize("epoch", [float("nan"), float("inf"), -1.0, 1e300])
def test_a_time_that_is_none_is_not_known(epoch: float) -> None:
    status = msgspec.structs.replace(STATUS, node=Node(boot_time=epoch))
    assert "Up since–" in Page(render(status)).text  # noqa: RUF001  the dash of what is not known


def test_a_failed_reload_is_told() -> None:
    assert "its last reload failed" in Page(render(Status(agent=Agent(config_reloaded=False)))).text


def test_it_refreshes_itself_until_it_is_paused() -> None:
    assert ("meta", {"http-equiv": "refresh", "content": "15"}) in Page(render(STATUS)).tags
    assert "/?refresh=off" in Page(render(STATUS)).all("a", "href")
    paused = Page(render(STATUS, is_paused=True))
    assert "refresh" not in paused.all("meta", "http-equiv")
    assert "/" in paused.all("a", "href")


def with_texts(value: Any, text: str) -> Any:
    """Return a status with another text in every place that may have any."""
    if isinstance(value, msgspec.Struct):
        given = {name: getattr(value, name) for name in value.__struct_fields__}
        fixed = ("state", "severity", "cgroup", "runbook")
        changed = {name: each if name in fixed else with_texts(each, text) for name, each in given.items()}
        return type(value)(**changed)
    if isinstance(value, (list, tuple)):
        return type(value)(with_texts(each, text) for each in value)
    if isinstance(value, dict):
        return {with_texts(key, text): with_texts(each, text) for key, each in value.items()}
    return text if isinstance(value, str) else value


def test_nothing_that_a_container_names_becomes_markup() -> None:
    evil = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>&amp;"
    plain, attacked = Page(render(STATUS)), Page(render(with_texts(STATUS, evil)))
    assert [tag for tag, _ in attacked.tags] == [tag for tag, _ in plain.tags]
    assert attacked.text.count(evil) > 30
    assert not [name for _, attributes in attacked.tags for name in attributes if name.startswith("on")]


@pytest.mark.parametrize(
    ("evil", "shown"),
    [
        ("a\nb", "a\\nb"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\u202eb", "a\\u202eb"),
        ("a\u2066b", "a\\u2066b"),
        ("a\u200bb", "a\\u200bb"),
        ("a\u00adb", "a\\xadb"),
        ("a\u2028b", "a\\u2028b"),
        ("a\ufe0fb", "a\\ufe0fb"),
        ("a\u3164b", "a\\u3164b"),
        ("a\U000e0041b", "a\\U000e0041b"),
        ("\u00fcml\u00e4ut \u65e5\u672c \u05e9\u05dc", "\u00fcml\u00e4ut \u65e5\u672c \u05e9\u05dc"),
    ],
)
def test_what_hides_or_moves_is_seen(evil: str, shown: str) -> None:
    page = Page(render(with_texts(STATUS, evil)))
    assert page.text.count(shown) > 30
    assert evil == shown or evil not in page.text


def test_names_that_are_no_utf8_are_shown_somehow() -> None:
    page = render(with_texts(STATUS, os.fsdecode(b"/mnt/\xff")))
    assert "/mnt/\\udcff" in Page(page).text


def test_a_runbook_is_a_link_if_its_url_is_one() -> None:
    assert Page(render(STATUS)).all("a", "href").count(RUNBOOK) == 2
    (found,) = STATUS.findings
    evil = msgspec.structs.replace(found, runbook="javascript:alert(1)")
    assert "javascript:alert(1)" not in render(msgspec.structs.replace(STATUS, findings=[evil])).decode()


def test_the_browser_is_allowed_its_style_and_nothing_else() -> None:
    match = re.search(r"<style>(.*?)</style>", render(STATUS).decode(), re.DOTALL)
    assert match is not None
    digest = base64.b64encode(hashlib.sha256(match[1].encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:;" in CONTENT_SECURITY_POLICY
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    page = Page(render(STATUS))
    assert not {"script", "img", "iframe", "form", "object"} & {tag for tag, _ in page.tags}
    assert not [tag for tag, attributes in page.tags if "style" in attributes or "src" in attributes]
    assert all(path and (path.startswith("/") or path == RUNBOOK) for path in page.all("a", "href"))


def test_a_page_of_thousands_is_cut_and_says_so() -> None:
    watermarks = [watermark(1 - n / 5000) for n in range(ROWS)]
    status = Status(watermarks=watermarks, watermark_targets=5000, findings=[*STATUS.findings] * 1000)
    page = Page(render(status))
    assert "5000, the first 200 shown" in page.text
    assert "1000, the first 200 shown" in page.text
    assert len(page.all("svg", "role")) == ROWS
    assert len(page.all("pre", "class")) == ROWS
