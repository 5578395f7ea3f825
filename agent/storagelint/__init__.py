"""What can be judged of StorageClass, VolumeSnapshotClass and daemon.json before anybody applies them.

Source: the API reference of storage.k8s.io/v1 and snapshot.storage.k8s.io/v1; moby's daemon/graphdriver. `RULES` is
all that is judged, `OFFLINE` what no file tells.
"""

from __future__ import annotations

import json
import posixpath
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from agent import manifests
from agent.errors import ConfigError
from agent.manifests import Node
from agent.plain import plain
from agent.storagelint import daemon_json, kubernetes, objects, snapshot_class, storage_class
from agent.storagelint.daemon_json import DAEMON
from agent.storagelint.objects import Message, Object, Severity, short
from agent.storagelint.snapshot_class import SNAPSHOT_CLASS
from agent.storagelint.storage_class import STORAGE_CLASS

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
EXIT: Mapping[Severity, int] = {"error": 2, "warning": 1, "info": 0}
COULD_NOT_JUDGE = 3
SUBJECTS = (storage_class, snapshot_class, daemon_json)
RULES = tuple(rule for each in (objects, kubernetes, *SUBJECTS) for rule in each.RULES)
OFFLINE: Mapping[str, str] = {
    STORAGE_CLASS.name: storage_class.OFFLINE,
    SNAPSHOT_CLASS.name: snapshot_class.OFFLINE,
    DAEMON: daemon_json.OFFLINE,
}
_KINDS = {each.name: each for each in (STORAGE_CLASS, SNAPSHOT_CLASS)}
_JUDGES: Mapping[str, Callable[[Object], Iterator[Message]]] = {
    STORAGE_CLASS.name: storage_class.judge,
    SNAPSHOT_CLASS.name: SNAPSHOT_CLASS.judge,
    DAEMON: daemon_json.judge,
}


@dataclass(slots=True)
class Report:
    """All that there is to say of some files. `judged` and `passed_over` count what they held, by kind."""

    messages: list[Message] = field(default_factory=list)
    judged: Counter[str] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """Return 2 for errors, 1 for warnings; 3 if else something could not be judged, or nothing was."""
        worst = max((EXIT[each.severity] for each in self.messages), default=0)
        return worst or (COULD_NOT_JUDGE if self.unreadable or not self.judged else 0)

    def as_json(self) -> str:
        """Return the report for machines."""
        told = {
            "messages": [each._asdict() for each in self.messages],
            "judged": dict(self.judged),
            "not_judged": dict(self.passed_over),
            "could_not_judge": self.unreadable,
            "offline": {kind: OFFLINE[kind] for kind in self.judged},
        }
        return json.dumps(told, indent=1)


def judge(files: Sequence[str], read: Callable[[str], str] = manifests.read) -> Report:
    """Judge some files together; one that cannot be read, or is no YAML and no JSON, is told in `unreadable`."""
    report, found = Report(), list[Object]()
    for file in files:
        text = ""
        try:
            text = read(file)
            held = [each for node in manifests.parse(file, text) for each in _objects(file, node)]
        except ConfigError as error:
            hint = "; a template is to be rendered first (helm template)" if "{{" in text else ""
            report.unreadable.append(f"{error}{hint}")
            continue
        if any(each.kind == DAEMON for each in held):
            report.messages += daemon_json.not_json(file, text)
        found += held
    for each in found:
        judge_one = _JUDGES.get(each.kind)
        (report.judged if judge_one else report.passed_over)[each.kind] += 1
        report.messages += judge_one(each) if judge_one else kubernetes.misspelt(each, _KINDS)
    by_kind = {name: [each for each in found if each.kind == name] for name in _KINDS}
    report.messages += snapshot_class.match(by_kind[SNAPSHOT_CLASS.name], by_kind[STORAGE_CLASS.name])
    for kind in _KINDS.values():
        report.messages += kind.two_defaults(by_kind[kind.name])
    order = {file: place for place, file in enumerate(dict.fromkeys(files))}
    report.messages.sort(key=lambda each: (order[each.file], each.line, SEVERITIES.index(each.severity)))
    return report


def _objects(file: str, node: Node) -> Iterator[Object]:
    """Yield what is in a document; a List holds others."""
    kind, group = node.text_of("kind"), node.text_of("apiVersion").partition("/")[0]
    if kind.endswith("List") and (items := node.get("items")) is not None:
        for each in items.items:
            yield from _objects(file, each)
    elif kind in _KINDS and group in ("", _KINDS[kind].group):
        yield Object(file, node, kind)
    elif not kind and (posixpath.basename(file) == DAEMON or daemon_json.is_one(node)):
        yield Object(file, node, DAEMON)
    elif kind in OFFLINE:  # of another group
        yield Object(file, node, f"{short(group)} {kind}")
    else:
        yield Object(file, node, short(kind) or "something without a kind")


def show(report: Report) -> Iterator[str]:
    """Yield the report's lines, harmless to a terminal: messages as compilers write them, then what is not judged."""
    for each in report.messages:
        yield plain(f"{each.file}:{each.line}: {each.severity}: {each.rule}: {each.text}")
    for problem in report.unreadable:
        yield plain(f"could not be judged: {problem}")
    if report.messages or report.unreadable:
        yield ""
    yield f"judged: {_counted(report.judged)}"
    if report.passed_over:
        yield f"not judged: {_counted(report.passed_over)}"
    for kind in report.judged:
        yield f"no file tells, of a {kind}: {OFFLINE[kind]}"
    if report.judged[SNAPSHOT_CLASS.name] and not report.judged[STORAGE_CLASS.name]:
        yield "no StorageClass was given: whether drivers match is not judged"
    severities = Counter(each.severity for each in report.messages)
    told = [f"{severities[each]} {each}{'s' * (severities[each] != 1)}" for each in SEVERITIES if severities[each]]
    yield f"found: {', '.join(told) or 'nothing'}"


def _counted(kinds: Mapping[str, int]) -> str:
    told = sorted(kinds.items(), key=lambda each: (-each[1], each[0]))
    shown = [f"{count} {plain(kind)}" for kind, count in told[:20]]
    return ", ".join(shown) + (", and others" if len(told) > len(shown) else "") if told else "nothing"
