"""The status page: all that `/api/v1/status` says, for a person. One HTML file without scripts or outside resources.

Names come from containers and the kernel, so every text is escaped, and the browser is told to run nothing.
"""

from __future__ import annotations

import base64
import hashlib
import math
import time
from collections.abc import Callable, Iterable, Mapping
from html import escape
from typing import Any

Item = Mapping[str, Any]

ROWS = 200  # of watermarks and of findings; the fullest and the worst come first, JSON has them all
_UNKNOWN = "–"  # noqa: RUF001  the dash of a table's empty cell
_SEVERITIES = ("critical", "warning", "info")
_STATES = ("overdue", "failing", "starting", "up", "unsupported")
_WATERMARK_COLUMNS = "Watermark|Target|Ratio>|Level|line: raised at, dashes: cleared at"
_COLLECTOR_COLUMNS = "Collector|State|Newest success>|Run took>|Interval>|Series>|Errors"
_ENDPOINTS = ("/metrics", "/api/v1/status", "/-/healthy", "/-/ready")

_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1b2330; --soft: #5b6678; --line: #dfe3ea;
  --track: #e6e9ef; --good: #1a7f4b; --info: #2463c4; --warning: #b25e00; --critical: #c62834; --code: #f1f3f7; }
@media (prefers-color-scheme: dark) { :root { --page: #11151b; --card: #1a2029; --ink: #e4e9f1; --soft: #96a2b5;
  --line: #2b3441; --track: #2a323e; --good: #45b97c; --info: #6ea4f4; --warning: #f0a13a; --critical: #ff6b70;
  --code: #12171e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 76rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: .25rem 1rem; }
h1 { margin: 0; font-size: 1.5rem; }
h2 { margin: 2rem 0 .6rem; font-size: 1.05rem; }
h2 small, header p, footer, .soft { color: var(--soft); font-size: .87rem; font-weight: normal; }
header p { margin: 0; }
a { color: var(--info); }
section > p { margin: 0; padding: .8rem 1rem; }
section > p, .card, .scroll { background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .8rem; text-align: left; vertical-align: top; border-top: 1px solid var(--line); }
thead th { border-top: 0; color: var(--soft); font-size: .8rem; font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 600; }
tbody th small, td small { display: block; color: var(--soft); font-size: .82rem; font-weight: normal; }
td.number, th.number { text-align: right; white-space: nowrap; }
td.target { overflow-wrap: anywhere; min-width: 9rem; }
td.bar { width: 40%; min-width: 11rem; }
.pill { display: inline-block; padding: 0 .55rem; border: 1px solid currentcolor; border-radius: 1rem;
  font-size: .8rem; font-weight: 600; white-space: nowrap; }
.card { margin-bottom: .6rem; padding: .7rem 1rem; border-left: 4px solid currentcolor; }
.card > * { margin: .25rem 0; }
.card p, .card b { color: var(--ink); overflow-wrap: anywhere; }
pre { margin: .4rem 0 0; padding: .5rem .7rem; overflow-x: auto; border-radius: 6px; background: var(--code);
  color: var(--ink); font: 13px/1.45 ui-monospace, "DejaVu Sans Mono", monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: 1.35rem; }
.track { fill: var(--track); }
.fill { fill: currentcolor; }
.raise { stroke: var(--ink); stroke-width: 2; }
.clear { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 2 2; }
.good { color: var(--good); } .info { color: var(--info); } .warning { color: var(--warning); }
.critical { color: var(--critical); } .none { color: var(--soft); }
footer { margin-top: 2.5rem; }
footer a { margin-right: 1rem; }
"""

_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
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


def render(status: Item) -> bytes:
    """Return the page of a status; any value in it may be absent or None."""
    agent = status.get("agent") or {}
    node = _text(agent.get("node"))
    body = "\n".join(
        (
            _header(agent, node),
            _findings(status.get("findings") or ()),
            _watermarks(status.get("watermarks") or ()),
            _collectors(status.get("collectors") or ()),
            "<footer>" + " ".join(f'<a href="{path}">{path}</a>' for path in _ENDPOINTS) + "</footer>",
        )
    )
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>Ullage · {node}</title><style>{_STYLE}</style>'
    )
    page = f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'
    return page.encode("utf-8", "replace")


def _header(agent: Item, node: str) -> str:
    is_ready = agent.get("ready")
    pill = '<span class="pill good">ready</span>' if is_ready else '<span class="pill info">first round</span>'
    facts = [
        f"version {_text(agent.get('version'))}",
        f"started {_moment(agent.get('started_at'))}",
        f"configuration {_text(agent.get('config_file') or 'built in')}",
    ]
    if agent.get("config_reloaded") is False:
        facts.append('<b class="critical">its last reload failed; the one before is in force</b>')
    return f"<header><h1>Ullage</h1><b>{node}</b>{pill}<p>{' · '.join(facts)}</p></header>"


def _findings(findings: Iterable[Item]) -> str:
    ordered = sorted(findings, key=lambda found: _rank(_SEVERITIES, found.get("severity")))
    cards = "\n".join(map(_finding, ordered[:ROWS]))
    return _section("Findings", len(ordered), cards or "<p>None.</p>")


def _finding(found: Item) -> str:
    remedy = found.get("remedy")
    return (
        f'<article class="card {_class(found.get("severity"))}">'
        f"<div>{_pill(found.get('severity'))} <b>{_text(found.get('finding'))}</b> "
        f'<span class="soft">{_text(found.get("target"))}</span></div>'
        f"<p>{_text(found.get('explanation'))}</p>" + (f"<pre>{_text(remedy)}</pre>" if remedy else "") + "</article>"
    )


def _watermarks(watermarks: Iterable[Item]) -> str:
    ordered = sorted(watermarks, key=_fullness, reverse=True)
    return _section("Watermarks", len(ordered), _table(_WATERMARK_COLUMNS, ordered[:ROWS], _watermark))


def _fullness(watermark: Item) -> tuple[bool, float, float]:
    """Return what watermarks are ordered by: raised ones first, then by ratio."""
    ratio = _number(watermark.get("ratio"))
    level = _number(watermark.get("level"))
    return bool(level), -_rank(_SEVERITIES, watermark.get("severity")), -1.0 if ratio is None else ratio


def _watermark(watermark: Item) -> str:
    tier = watermark.get("tier")
    pill = _pill(watermark.get("severity"), tier) if tier else _UNKNOWN
    if not tier and _number(watermark.get("ratio")) is not None:
        pill = '<span class="pill good">clear</span>'
    return (
        f"<th>{_text(watermark.get('watermark'))}</th>"
        f'<td class="target">{_text(watermark.get("target"))}</td>'
        f'<td class="number">{_percent(watermark.get("ratio"))}</td>'
        f"<td>{pill}</td>"
        f'<td class="bar">{_bar(watermark)}</td>'
    )


def _bar(watermark: Item) -> str:
    """Return a bar as wide as the ratio with a mark at each tier's edges: lines for raise, dashes for clear."""
    ratio = _number(watermark.get("ratio"))
    marks = []
    for tier in watermark.get("tiers") or ():
        for edge in ("clear", "raise"):
            at = _number(tier.get(edge))
            if at is not None:
                title = escape(f"{tier.get('name')}: {edge} at {_percent(at)}")
                place = _share(at)
                marks.append(
                    f'<line class="{edge}" x1="{place}" x2="{place}" y1="0" y2="100%"><title>{title}</title></line>'
                )
    kind = _class(watermark.get("severity")) if watermark.get("tier") else "good"
    fill = f'<rect class="fill" y="20%" height="60%" rx="3" width="{_share(ratio)}"/>' if ratio is not None else ""
    name = _text(watermark.get("watermark"))
    label = f"{name} at {_percent(ratio)}"
    return (
        f'<svg class="{kind}" role="img" aria-label="{label}"><rect class="track" y="20%" width="100%" height="60%" '
        f'rx="3"/>{fill}{"".join(marks)}</svg>'
    )


def _collectors(collectors: Iterable[Item]) -> str:
    ordered = sorted(collectors, key=lambda each: (_rank(_STATES, each.get("state")), str(each.get("name"))))
    return _section("Collectors", len(ordered), _table(_COLLECTOR_COLUMNS, ordered, _collector))


def _collector(collector: Item) -> str:
    age = _number(collector.get("age_seconds"))
    budget = collector.get("series_budget")
    dropped = collector.get("series_dropped")
    return (
        f"<th>{_text(collector.get('name'))}<small>{_text(collector.get('summary'), '')}</small></th>"
        f"<td>{_pill(collector.get('state'))}<small>{_text(collector.get('reason'), '')}</small>"
        f"{_progress(_number(collector.get('progress')))}</td>"
        f'<td class="number">{"never" if age is None else _duration(age) + " ago"}</td>'
        f'<td class="number">{_duration(collector.get("duration_seconds"))}</td>'
        f'<td class="number">{_duration(collector.get("interval_seconds"))}</td>'
        f'<td class="number">{_text(collector.get("series"))}<small>of {_text(budget)}</small>'
        + (f'<small class="critical">{_text(dropped)} dropped</small>' if dropped else "")
        + f"</td><td>{_errors(collector)}</td>"
    )


def _progress(done: float | None) -> str:
    return f"<small>{100 * done:.0f} % counted</small>" if done is not None and done < 1 else ""


def _errors(collector: Item) -> str:
    counts = ", ".join(f"{_text(reason)} {_text(count)}" for reason, count in (collector.get("errors") or {}).items())
    first = "".join(f"<small>{_text(error)}</small>" for error in collector.get("first_errors") or ())
    return (counts or _UNKNOWN) + first


def _section(title: str, count: int, content: str) -> str:
    more = f", the first {ROWS} shown" if count > ROWS and title != "Collectors" else ""
    return f"<section><h2>{title} <small>{count}{more}</small></h2>\n{content}</section>"


def _table(columns: str, rows: Iterable[Item], render_row: Callable[[Item], str]) -> str:
    """Return a table; `columns` are its heads, those of numbers end in `>`."""
    cells = "\n".join(f"<tr>{render_row(row)}</tr>" for row in rows)
    if not cells:
        return "<p>None.</p>"
    heads = "".join(
        f'<th class="number">{head[:-1]}</th>' if head.endswith(">") else f"<th>{head}</th>"
        for head in columns.split("|")
    )
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>\n{cells}\n</tbody></table></div>'


def _pill(kind: object, text: object = None) -> str:
    return f'<span class="pill {_class(kind)}">{_text(text if text is not None else kind)}</span>'


def _class(kind: object) -> str:
    return _CLASSES.get(str(kind), "none")


def _rank(order: tuple[str, ...], value: object) -> int:
    return order.index(str(value)) if value in order else len(order)


def _text(value: object, unknown: str = _UNKNOWN) -> str:
    return unknown if value is None else escape(str(value))


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _share(ratio: float) -> str:
    """Return a ratio as a width within the bar."""
    return f"{min(max(ratio, 0.0), 1.0) * 100:.2f}%"


def _percent(ratio: object) -> str:
    number = _number(ratio)
    return _UNKNOWN if number is None else f"{number * 100:.1f} %"


def _moment(epoch: object) -> str:
    number = _number(epoch)
    return _UNKNOWN if number is None else time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(number))


def _duration(seconds: object) -> str:
    number = _number(seconds)
    if number is None:
        return _UNKNOWN
    if number < 1:
        return f"{number * 1000:.3g} ms"
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if number >= 2 * size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g} s"
