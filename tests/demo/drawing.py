"""Panels as pictures: what Prometheus answers to a panel's expressions, drawn with matplotlib.

Grafana draws them its own way. These show what is in them, in the same places.
"""

from __future__ import annotations

import json
import re
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import Bbox

from dashboards.panels import HIDDEN
from tests.e2e.stack import fetch

INCHES = 15.0, 0.36  # across, and of a unit of height
ROWS = 9  # of a table that are shown
SERIES = 8  # of a legend that are shown
LARGE, LONG = 1_000_000, 44
NOTE = "Drawn with matplotlib from real data in Prometheus; Grafana draws the same panels its own way."
GREEN, GREY = "#3a9d4f", "#555555"
COLORS = {"orange": "#e08b00", "red": "#d0312d", "blue": "#3274d9", "green": GREEN}
Panel = Mapping[str, Any]
Concrete = Callable[[str], str]


class Source:
    """A Prometheus and the time that is drawn, in Unix seconds."""

    def __init__(self, url: str, start: float, end: float, concrete: Concrete) -> None:
        self._url = url
        self.start, self.end = start, end
        self._concrete = concrete

    def now(self, expression: str) -> list[dict[str, Any]]:
        """Return an instant vector at the end."""
        return self._ask("query", query=self._concrete(expression), time=self.end)

    def over_time(self, expression: str) -> list[dict[str, Any]]:
        """Return a matrix."""
        step = max(1.0, (self.end - self.start) / 300)
        return self._ask("query_range", query=self._concrete(expression), start=self.start, end=self.end, step=step)

    def _ask(self, what: str, **arguments: str | float) -> list[dict[str, Any]]:
        answer = json.loads(fetch(f"{self._url}/api/v1/{what}?" + urllib.parse.urlencode(arguments)))
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result


def draw(board: Mapping[str, Any], source: Source, path: Path) -> None:
    """Draw a dashboard's panels into a PNG file, where they stand on its grid."""
    across, unit = INCHES
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"]) + 3
    figure = Figure(figsize=(across, height * unit), dpi=75, facecolor="white")
    figure.text(0.01, 1 - 1.2 / height, board["title"], fontsize=15, weight="bold", va="center")
    figure.text(0.99, 1 - 1.2 / height, NOTE, fontsize=8, color=GREY, ha="right", va="center")
    for panel in board["panels"]:
        place = panel["gridPos"]
        left, bottom = place["x"] / 24, 1 - (place["y"] + place["h"] + 2) / height
        if panel["type"] == "row":
            figure.text(0.01, bottom + 0.4 / height, panel["title"], fontsize=11, weight="bold", color=GREY)
            continue
        is_text = panel["type"] in {"table", "stat"}
        margins = (0.01, 0.3, 0.02, 1.4) if is_text else (0.045, 2.2, 0.06, 3.6)
        if panel["type"] in {"bargauge", "state-timeline"}:
            margins = (0.15, 1.0, 0.16, 2.4)
        axes = figure.add_axes(
            (
                *(left + margins[0], bottom + margins[1] / height),
                *(place["w"] / 24 - margins[2], (place["h"] - margins[3]) / height),
            )
        )
        axes.set_title(panel["title"], fontsize=9, loc="left", pad=3)
        DRAWERS[panel["type"]](axes, panel, source)
    figure.savefig(path, metadata={"Software": None})


def _unit(panel: Panel) -> str:
    unit: str = panel["fieldConfig"]["defaults"]["unit"]
    return unit


def words(value: float, unit: str) -> str:
    """Return a value as a person reads it."""
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit in {"bytes", "Bps"}:
        prefixes = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)]
        name, size = next(((name, size) for name, size in prefixes if abs(value) >= size), ("B", 1))
        return f"{value / size:.3g} {name}" + ("/s" if unit == "Bps" else "")
    if unit == "s":
        return f"{1000 * value:.3g} ms" if abs(value) < 1 else f"{value:.3g} s"
    if unit == "dateTimeFromNow":
        return f"{time.time() - value / 1000:.0f} s ago"
    text = (
        f"{value / 1e6:.3g} M" if abs(value) >= LARGE else f"{value:,.0f}" if value == round(value) else f"{value:.3g}"
    )
    return text + ("/s" if unit == "ops" else "")


def _legend(target: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    text: str = target["legendFormat"]
    if text == "__auto":
        return ", ".join(value for name, value in labels.items() if name not in HIDDEN) or "value"
    text = re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), text)
    return " ".join(text.split())


def _nothing(axes: Axes) -> None:
    axes.text(0.5, 0.5, "no data", ha="center", va="center", color=GREY, transform=axes.transAxes)
    axes.set_axis_off()


def _lines(axes: Axes, panel: Panel, source: Source) -> None:
    fixed = {
        override["matcher"]["options"]: COLORS[entry["value"]["fixedColor"]]
        for override in panel["fieldConfig"]["overrides"]
        for entry in override["properties"]
        if entry["id"] == "color"
    }
    is_stacked = "stacking" in panel["fieldConfig"]["defaults"].get("custom", {})
    highest = 0.0
    drawn: list[tuple[str, list[float], list[float]]] = []
    for target in panel["targets"]:
        for series in source.over_time(target["expr"]):
            name = _legend(target, series["metric"])
            times = [(at - source.start) / 60 for at, _ in series["values"]]
            values = [float(value) for _, value in series["values"]]
            if name in fixed:
                dash = (0, (6, 3)) if name.endswith("raised") else (0, (1, 3))
                axes.plot(times, values, color=fixed[name], linestyle=dash, linewidth=1)
                highest = max(highest, *values)
            else:
                drawn.append((name, times, values))
    if not drawn:
        _nothing(axes)
        return
    tops = [max(values) for _, _, values in drawn]
    highest = max(highest, sum(tops) if is_stacked else max(tops))
    if is_stacked and len({len(times) for _, times, _ in drawn}) == 1:
        axes.stackplot(
            drawn[0][1], *(values for _, _, values in drawn), labels=[_short(n) for n, _, _ in drawn], alpha=0.5
        )
    else:
        for name, times, values in drawn:
            axes.plot(times, values, linewidth=1.2, label=_short(name))
    axes.set_ylim(0, 1.08 * highest or 1.0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: words(value, _unit(panel))))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} min"))
    axes.tick_params(labelsize=6.5)
    axes.grid(alpha=0.2)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles[:SERIES],
        labels[:SERIES],
        fontsize=6,
        ncols=3,
        frameon=False,
        loc="upper left",
        bbox_to_anchor=(0, -0.13),
    )


def _short(name: str) -> str:
    """Return a name with its middle left out, if it is long: paths and ids are told apart by their ends."""
    return name if len(name) <= LONG else f"{name[:12]}…{name[13 - LONG :]}"


def _bars(axes: Axes, panel: Panel, source: Source) -> None:
    steps = [(step["value"], COLORS[step["color"]]) for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]]
    (target,) = panel["targets"]
    found = [(_short(_legend(target, each["metric"])), float(each["value"][1])) for each in source.now(target["expr"])]
    if not found:
        _nothing(axes)
        return
    for place, (_, value) in enumerate(found):
        color = [color for at, color in steps if at is None or value >= at][-1]
        axes.barh(place, value, color=color, height=0.6)
        axes.text(value + 0.01, place, words(value, _unit(panel)), va="center", fontsize=6.5)
    axes.set_yticks(range(len(found)), [name for name, _ in found], fontsize=6.5)
    axes.set_xlim(0, 1.1)
    axes.set_ylim(max(len(found), 4) - 0.5, -0.5)
    axes.tick_params(axis="x", labelbottom=False, length=0)
    axes.set_frame_on(b=False)


def _number(axes: Axes, panel: Panel, source: Source) -> None:
    (target,) = panel["targets"]
    found = source.now(target["expr"])
    value = float(found[0]["value"][1]) if found else 0.0
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    color = [COLORS[step["color"]] for step in steps if step["value"] is None or value >= step["value"]][-1]
    axes.text(0.5, 0.45, f"{value:.0f}", ha="center", va="center", fontsize=22, weight="bold", color=color)
    axes.set_axis_off()


def _states(axes: Axes, panel: Panel, source: Source) -> None:
    lanes = [
        (_short(_legend(target, series["metric"])), series["values"])
        for target in panel["targets"]
        for series in source.over_time(target["expr"])
    ][:10]
    if not lanes:
        _nothing(axes)
        return
    for place, (_, values) in enumerate(lanes):
        for (at, value), (after, _) in zip(values, [*values[1:], (source.end, "")], strict=True):
            color = GREEN if float(value) < 1 else COLORS["red"]
            axes.barh(place, after - at, left=at - source.start, color=color, height=0.7)
    axes.set_yticks(range(len(lanes)), [name for name, _ in lanes], fontsize=6)
    axes.set_ylim(max(len(lanes), 3) - 0.5, -0.5)
    axes.tick_params(axis="x", labelbottom=False, length=0)
    axes.set_frame_on(b=False)


def merged(answers: Sequence[Sequence[Mapping[str, Any]]]) -> list[tuple[dict[str, str], dict[int, float]]]:
    """Return rows of labels and values by query: those whose common labels agree are one row."""
    rows: list[tuple[dict[str, str], dict[int, float]]] = []
    for number, answer in enumerate(answers):
        for each in answer:
            labels = {name: value for name, value in each["metric"].items() if name not in HIDDEN}
            for row, values in rows:
                common = row.keys() & labels.keys()
                if number not in values and common and all(row[name] == labels[name] for name in common):
                    row.update(labels)
                    values[number] = float(each["value"][1])
                    break
            else:
                rows.append((labels, {number: float(each["value"][1])}))
    return rows


def _table(axes: Axes, panel: Panel, source: Source) -> None:
    axes.set_axis_off()
    rows = merged([source.now(target["expr"]) for target in panel["targets"]])
    if not rows:
        _nothing(axes)
        return
    names = list(dict.fromkeys(name for labels, _ in rows for name in labels))
    organize = next(each["options"] for each in panel["transformations"] if each["id"] == "organize")
    columns = list(organize["renameByName"].values())
    units = {
        override["matcher"]["options"]: entry["value"]
        for override in panel["fieldConfig"]["overrides"]
        for entry in override["properties"]
        if entry["id"] == "unit"
    }
    room = max(8, round(panel["gridPos"]["w"] * 9 / (len(names) + len(columns))))
    cells = [
        [labels.get(name, "")[:room] for name in names]
        + [words(values[n], units[column]) if n in values else "" for n, column in enumerate(columns)]
        for labels, values in rows[:ROWS]
    ]
    heads = [head[:room] for head in (*names, *columns)]
    share = (len(cells) + 1) / (ROWS + 1)
    box = Bbox.from_bounds(0, 1 - share, 1, share)
    table = axes.table(cellText=cells, colLabels=heads, cellLoc="left", colLoc="left", bbox=box)
    table.auto_set_font_size(value=False)
    table.set_fontsize(6.5)
    for (row, _), cell in table.get_celld().items():
        cell.set_linewidth(0.2)
        if row == 0:
            cell.set_text_props(weight="bold")
    if len(rows) > ROWS:
        axes.text(
            1, 1.02, f"{ROWS} of {len(rows)} rows", ha="right", fontsize=6.5, color=GREY, transform=axes.transAxes
        )


DRAWERS: dict[str, Callable[[Axes, Panel, Source], None]] = {
    "timeseries": _lines,
    "bargauge": _bars,
    "stat": _number,
    "state-timeline": _states,
    "table": _table,
}
