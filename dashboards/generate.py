"""The dashboards by the name of their file. `make generate` writes each as JSON beside its declaration."""

from __future__ import annotations

from dashboards import agent_itself, amplification, containers, fleet, layers, node, pools
from dashboards.layout import Dashboard

DASHBOARDS: dict[str, Dashboard] = {
    "fleet": fleet.DASHBOARD,
    "node": node.DASHBOARD,
    "containers": containers.DASHBOARD,
    "layers": layers.DASHBOARD,
    "pools": pools.DASHBOARD,
    "amplification": amplification.DASHBOARD,
    "agent": agent_itself.DASHBOARD,
}
