"""The shapes that our panels have. Every one has a title, a description and a unit; a graph has a legend.

The schema is that of Grafana 11.0: every newer one migrates it up by itself, none migrates down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as shapes
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from agent.rules import alert_name
from agent.watermark import Watermark
from dashboards.promql import RUNBOOKS, ratio, threshold, within

DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
WIDTH = 24
COLORS = {"info": "blue", "warning": "orange", "critical": "red"}
HIDDEN = ("Time", "__name__", "job", "cluster")  # columns of a table that say nothing

Panel = timeseries.Panel | table.Panel | stat.Panel | bargauge.Panel | statetimeline.Panel


@dataclass(frozen=True, slots=True)
class Query:
    """A PromQL expression, as `within` takes it, and the legend of its series."""

    expression: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """Where panels stand: the selector that restricts all their series."""

    selector: str

    def _targets(
        self, queries: Sequence[Query], *, is_table: bool = False, is_instant: bool = False
    ) -> list[prometheus.Dataquery]:
        targets = []
        for number, query in enumerate(queries):
            target = prometheus.Dataquery().ref_id(chr(ord("A") + number)).datasource(DATASOURCE)
            target.expr(within(query.expression, self.selector)).legend_format(query.legend or "__auto")
            target = target.instant() if is_table or is_instant else target.range()
            targets.append(target.format(PromQueryFormat.TABLE if is_table else PromQueryFormat.TIME_SERIES))
        return targets

    def graph(self, title: str, description: str, unit: str, *queries: Query, span: int = 12) -> timeseries.Panel:
        """Return lines over time."""
        panel = timeseries.Panel().title(title).description(description).unit(unit).datasource(DATASOURCE)
        panel.targets(list(self._targets(queries))).span(span).height(8)
        panel.legend(_legend()).tooltip(_tooltip()).fill_opacity(5).line_width(1)
        return panel.show_points(shapes.VisibilityMode.NEVER).axis_soft_min(0)

    def stacked(self, title: str, description: str, unit: str, *queries: Query) -> timeseries.Panel:
        """Return lines that add up."""
        panel = self.graph(title, description, unit, *queries)
        return panel.stacking(common.StackingConfig().mode(shapes.StackingMode.NORMAL)).fill_opacity(30)

    def watermark(self, watermark: Watermark, title: str, legend: str) -> timeseries.Panel:
        """Return a watermark's fullest targets, with a line where each tier is raised and one where it is cleared."""
        queries = [Query(f"topk(10, {ratio(watermark)})", legend)]
        for tier in watermark.tiers:
            queries += [
                Query(threshold(watermark, tier.name, edge), f"{tier.name}: {words}")
                for edge, words in (("raise", "raised"), ("clear", "cleared"))
            ]
        description = f"{watermark.summary} Lines: where each tier is raised, dotted where it is cleared."
        panel = self.graph(title, description, "percentunit", *queries).min(0)
        panel.links(_runbook(watermark))
        for tier in watermark.tiers:
            for words, dash in (("raised", [10.0, 6.0]), ("cleared", [2.0, 8.0])):
                panel.override_by_name(
                    f"{tier.name}: {words}",
                    [
                        models.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": COLORS[tier.severity]}),
                        models.DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": dash}),
                        models.DynamicConfigValue("custom.fillOpacity", 0),
                    ],
                )
        return panel

    def bars(self, title: str, description: str, query: Query, watermark: Watermark) -> bargauge.Panel:
        """Return one bar for each ratio as it is now, coloured by a watermark's tiers as we ship them."""
        panel = bargauge.Panel().title(title).description(description).unit("percentunit").datasource(DATASOURCE)
        panel.targets(list(self._targets([query], is_instant=True))).span(12).height(8).min(0).max(1)
        panel.orientation(shapes.VizOrientation.HORIZONTAL).display_mode(shapes.BarGaugeDisplayMode.BASIC)
        panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"])).links(_runbook(watermark))
        # tiers of one severity have one colour, from the lowest on
        return panel.color_scheme(_by_threshold()).thresholds(
            _steps({COLORS[tier.severity]: tier.raise_at for tier in reversed(watermark.tiers)})
        )

    def number(self, title: str, description: str, query: Query, alarm: str = "") -> stat.Panel:
        """Return one count as it is now; from 1 on it has the colour of `alarm`, if that is a severity."""
        panel = stat.Panel().title(title).description(description).unit("short").decimals(0).datasource(DATASOURCE)
        panel.targets(list(self._targets([query], is_instant=True))).span(4).height(4)
        panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        panel.graph_mode(shapes.BigValueGraphMode.NONE)
        return panel.color_scheme(_by_threshold()).thresholds(_steps({COLORS[alarm]: 1.0} if alarm else {}))

    def states(self, title: str, description: str, *queries: Query) -> statetimeline.Panel:
        """Return when a state held, one lane for each series: from 1 on it is red."""
        panel = statetimeline.Panel().title(title).description(description).unit("short").datasource(DATASOURCE)
        panel.targets(list(self._targets(queries))).span(WIDTH).height(6)
        panel.legend(_legend()).fill_opacity(70).line_width(0)
        return panel.color_scheme(_by_threshold()).thresholds(_steps({"red": 1.0}))

    def rows(self, title: str, description: str, columns: Table, *queries: Query, span: int = 24) -> table.Panel:
        """Return a table of what holds now, one row for each set of labels that the queries share."""
        panel = table.Panel().title(title).description(description).unit("short").datasource(DATASOURCE)
        panel.targets(list(self._targets(queries, is_table=True))).span(span).height(8)
        panel.align(shapes.FieldTextAlignment.AUTO)
        values = ["Value"] if len(queries) == 1 else [f"Value #{chr(ord('A') + n)}" for n in range(len(queries))]
        renamed = dict(zip(values, columns.values, strict=True))
        hidden = dict.fromkeys(HIDDEN, True)
        if len(queries) > 1:
            panel.with_transformation(models.DataTransformerConfig(id_val="merge", options={}))
        options = {"excludeByName": hidden, "renameByName": renamed, "indexByName": {}}
        panel.with_transformation(models.DataTransformerConfig(id_val="organize", options=options))
        for name, unit in zip(columns.values, columns.units, strict=True):
            panel.override_by_name(name, [models.DynamicConfigValue("unit", unit)])
        for name, (text, url) in columns.links.items():
            link = [{"title": text, "url": url}]
            panel.override_by_name(name, [models.DynamicConfigValue("links", link)])
        return panel


@dataclass(frozen=True, slots=True)
class Table:
    """A table's columns: the names and units of its queries' values, and links of labels."""

    values: Sequence[str]
    units: Sequence[str]
    links: Mapping[str, tuple[str, str]] = field(default_factory=dict)


def _steps(colors: Mapping[str, float]) -> dashboard.ThresholdsConfig:
    """Return from where on a value has which colour; it is green below."""
    rising = sorted(colors.items(), key=lambda item: item[1])
    steps = [models.Threshold(None, "green"), *(models.Threshold(value, color) for color, value in rising)]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


def _by_threshold() -> dashboard.FieldColor:
    """Return colours by thresholds, which are not every panel's default."""
    return dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS)


def _runbook(watermark: Watermark) -> list[Builder[models.DashboardLink]]:
    """Return a link to the runbook of a watermark's highest tier."""
    name = alert_name(watermark, watermark.tiers[-1])
    link = dashboard.DashboardLink("Runbook").type(models.DashboardLinkType.LINK).url(f"{RUNBOOKS}/{name}.md")
    return [link.target_blank(target_blank=True)]


def _legend() -> common.VizLegendOptions:
    legend = common.VizLegendOptions().display_mode(shapes.LegendDisplayMode.LIST)
    return legend.placement(shapes.LegendPlacement.BOTTOM).show_legend(show_legend=True)


def _tooltip() -> common.VizTooltipOptions:
    return common.VizTooltipOptions().mode(shapes.TooltipDisplayMode.MULTI).sort(shapes.SortOrder.DESCENDING)
