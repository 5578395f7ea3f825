"""The status page: the status, for a person. One HTML file without scripts or outside resources.

Names come from containers and the kernel, so every text is made plain and escaped, and the browser is told to run
nothing.
"""

from __future__ import annotations

import base64
import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape
from typing import TypeVar

from agent.plain import plain
from agent.status import (
    Agent,
    CollectorStatus,
    FindingStatus,
    GoneStatus,
    Node,
    Status,
    TopItem,
    TopStatus,
    WatermarkStatus,
)

Item = TypeVar("Item")
Column = tuple[str, str]  # its head and its class

ROWS = 200  # of watermarks and of findings; the fullest and the worst come first, JSON has them all
REFRESH = 15  # seconds
PAUSED = "refresh=off"  # the query that asks for a page which stays as it is
_UNKNOWN = "–"  # noqa: RUF001  the dash of a table's empty cell
_NEVER = 253_402_300_800.0  # the year 10000, in Unix time
_STATES = ("overdue", "failing", "starting", "up", "unsupported")
_NUMBER = "number"
_WATERMARKS: tuple[Column, ...] = (
    ("Watermark", ""),
    ("Target", "target"),
    ("Ratio", _NUMBER),
    ("Level", ""),
    ("line: raised at, dashes: cleared at", "bar"),
)
_COLLECTORS: tuple[Column, ...] = (
    ("Collector", ""),
    ("State", ""),
    ("Age", _NUMBER),
    ("Run took", _NUMBER),
    ("Of a CPU", _NUMBER),
    ("Interval", _NUMBER),
    ("Series", _NUMBER),
    ("Errors", ""),
)
_GONE: tuple[Column, ...] = (("Finding", ""), ("Target", "target"), ("First seen", _NUMBER), ("Last seen", _NUMBER))
_ENDPOINTS = ("/metrics", "/api/v1/status", "/-/healthy", "/-/ready")

# Below 60rem a row of a table becomes a block, each cell with its head before it: nothing is wider than a phone.
# isolate-override: letters that run from right to left stay in the order in which a command or a path has them.
_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1b2330; --soft: #5b6678; --line: #dfe3ea;
  --track: #e6e9ef; --good: #1a7f4b; --info: #2463c4; --warning: #a85800; --critical: #c62834; --code: #f1f3f7; }
@media (prefers-color-scheme: dark) { :root { --page: #11151b; --card: #1a2029; --ink: #e4e9f1; --soft: #96a2b5;
  --line: #2b3441; --track: #2a323e; --good: #45b97c; --info: #6ea4f4; --warning: #f0a13a; --critical: #ff6b70;
  --code: #12171e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 76rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
b, code, dd, dt, li, p, pre, small, span, td, th { unicode-bidi: isolate-override; direction: ltr; }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: .25rem 1rem; }
h1 { margin: 0; font-size: 1.5rem; }
h2 { margin: 2rem 0 .6rem; font-size: 1.05rem; }
h3 { margin: 0 0 .3rem; font-size: .87rem; color: var(--soft); }
h2 small, header p, footer, .soft { color: var(--soft); font-size: .87rem; font-weight: normal; }
header p { margin: 0; }
a { color: var(--info); }
section > p { margin: 0; }
section > p, .card, .table, dl { background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
section > p, .card, dl { padding: .7rem 1rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; margin: 0; }
dt { color: var(--soft); }
dd { margin: 0; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .8rem; text-align: left; vertical-align: top; border-top: 1px solid var(--line); }
thead th { border-top: 0; color: var(--soft); font-size: .8rem; font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 600; }
.table tbody th { overflow-wrap: break-word; }
tbody th small, td small { display: block; color: var(--soft); font-size: .82rem; font-weight: normal; }
.number { text-align: right; white-space: nowrap; }
.target { min-width: 9rem; }
.bar { width: 35%; min-width: 9rem; }
.tops { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: .6rem; }
.tops .card { margin: 0; }
ol { margin: 0; padding: 0; list-style: none; }
li { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem; padding: .2rem 0; }
li svg { height: .4rem; }
.pill { display: inline-block; padding: 0 .55rem; border: 1px solid currentcolor; border-radius: 1rem;
  font-size: .8rem; font-weight: 600; white-space: nowrap; }
.card { margin-bottom: .6rem; }
.finding { border-left: 4px solid currentcolor; }
.card > * { margin: .25rem 0; }
.card p, .card b { color: var(--ink); }
.card .soft { color: var(--soft); }
pre { padding: .5rem .7rem; border-radius: 6px; background: var(--code); color: var(--ink);
  font: 13px/1.45 ui-monospace, "DejaVu Sans Mono", monospace; white-space: pre-wrap;
  -webkit-user-select: all; user-select: all; }
svg { display: block; width: 100%; height: 1.35rem; }
.track { fill: var(--track); }
.fill { fill: currentcolor; }
.raise { stroke: var(--ink); stroke-width: 2; }
.clear { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 2 2; }
.good { color: var(--good); } .info { color: var(--info); } .warning { color: var(--warning); }
.critical { color: var(--critical); } .none { color: var(--soft); }
footer { margin-top: 2.5rem; }
footer a { margin-right: 1rem; }
@media (max-width: 60rem) {
  .table thead { display: none; }
  .table tr { display: flex; flex-wrap: wrap; gap: .1rem 1rem; padding: .6rem .8rem;
    border-top: 1px solid var(--line); }
  .table tr:first-child { border-top: 0; }
  .table th, .table td { padding: 0; border: 0; min-width: 0; text-align: left; white-space: normal; }
  .table tbody th, .table .target, .table .bar { width: 100%; }
  .table td[data-head]::before { content: attr(data-head) " "; color: var(--soft); font-size: .82rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .4rem; }
}
"""

_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; img-src data:; "  # data: of the empty icon, and nothing else
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_CLASSES = {
    "up": "good",
    "overdue": "critical",
    "failing": "critical",
    "starting": "info",
    "unsupported": "none",
    "critical": "critical",
    "warning": "warning",
    "info": "info",
}


def render(status: Status, *, is_paused: bool = False) -> bytes:
    """Return the page of a status; paused, it stays as it is."""
    agent, now = status.agent, status.time
    name = _text(status.node.hostname or agent.node)
    body = "\n".join(
        (
            _header(agent, name, now, is_paused=is_paused),
            _findings(status.findings, now),
            _gone(status.findings_gone, now),
            _watermarks(status.watermarks, status.watermark_targets),
            _tops(status.top),
            _node(status, now),
            _collectors(status.collectors),
            "<footer>" + " ".join(f'<a href="{path}">{path}</a>' for path in _ENDPOINTS) + "</footer>",
        )
    )
    # The browser's own reload, as scripts are forbidden: at the same address it keeps the place to which one has
    # scrolled, and draws the new page over the old one. It would take a selection away, hence the pause.
    refresh = "" if is_paused else f'<meta http-equiv="refresh" content="{REFRESH}">'
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">{refresh}'
        f'<link rel="icon" href="data:,"><title>Ullage · {name}</title><style>{_STYLE}</style>'
    )
    page = f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'
    return page.encode("utf-8", "replace")


def _header(agent: Agent, name: str, now: float, *, is_paused: bool) -> str:
    pill = '<span class="pill good">ready</span>' if agent.ready else '<span class="pill info">first round</span>'
    facts = [
        f"version {_text(agent.version)}",
        f"started {_moment(agent.started_at)}",
        f"configuration {_text(agent.config_file or 'built in')}",
    ]
    if not agent.config_reloaded:
        facts.append('<b class="critical">its last reload failed; the one before is in force</b>')
    refresh = '<a href="/">refresh again</a>' if is_paused else f'<a href="/?{PAUSED}">pause</a>'
    age = f"As of {_moment(now)}, {'paused' if is_paused else f'new every {REFRESH} s'}: {refresh}"
    return f"<header><h1>Ullage</h1><b>{name}</b>{pill}<p>{' · '.join(facts)}</p><p>{age}</p></header>"


# -- findings --


def _findings(findings: Sequence[FindingStatus], now: float) -> str:
    cards = "\n".join(_finding(found, now) for found in findings[:ROWS])
    return _section("Findings", len(findings), cards or "<p>None.</p>")


def _finding(found: FindingStatus, now: float) -> str:
    remedy = f"<pre>{_text(found.remedy)}</pre>" if found.remedy else ""
    return (
        f'<article class="card finding {_class(found.severity)}">'
        f"<div>{_pill(found.severity)} <b>{_text(found.finding)}</b> "
        f'<span class="soft">{_text(found.target)}</span></div>'
        f"<p>{_text(found.explanation)}</p>{remedy}"
        f'<p class="soft">First seen {_seen(found.first_seen, now)}, last seen {_seen(found.last_seen, now)}. '
        f"{_link(found.runbook, 'Runbook')}</p></article>"
    )


def _gone(findings: Sequence[GoneStatus], now: float) -> str:
    def cells(found: GoneStatus) -> tuple[str, ...]:
        return (
            _link(found.runbook, found.finding),
            _text(found.target),
            _seen(found.first_seen, now),
            _seen(found.last_seen, now),
        )

    return _section("Recently gone", len(findings), _table(_GONE, findings, cells)) if findings else ""


# -- watermarks --


def _watermarks(watermarks: Sequence[WatermarkStatus], targets: int) -> str:
    return _section("Watermarks", targets, _table(_WATERMARKS, watermarks[:ROWS], _watermark))


def _watermark(watermark: WatermarkStatus) -> tuple[str, ...]:
    pill = _UNKNOWN
    if watermark.tier is not None:
        pill = _pill(watermark.severity, watermark.tier)
    elif _number(watermark.ratio) is not None:
        pill = '<span class="pill good">clear</span>'
    return (
        _text(watermark.watermark),
        _text(watermark.target),
        _percent(watermark.ratio),
        pill,
        _bar(watermark),
    )


def _bar(watermark: WatermarkStatus) -> str:
    """Return a bar as wide as the ratio with a mark at each tier's edges: lines for raise, dashes for clear."""
    marks = "".join(
        f'<line class="{edge}" x1="{_share(at)}" x2="{_share(at)}" y1="0" y2="100%">'
        f"<title>{_text(tier.name)}: {edge} at {_percent(at)}</title></line>"
        for tier in watermark.tiers
        for edge, at in (("clear", tier.clear_at), ("raise", tier.raise_at))
    )
    kind = _class(watermark.severity) if watermark.tier else "good"
    return _meter(kind, watermark.ratio, f"{_text(watermark.watermark)} at {_percent(watermark.ratio)}", marks)


def _meter(kind: str, ratio: float | None, label: str, marks: str = "") -> str:
    number = _number(ratio)
    fill = f'<rect class="fill" y="20%" height="60%" rx="3" width="{_share(number)}"/>' if number is not None else ""
    return (
        f'<svg class="{kind}" role="img" aria-label="{label}"><rect class="track" y="20%" width="100%" height="60%" '
        f'rx="3"/>{fill}{marks}</svg>'
    )


# -- containers --


def _tops(tops: Sequence[TopStatus]) -> str:
    if not tops:
        return ""
    cards = "\n".join(f'<div class="card"><h3>{_text(top.title)}</h3>{_top(top)}</div>' for top in tops)
    return f'<section><h2>Containers</h2>\n<div class="tops">{cards}</div></section>'


def _top(top: TopStatus) -> str:
    most = max((item.value for item in top.items), default=0.0) or 1.0
    return "<ol>" + "\n".join(_ranked(item, top.unit, item.value / most) for item in top.items) + "</ol>"


def _ranked(item: TopItem, unit: str, share: float) -> str:
    name = "/".join(filter(None, (item.namespace, item.pod, item.container))) or item.id
    amount = _amount(item.value, unit)
    meter = _meter("info", share, f"{_text(name)}: {amount}")
    return f'<li><span>{_text(name)} <small class="soft">{_text(item.id)}</small></span><b>{amount}</b>{meter}</li>'


# -- collectors --


def _collectors(collectors: Iterable[CollectorStatus]) -> str:
    ordered = sorted(collectors, key=lambda each: (_STATES.index(each.state), each.name))
    return _section("Collectors", len(ordered), _table(_COLLECTORS, ordered, _collector))


def _collector(collector: CollectorStatus) -> tuple[str, ...]:
    dropped = collector.series_dropped
    series = f"{collector.series}<small>of {collector.series_budget}</small>"
    cpu, interval = collector.cpu_seconds, collector.interval_seconds
    return (
        f"{_text(collector.name)}<small>{_text(collector.summary)}</small>",
        f"{_pill(collector.state)}<small>{_text(collector.reason or '')}</small>{_progress(collector.progress)}",
        "never" if collector.age_seconds is None else _duration(collector.age_seconds),
        _duration(collector.duration_seconds),
        _UNKNOWN if cpu is None or interval <= 0 else f"{100 * cpu / interval:.2g} %",
        _duration(interval),
        series + (f'<small class="critical">{dropped} dropped</small>' if dropped else ""),
        ", ".join(f"{_text(reason)} {count}" for reason, count in sorted(collector.errors.items())) or _UNKNOWN,
    )


def _progress(done: float | None) -> str:
    return f"<small>{100 * done:.0f} % counted</small>" if done is not None and done < 1 else ""


# -- the node --


def _node(status: Status, now: float) -> str:
    entries = "".join(f"<dt>{_text(title)}</dt><dd>{lines}</dd>" for title, lines in _node_facts(status, now))
    return f"<section><h2>Node</h2>\n<dl>{entries}</dl></section>"


def _node_facts(status: Status, now: float) -> Iterator[tuple[str, str]]:
    node: Node = status.node
    yield "Operating system", _text(node.os)
    yield "Kernel", _text(node.kernel)
    yield "Control groups", _text(node.cgroup)
    yield "Up since", _seen(node.boot_time, now)
    for fact in status.facts:
        lines = (" · ".join(filter(None, item.values())) for item in fact.items)
        yield fact.title, "<br>".join(map(_text, lines))


# -- what all of them are made of --


def _section(title: str, count: int, content: str) -> str:
    more = f", the first {ROWS} shown" if count > ROWS else ""
    return f"<section><h2>{title} <small>{count}{more}</small></h2>\n{content}</section>"


def _table(columns: Sequence[Column], items: Iterable[Item], cells_of: Callable[[Item], Sequence[str]]) -> str:
    """Return a table of what `cells_of` makes of each item: HTML, the first of it being the row's head."""
    rows = "\n".join(_row(columns, cells_of(item)) for item in items)
    if not rows:
        return "<p>None.</p>"
    heads = "".join(f'<th class="{kind}">{head}</th>' for head, kind in columns)
    return f'<div class="table"><table><thead><tr>{heads}</tr></thead><tbody>\n{rows}\n</tbody></table></div>'


def _row(columns: Sequence[Column], cells: Sequence[str]) -> str:
    first, *others = cells
    told = zip(columns[1:], others, strict=True)
    # what is a number says nothing without its head, where the table has none
    text = "".join(
        f'<td class="{kind}"' + (f' data-head="{head}"' if kind == _NUMBER else "") + f">{cell}</td>"
        for (head, kind), cell in told
    )
    return f"<tr><th>{first}</th>{text}</tr>"


def _pill(kind: str | None, text: str | None = None) -> str:
    return f'<span class="pill {_class(kind)}">{_text(text if text is not None else kind)}</span>'


def _class(kind: str | None) -> str:
    return _CLASSES.get(kind or "", "none")


def _link(url: str, text: str) -> str:
    """Return a link, if that is what the configured URL is."""
    shown = _text(text)
    is_link = url.startswith(("https://", "http://"))
    return f'<a href="{escape(url)}" rel="noreferrer">{shown}</a>' if is_link else shown


def _text(text: str | None) -> str:
    return _UNKNOWN if text is None else escape(plain(text))


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _share(ratio: float) -> str:
    """Return a ratio as a width within the bar."""
    return f"{min(max(ratio, 0.0), 1.0) * 100:.2f}%"


def _percent(ratio: float | None) -> str:
    number = _number(ratio)
    return _UNKNOWN if number is None else f"{number * 100:.1f} %"


def _amount(value: float, unit: str) -> str:
    if unit != "bytes":
        return f"{value:,.0f} {_text(unit)}"
    for prefix, size in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if value >= size:
            return f"{value / size:.1f} {prefix}"
    return f"{value:.0f} B"


def _moment(epoch: float | None) -> str:
    number = _number(epoch)
    if number is None or not 0 <= number < _NEVER:
        return _UNKNOWN
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(number))


def _seen(epoch: float | None, now: float) -> str:
    """Return a time and how long ago it was."""
    number = _number(epoch)
    return _UNKNOWN if number is None else f"{_moment(number)} ({_duration(max(0.0, now - number))} ago)"


def _duration(seconds: float | None) -> str:
    number = _number(seconds)
    if number is None:
        return _UNKNOWN
    if number < 1:
        return f"{number * 1000:.3g} ms"
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if number >= 2 * size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g} s"
