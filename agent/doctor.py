"""What this node has to say of itself, for a person at a terminal: every collector runs twice, and is judged.

The same status that the daemon serves. Two readings give what one cannot: rates, and so how much of what was written
became more on its way.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from agent import statefile
from agent.collector import Collector, RateRatio
from agent.daemon import Engine, Options
from agent.plain import plain
from agent.privileges import grants
from agent.scheduler import Worker
from agent.status import CollectorStatus, FindingStatus, LackStatus, Status, WatermarkStatus

Verdict = Literal["clean", "warnings", "critical", "unknown"]
EXIT: Mapping[Verdict, int] = {"clean": 0, "warnings": 1, "critical": 2, "unknown": 3}
BAR = 40  # characters
CLEAR_MOST = 30  # watermarks' targets below every tier that are shown
ITEMS_MOST = 20  # of one fact
FINDINGS_MOST = 200
_POLL = 0.05
_STYLES = {"critical": "bold red", "warning": "yellow", "info": "cyan", None: "green"}
_VERDICT_STYLES: Mapping[Verdict, str] = {
    "clean": "bold green",
    "warnings": "bold yellow",
    "critical": "bold red",
    "unknown": "bold magenta",
}
_STATE_STYLES = {"up": "green", "unsupported": "dim", "starting": "cyan", "failing": "bold red", "overdue": "bold red"}


class Ratio(msgspec.Struct, frozen=True):
    """A rate over a rate between the two readings; None where too little happened to tell."""

    name: str
    layer: str
    target: str
    ratio: float | None


class Report(msgspec.Struct, frozen=True):
    """All that doctor has to say; `seconds` lie between two readings, None if an agent was asked once."""

    status: Status
    verdict: Verdict
    seconds: float | None = None
    ratios: list[Ratio] = []

    def as_json(self) -> bytes:
        """Return the status document with the verdict, the ratios and the seconds in it."""
        told = {name: getattr(self, name) for name in ("verdict", "seconds", "ratios")}
        return msgspec.json.format(msgspec.json.encode({**msgspec.to_builtins(self.status), **told}), indent=1)


class Line(NamedTuple):
    """One line; `is_whole` is one to be copied, which is not wrapped."""

    indent: int
    text: Text
    is_whole: bool = False


def examine(
    options: Options, collectors: Sequence[Collector], seconds: float, tell: Callable[[str], None] = lambda _text: None
) -> Report:
    """Run every collector twice, so many seconds apart, and judge what they found. Raises ConfigError.

    `tell` is given what is being waited for, again and again.
    """
    with statefile.untouched():
        return _examine(
            Engine(options, options.load(collectors), os.uname().nodename, has_process=False), seconds, tell
        )


def _examine(engine: Engine, seconds: float, tell: Callable[[str], None]) -> Report:
    try:
        workers = engine.scheduler.workers
        while not engine.scheduler.is_ready:
            engine.scheduler.tell_overdue()
            tell(f"first reading: {_named(name for name, worker in workers.items() if not worker.is_first_done)}")
            time.sleep(_POLL)
        first, began = _readings(workers), time.monotonic()
        while (left := began + seconds - time.monotonic()) > 0:
            tell(f"second reading in {left:.0f} s")
            time.sleep(min(left, _POLL))
        before = {name: worker.runner.outcome for name, worker in workers.items()}
        for worker in workers.values():
            worker.wake(at_once=True)
        while waits := [
            name for name, each in workers.items() if each.runner.outcome is before[name] and not each.is_overdue
        ]:
            tell(f"second reading: {_named(waits)}")
            time.sleep(_POLL)
        elapsed = time.monotonic() - began
        engine.publish()
        status = engine.status()
        return Report(status, judge(status), round(elapsed, 1), list(_ratios(first, _readings(workers))))
    finally:
        engine.stop()


def _named(names: Iterable[str]) -> str:
    return ", ".join(names)


def judge(status: Status) -> Verdict:
    """Return the worst that was found; unknown if that is nothing, and not all could look."""
    severities = {each.severity for each in status.watermarks} | {each.severity for each in status.findings}
    if "critical" in severities:
        return "critical"
    if "warning" in severities:
        return "warnings"
    could_all = status.agent.ready and all(
        each.state in ("up", "unsupported") and not each.lacks for each in status.collectors
    )
    return "clean" if could_all and status.collectors else "unknown"


_Readings = Mapping[RateRatio, tuple[Mapping[tuple[str, ...], float], Mapping[tuple[str, ...], float]]]


def _readings(workers: Mapping[str, Worker]) -> _Readings:
    """Return for each ratio the values of its two counters by the labels of the lower one."""
    found = {}
    for worker in workers.values():
        for ratio in worker.runner.plan.collector.rate_ratios:
            places = [ratio.top.labels.index(name) for name in ratio.bottom.labels]
            families = worker.runner.outcome.families
            top, bottom = families.get(ratio.top), families.get(ratio.bottom)
            uppers = zip(top.labelsets, top.values, strict=True) if top else ()
            lowers = zip(bottom.labelsets, bottom.values, strict=True) if bottom else ()
            found[ratio] = {tuple(labels[at] for at in places): value for labels, value in uppers}, dict(lowers)
    return found


def _ratios(first: _Readings, second: _Readings) -> Iterator[Ratio]:
    for ratio, (tops, bottoms) in second.items():
        tops_before, bottoms_before = first.get(ratio, ({}, {}))
        for labels, top in tops.items():
            if labels in bottoms and labels in tops_before and labels in bottoms_before:
                above, below = top - tops_before[labels], bottoms[labels] - bottoms_before[labels]
                target = " ".join(value for value in labels if value and value != ratio.layer)
                yield Ratio(ratio.name, ratio.layer, target, above / below if below >= ratio.floor else None)


def print_report(report: Report, console: Console) -> None:
    """Print the report: with colours and wrapped at a terminal; else one line for each thing, to be searched."""
    for indent, text, is_whole in show(report):
        if console.is_terminal and not is_whole:
            console.print(Padding(text, (0, 0, 0, indent)))
        else:
            console.print(Text(" " * indent).append_text(text), soft_wrap=True)


def show(report: Report) -> Iterator[Line]:
    """Yield the report's lines. What containers, or another agent, control does nothing to a terminal."""
    status = report.status
    node = status.node.hostname or status.agent.node or "this node"
    how = f"two readings, {report.seconds:g} s apart" if report.seconds is not None else "read from its agent"
    verdict = Text(report.verdict, _VERDICT_STYLES[report.verdict])
    yield Line(0, Text.assemble((plain(node), "bold"), ": ", verdict, f" ({how})"))
    for title, lines in (
        ("Node", _node(status)),
        ("Collectors", _collectors(status.collectors)),
        ("Watermarks (| raise, : clear)", _watermarks(status)),
        ("Amplification between the readings", _amplification(report.ratios)),
        ("Findings", _findings(status)),
    ):
        found = list(lines)
        if found:
            yield Line(0, Text())
            yield Line(0, Text(title, "bold"))
            yield from found
    if not status.findings:
        yield Line(0, Text())
        yield Line(0, Text("No findings."))


def _node(status: Status) -> Iterator[Line]:
    node, agent = status.node, status.agent
    told = [node.os, node.kernel and f"Linux {node.kernel}", node.cgroup and f"cgroup {node.cgroup}"]
    told += [f"up {_span(status.time - node.boot_time)}" if node.boot_time is not None else None]
    yield Line(2, Text(plain(", ".join(filter(None, told)))))
    yield Line(
        2, Text(plain(f"agent {agent.version}{'' if agent.config_reloaded else ', its configuration is refused'}"))
    )
    for fact in status.facts:
        for item in fact.items[:ITEMS_MOST]:
            yield Line(2, Text(plain(f"{fact.title}: {' '.join(filter(None, item.values()))}")))
        if len(fact.items) > ITEMS_MOST:
            yield Line(2, Text(plain(f"{fact.title}: {len(fact.items) - ITEMS_MOST} more")))


def _collectors(collectors: Sequence[CollectorStatus]) -> Iterator[Line]:
    lacks = []
    for each in sorted(collectors, key=lambda each: each.name):
        errors = ", ".join(f"{count}x {reason}" for reason, count in sorted(each.errors.items()))
        told = plain("; ".join(filter(None, (each.reason, errors and f"skipped: {errors}"))))
        state = Text(f"{each.state:<12}", _STATE_STYLES[each.state])
        line = Text.assemble(f"{plain(each.name):<12} ", state, f" {told}" if told else "")
        line.rstrip()
        yield Line(2, line)
        for lack in each.lacks:
            lacks.append(lack)
            yield Line(15, Text.assemble("without ", (plain(_what(lack)), "bold"), f": {plain(lack.lost)}"))
    capabilities = sorted({name for lack in lacks for name in lack.capabilities})
    devices = sorted({lack.device for lack in lacks if lack.device})
    if capabilities or devices:
        yield Line(2, Text("To give it what it is without:"))
        for where, texts in grants(capabilities, devices):
            yield Line(4, Text(f"{where}:"))
            yield from (Line(6, Text(plain(text)), is_whole=True) for text in texts)
    if any(lack.mount for lack in lacks):
        yield Line(
            2,
            Text(
                "To show it the host's mounts: bind-mount each below /host with propagation rslave, as docs/"
                "deployment.md has it; the agent's log names them."
            ),
        )


def _what(lack: LackStatus) -> str:
    mount = f"the host's mounts below {lack.mount}" if lack.mount else ""
    return ", ".join(filter(None, (*(f"CAP_{name}" for name in lack.capabilities), lack.device, mount)))


def _watermarks(status: Status) -> Iterator[Line]:
    raised = [each for each in status.watermarks if each.tier is not None]
    clear = [each for each in status.watermarks if each.tier is None][:CLEAR_MOST]
    for each in sorted((*raised, *clear), key=lambda each: (each.watermark, -(each.ratio or 0.0))):
        ratio = f"{each.ratio:>6.1%}" if each.ratio is not None and each.ratio < 1e6 else "     ?"  # noqa: PLR2004
        line = Text.assemble(f"{plain(each.watermark):<18} ", _bar(each), f" {ratio}")
        if each.tier:
            line.append(f"  {plain(each.tier)}", _STYLES.get(each.severity, ""))
        yield Line(2, line.append(f"  {plain(each.target)}"))
    if (left := status.watermark_targets - len(raised) - len(clear)) > 0:
        yield Line(2, Text(f"and {left} more, below every tier and less full"))


def _bar(level: WatermarkStatus) -> Text:
    filled = _place(level.ratio or 0.0, BAR)
    bar = ["#"] * filled + ["-"] * (BAR - filled)
    for tier in level.tiers:
        bar[_place(tier.clear_at, BAR - 1)] = ":"
        bar[_place(tier.raise_at, BAR - 1)] = "|"
    text = Text("".join(bar), "dim")
    text.stylize(_STYLES.get(level.severity, ""), 0, filled)
    return text


def _place(ratio: float, most: int) -> int:
    """Return the place of a ratio in a bar, of which `most` is the last; one over 1 is there, one below 0 at 0."""
    return int(min(max(ratio, 0.0), 1.0) * BAR) if ratio < most / BAR else most


def _amplification(ratios: Iterable[Ratio]) -> Iterator[Line]:
    for each in ratios:
        value = "too little was written to tell" if each.ratio is None else f"{each.ratio:.2f}"
        yield Line(2, Text(f"{each.layer:<12} {plain(each.target)}: {value}"))


def _findings(status: Status) -> Iterator[Line]:
    for each in status.findings[:FINDINGS_MOST]:
        severity = Text(f"{each.severity:<9}", _STYLES[each.severity])
        yield Line(2, Text.assemble(severity, " ", (plain(each.finding), "bold"), f"  {plain(each.target)}"))
        yield Line(12, Text(plain(each.explanation)))
        yield Line(12, Text.assemble(("$ ", "dim"), plain(each.remedy)), is_whole=True)
        if told := _seen(status, each):
            yield Line(12, Text(told, "dim"))
    if (left := len(status.findings) - FINDINGS_MOST) > 0:
        yield Line(2, Text(f"and {left} more"))


def _seen(status: Status, each: FindingStatus) -> str:
    """Return since when a finding is there, and that it is no new one; nothing for one of this minute."""
    told = []
    if (age := each.last_seen - each.first_seen) >= _MINUTE:
        told.append(f"for {_span(age)}")
    if (age := status.time - each.last_seen) >= _MINUTE:
        told.append(f"last seen {_span(age)} ago")
    return ", ".join(told)


_MINUTE = 60.0
_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


def _span(seconds: float) -> str:
    """Return a time in its largest unit that fits, for a person."""
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return "0 s"
