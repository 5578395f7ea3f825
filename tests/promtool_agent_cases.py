"""Cases for `promtool test rules` of alerts that are no level: what is wrong or right, a sample a minute.

A timeline is a list of (state, minutes): True is wrong, False right, None a scrape gap, STALE what Prometheus writes
when a target goes away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.rules import KEEP_FIRING_FOR
from tests.promtool_cases import file_of, is_firing

KEEP = int(KEEP_FIRING_FOR // 60)
STALE = "stale"
State = bool | str | None
Timeline = Sequence[tuple[State, int]]


@dataclass(frozen=True, slots=True)
class Signal:
    """What an alert looks at. `hold` is its `for`, `window` what it looks back over; both in minutes."""

    alert: str
    series: str
    wrong: float
    right: float
    hold: int
    window: int = 0
    is_counter: bool = False

    def values(self, timeline: Timeline) -> str:
        """Return the series' values over a timeline."""
        written, total = [], 0.0
        for state, minutes in timeline:
            for minute in range(minutes):
                value = self.wrong if state is True else self.right
                total = total + value if self.is_counter else value
                if state == STALE:
                    written.append("stale" if minute == 0 else "_")
                else:
                    written.append("_" if state is None else f"{total:g}")
        return " ".join(written)


COLLECTOR = 'collector="qgroup", instance="node-1"'
AGENT = (
    Signal("UllageCollectorFailing", f"ullage_collector_up{{{COLLECTOR}}}", 0, 1, 1, window=5),
    Signal("UllageCollectorOverdue", f"ullage_collector_overdue{{{COLLECTOR}}}", 1, 0, 1, window=5),
    Signal("UllagePageWithdrawn", f"ullage_collector_page_withdrawn{{{COLLECTOR}}}", 1, 0, 1),
    Signal(
        "UllageSeriesDropped",
        f"ullage_collector_series_dropped_total{{{COLLECTOR}}}",
        *(100, 0, 1),
        window=5,
        is_counter=True,
    ),
    Signal("UllageConfigReloadFailed", 'ullage_config_last_reload_successful{instance="node-1"}', 0, 1, 1),
)
FINDINGS = tuple(
    Signal(
        f"UllageFinding{severity.title()}",
        f'ullage_finding{{finding="thin-pool-read-only", severity="{severity}", target="pool", instance="node-1"}}',
        *(1, 0, hold),
    )
    for severity, hold in (("info", 4), ("warning", 2), ("critical", 1))
)
OLD = Signal("UllageLayersCountOld", 'ullage_layers_count_age_seconds{store="/docker", instance="node-1"}', 3600, 9, 4)
KERNEL = 'job="ullage", instance="node-1"'
KERNEL_LOG = (
    Signal(
        "UllageKernelErrorsContinue",
        f'ullage_kernel_events_total{{subsystem="block", event="io_error", device="sda", {KERNEL}}}',
        *(20, 0, 2),
        window=15,
        is_counter=True,
    ),
    Signal(
        "UllageKernelLogOverruns",
        f"ullage_kernel_log_overruns_total{{{KERNEL}}}",
        *(100, 0, 2),
        window=15,
        is_counter=True,
    ),
)
OTHERS = {
    "UllageFindingInfo": 'ullage_finding{finding="x", severity="warning", target="pool", instance="node-2"}',
    "UllageFindingWarning": 'ullage_finding{finding="x", severity="critical", target="pool", instance="node-2"}',
    "UllageFindingCritical": 'ullage_finding{finding="x", severity="info", target="pool", instance="node-2"}',
}


def signal_cases(signal: Signal) -> list[dict[str, Any]]:
    """Return the cases of one alert. What is right again for less than KEEP minutes does not resolve it: its band."""
    late = signal.window + 1
    up = signal.hold + late

    def case(name: str, timeline: Timeline, checks: Mapping[int, bool]) -> dict[str, Any]:
        series = [{"series": signal.series, "values": signal.values(timeline)}]
        if signal.alert in OTHERS:
            minutes = sum(minutes for _, minutes in timeline)
            series.append({"series": OTHERS[signal.alert], "values": f"1x{minutes}"})
        return {
            "name": f"{signal.alert}: {name}",
            "interval": "1m",
            "input_series": series,
            "promql_expr_test": [
                is_firing(signal.alert, minute, ["node-1"] if is_wanted else []) for minute, is_wanted in checks.items()
            ],
        }

    risen: Timeline = [(False, 10), (True, up + 10)]
    now = up + 20
    gone = signal.window + KEEP + 2
    return [
        case("raised after `for`", risen, {9: False, 10 + signal.hold - 1: False, 10 + up: True, now - 1: True}),
        case("never raised while all is well", [(False, 60)], {10: False, 30: False, 59: False}),
        case(
            "a peak shorter than `for` raises nothing",
            [(False, 10), (True, max(1, signal.hold - 1)), (False, 30)] if not signal.is_counter else [(False, 40)],
            {10 + signal.hold: False, 20: False, 39: False},
        ),
        case(
            "right for a little is not resolved, for longer it is",
            [*risen, (False, 3), (True, 10), (False, gone + 5)],
            {now - 1: True, now + 2: True, now + 12: True, now + 13 + gone: False},
        ),
        case("a scrape gap", [*risen, (None, 4), (True, 10)], {now + 3: True, now + 5: True, now + 13: True}),
        case(
            "a restart of the agent",
            [*risen, (STALE, 3), (True, 10)],
            {now + 1: True, now + 4: True, now + 12: True},
        ),
        case("resolved when its target is gone", [*risen, (STALE, 30)], {now - 1: True, now + 29: False}),
    ]


def overdue_case() -> dict[str, Any]:
    """Return the case of a collector that is overdue, and not up for this reason."""
    return {
        "name": "UllageCollectorFailing: one that is overdue is not failing",
        "interval": "1m",
        "input_series": [
            {"series": f"ullage_collector_up{{{COLLECTOR}}}", "values": "1x10 0x30"},
            {"series": f"ullage_collector_overdue{{{COLLECTOR}}}", "values": "0x10 1x30"},
        ],
        "promql_expr_test": [
            is_firing("UllageCollectorFailing", 39, []),
            is_firing("UllageCollectorOverdue", 39, ["node-1"]),
        ],
    }


def half_case() -> dict[str, Any]:
    """Return the case of a collector that fails each second time."""
    return {
        "name": "UllageCollectorFailing: one that fails each second time is failing",
        "interval": "1m",
        "input_series": [{"series": f"ullage_collector_up{{{COLLECTOR}}}", "values": "1x10 " + "0 1 " * 20}],
        "promql_expr_test": [
            is_firing("UllageCollectorFailing", 9, []),
            is_firing("UllageCollectorFailing", 49, ["node-1"]),
        ],
    }


def up_series(job: str, instance: str, values: str) -> dict[str, str]:
    """Return whether a target could be scraped."""
    return {"series": f'up{{job="{job}", instance="{instance}"}}', "values": values}


def info_series(job: str, instance: str, values: str) -> dict[str, str]:
    """Return what an agent says of itself."""
    return {"series": f'ullage_build_info{{version="1", job="{job}", instance="{instance}"}}', "values": values}


def target_cases() -> list[dict[str, Any]]:
    """Return the cases of targets that are down, and of there being none."""
    down, absent = "UllageTargetDown", "UllageAbsent"
    nobody = {"expr": f'count(ALERTS{{alertname="{absent}", alertstate="firing"}})'}
    is_absent = [{"labels": "{}", "value": 1}]
    return [
        {
            "name": f"{down}: raised, held over a scrape that succeeds, resolved; not a target of another job",
            "interval": "1m",
            "input_series": [
                up_series("ullage", "node-1", "1x10 0x20 1x2 0x10 1x20"),
                up_series("ullage", "node-2", "1x70"),
                up_series("node", "node-3", "0x70"),
                info_series("ullage", "node-1", "1x10 stale _x19 1x2 stale _x9 1x20"),
                info_series("ullage", "node-2", "1x70"),
            ],
            "promql_expr_test": [
                *(is_firing(down, minute, []) for minute in (9, 12, 63)),
                *(is_firing(down, minute, ["node-1"]) for minute in (17, 29, 31, 42)),
            ],
        },
        {
            "name": f"{down}: a restart of the agent raises nothing",
            "interval": "1m",
            "input_series": [
                up_series("ullage", "node-1", "1x10 0x2 1x20"),
                info_series("ullage", "node-1", "1x10 stale _x2 1x20"),
            ],
            "promql_expr_test": [is_firing(down, minute, []) for minute in (9, 12, 14, 20)],
        },
        {
            "name": f"{down}: one that never came up, by the others of its job",
            "interval": "1m",
            "input_series": [
                up_series("ullage", "node-1", "0x30"),
                up_series("ullage", "node-2", "1x30"),
                info_series("ullage", "node-2", "1x30"),
            ],
            "promql_expr_test": [is_firing(down, 20, ["node-1"])],
        },
        {
            "name": f"{down}, {absent}: all of a job are down for longer than an hour, and come back",
            "interval": "1m",
            "input_series": [
                up_series("ullage", "node-1", "1x10 0x200 1x30"),
                info_series("ullage", "node-1", "1x10 stale _x199 1x30"),
            ],
            "promql_expr_test": [
                is_firing(down, 100, ["node-1"]),
                is_firing(down, 209, ["node-1"]),
                is_firing(down, 235, []),
                *({**nobody, "eval_time": f"{minute}m", "exp_samples": []} for minute in (9, 13, 235)),
                *({**nobody, "eval_time": f"{minute}m", "exp_samples": is_absent} for minute in (17, 209, 213)),
            ],
        },
        {
            "name": f"{absent}: not during a restart, nor in a scrape gap",
            "interval": "1m",
            "input_series": [info_series("ullage", "node-1", "1x10 stale _x2 1x10 _x4 1x10")],
            "promql_expr_test": [
                {**nobody, "eval_time": f"{minute}m", "exp_samples": []} for minute in (12, 15, 25, 28, 35)
            ],
        },
    ]


def agent_cases() -> str:
    """Return the test file of the group `ullage-agent`."""
    tests = [case for signal in AGENT for case in signal_cases(signal)]
    return file_of([*target_cases(), *tests, overdue_case(), half_case()])


def finding_cases() -> str:
    """Return the test file of the group `ullage-findings`."""
    return file_of([case for signal in FINDINGS for case in signal_cases(signal)])


def layer_cases() -> str:
    """Return the test file of the group `ullage-layers`."""
    band = {
        "name": f"{OLD.alert}: not raised in the band, held in it, and not raised again in it",
        "interval": "1m",
        "input_series": [{"series": OLD.series, "values": "1200x30 1800x10 1200x60 899x10 1200x30"}],
        "promql_expr_test": [
            is_firing(OLD.alert, minute, ["node-1"] if is_wanted else [])
            for minute, is_wanted in {30: False, 40: True, 101: True, 111: False, 142: False}.items()
        ],
    }
    return file_of([*signal_cases(OLD), band])


def kernel_cases() -> str:
    """Return the test file of the group `ullage-kernel-log`."""
    continues = KERNEL_LOG[0].alert

    def events(subsystem: str, event: str, device: str, values: str) -> dict[str, str]:
        labels = f'subsystem="{subsystem}", event="{event}", device="{device}", {KERNEL}'
        return {"series": f"ullage_kernel_events_total{{{labels}}}", "values": values}

    sums = {
        "name": f"{continues}: kinds of errors of one device add up, those of two do not; other events are none",
        "interval": "1m",
        "input_series": [
            events("block", "io_error", "sda", "0x15 6x30"),
            events("ext4", "error", "sda", "0x15 6x30"),
            events("block", "io_error", "sdb", "0x15 6x30"),
            events("memory", "drop_caches", "", "0+50x45"),
        ],
        "promql_expr_test": [
            {
                "expr": f'count by (device) (ALERTS{{alertname="{continues}", alertstate="firing"}})',
                "eval_time": f"{minute}m",
                "exp_samples": [{"labels": '{device="sda"}', "value": 1}] if is_wanted else [],
            }
            for minute, is_wanted in {14: False, 20: True, 44: False}.items()
        ],
    }
    return file_of([*(case for signal in KERNEL_LOG for case in signal_cases(signal)), sums])
