"""What all dashboards share: variables, links, annotations, and rows of panels side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models

from dashboards.panels import DATASOURCE, WIDTH, Panel
from dashboards.promql import RUNBOOKS, within

SCHEMA = 39  # Grafana 11.0's own
TAG = "ullage"
# of it and of the distance of two points Grafana makes the annotation's $__rate_interval: long enough for each pair of
# scrapes, up to two minutes apart, to lie whole before a point
STEP = "120s"


@dataclass(frozen=True, slots=True)
class Row:
    """A headline with the panels below it; it can be folded away."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A dashboard's declaration. `uid` is in its address; `selector` has the variables that its panels use."""

    uid: str
    title: str
    description: str
    selector: str
    rows: Sequence[Row]

    def build(self) -> models.Dashboard:
        """Return it as the SDK has it."""
        made = dashboard.Dashboard(self.title).uid(self.uid).description(self.description).tags([TAG])
        made.refresh("1m").time("now-6h", "now").timezone("browser").editable()
        made.tooltip(models.DashboardCursorSync.CROSSHAIR)
        for variable in self._variables():
            made.with_variable(variable)
        made.link(
            dashboard.DashboardLink("Ullage")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(as_dropdown=True)
            .include_vars(include_vars=True)
            .keep_time(keep_time=True)
        )
        made.link(
            dashboard.DashboardLink("Runbooks")
            .type(models.DashboardLinkType.LINK)
            .url(RUNBOOKS)
            .icon("doc")
            .target_blank(target_blank=True)
        )
        changed = within("changes(ullage_watermark_level[$__rate_interval]) > 0", self.selector)
        made.annotation(
            dashboard.AnnotationQuery()
            .name("Levels that changed")
            .datasource(DATASOURCE)
            .enable(enable=True)
            .icon_color("orange")
            .expr(changed)
        )
        number, below = 0, 0
        for row in self.rows:
            number += 1
            made.with_row(dashboard.Row(row.title).id(number).grid_pos(models.GridPos(h=1, w=WIDTH, x=0, y=below)))
            below += 1
            across, highest = 0, 0
            for panel in row.panels:
                number += 1
                built = panel.id(number).build()
                assert built.grid_pos is not None
                if across + built.grid_pos.w > WIDTH:
                    across, below, highest = 0, below + highest, 0
                built.grid_pos.x, built.grid_pos.y = across, below
                across, highest = across + built.grid_pos.w, max(highest, built.grid_pos.h)
                made.with_panel(_Built(built))
            below += highest
        result = made.build()
        result.schema_version = SCHEMA
        return result

    def json(self) -> str:
        """Return the file's text.

        The SDK's type of an annotation lacks what Grafana's Prometheus source reads from it: they are added here.
        """
        data: dict[str, Any] = json.loads(json.dumps(self.build(), cls=JSONEncoder))
        for annotation in data["annotations"]["list"]:
            annotation |= {"step": STEP, "titleFormat": "{{watermark}}", "textFormat": "{{instance}} {{target}}"}
        return json.dumps(data, indent=1) + "\n"

    def _variables(self) -> list[dashboard.DatasourceVariable | dashboard.QueryVariable]:
        made: list[dashboard.DatasourceVariable | dashboard.QueryVariable] = [
            dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
        ]
        series = "ullage_build_info"
        for name, label, metric, text in (
            ("cluster", "cluster", series, "Cluster"),
            ("job", "job", within(series, 'cluster=~"$cluster"'), "Job"),
            ("node", "instance", within(series, 'cluster=~"$cluster", job=~"$job"'), "Node"),
            (
                "namespace",
                "namespace",
                within("ullage_container_page_cache_bytes", 'cluster=~"$cluster", job=~"$job", instance=~"$node"'),
                "Namespace",
            ),
        ):
            if f'"${name}"' in self.selector:
                made.append(
                    dashboard.QueryVariable(name)
                    .label(text)
                    .datasource(DATASOURCE)
                    .query({"query": f"label_values({metric}, {label})", "refId": name})
                    .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
                    .sort(models.VariableSort.ALPHABETICAL_ASC)
                    .include_all(include_all=True)
                    .all_value(".*")
                    .multi(multi=True)
                    .current(models.VariableOption(selected=True, text="All", value="$__all"))
                )
        return made


class _Built(Builder[models.Panel]):
    """A panel that is built already, as the SDK takes builders only."""

    def __init__(self, panel: models.Panel) -> None:
        self._panel = panel

    def build(self) -> models.Panel:
        """Return it."""
        return self._panel
