from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from agent.collector import Collector, stateless
from agent.config import Config, load
from agent.containers import Runtimes
from agent.errors import ConfigError
from agent.metric import Metric
from agent.units import Seconds
from agent.watermark import Reserve, Tier, Watermark

USED = Metric("ullage_x_used_bytes", "Used.", ("mountpoint",))
SIZE = Metric("ullage_x_size_bytes", "Size.", ("mountpoint",))
TIERS = (Tier("warning", "warning", 0.8, 0.75, 300.0), Tier("critical", "critical", 0.9, 0.85))


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pattern: str = "x"
    window: Seconds = Seconds(60)
    roots: dict[str, tuple[str, ...]] = {}

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            message = f"a regular expression for pattern; {error}"
            raise ValueError(message) from error


def watermark(name: str, *, has_reserve: bool = False) -> Watermark:
    return Watermark(
        name=name,
        summary="X.",
        used=USED,
        size=SIZE,
        target=("mountpoint",),
        tiers=TIERS,
        available=SIZE if has_reserve else None,
        reserve=Reserve.of(100, TIERS) if has_reserve else None,
    )


DISKS = Collector(
    name="disks",
    summary="Disks.",
    start=stateless(lambda _host: ()),
    metrics=(USED, SIZE),
    settings=Settings,
    interval=20.0,
    deadline=15.0,
    watermarks=(watermark("inodes"), watermark("bytes", has_reserve=True)),
)
OTHER = Collector(name="other", summary="Other.", start=stateless(lambda _host: ()), metrics=())


Read = Callable[..., Config]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read_(text: str | bytes, **switches: bool) -> Config:
        path = tmp_path / "ullage.yml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load(str(path), (DISKS, OTHER), switches)

    return read_


def test_without_a_file_the_declarations_hold() -> None:
    config = load(None, (DISKS, OTHER), {})
    plan = config.plans[0]
    assert (plan.name, plan.interval, plan.deadline, plan.settings) == ("disks", 20.0, 15.0, Settings())
    assert plan.watermarks == DISKS.watermarks
    assert config.rules.keep_firing_for == Seconds(300)


@pytest.mark.parametrize("text", ["", "collectors:", "collectors: {disks: }", "# nothing\n", "watermarks: {}\nrules:"])
def test_empty_sections_change_nothing(read: Read, text: str) -> None:
    assert read(text).plans == load(None, (DISKS, OTHER), {}).plans


def test_every_key_takes_effect(read: Read) -> None:
    config = read(
        """
        collectors:
          disks: {interval: 1m30s, deadline: 500ms, series_budget: 7, pattern: "^/x", window: 2h, roots: {a: [/b]}}
          other: {enabled: false}
        watermarks:
          inodes:
            tiers: {warning: {raise: 0.6, clear: 0.5, for: 3m}}
            overrides:
              - {target: "/data*", tiers: {critical: {raise: 0.99}}}
          bytes: {reserve: 1KiB, overrides: [{target: /, reserve: 0}]}
        rules: {keep_firing_for: 1m, runbook_url: "https://wiki.example/{alert}"}
        """
    )
    (plan,) = config.plans
    assert (plan.interval, plan.deadline, plan.series_budget) == (90.0, 0.5, 7)
    assert plan.settings == Settings("^/x", Seconds(7200), {"a": ("/b",)})
    inodes, bytes_ = plan.watermarks
    assert inodes.tiers == (Tier("warning", "warning", 0.6, 0.5, 180.0), TIERS[1])
    assert inodes.overrides[0].target == "/data*"
    assert [tier.raise_at for tier in inodes.overrides[0].tiers] == [0.6, 0.99]
    assert bytes_.reserve == Reserve.of(1024, TIERS)
    assert bytes_.overrides[0].reserve is None
    assert config.rules.keep_firing_for == Seconds(60)
    assert config.rules.runbook_url == "https://wiki.example/{alert}"


def test_the_command_line_has_the_last_word(read: Read) -> None:
    off = "collectors: {disks: {enabled: false}}"
    assert [plan.name for plan in read(off, disks=True, other=False).plans] == ["disks"]


def test_runtimes_are_where_the_file_says_and_the_command_line_has_the_last_word(tmp_path: Path) -> None:
    path = tmp_path / "ullage.yml"
    path.write_text("runtime: {docker: {root: [/a], socket: [/s]}, containers-storage: {root: [/c]}}")
    runtimes = load(str(path), (DISKS,), {}, {"docker_roots": ("/b",)}).plans[0].runtimes
    assert runtimes == Runtimes(docker_sockets=("/s",), docker_roots=("/b",), containers_storage_roots=("/c",))


def test_a_deadline_is_never_over_a_shorter_interval(read: Read) -> None:
    assert read("collectors: {disks: {interval: 5s}}").plans[0].deadline == 5.0


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("colectors: {}", "colectors: unknown key; did you mean 'collectors'?"),
        ("zzz: {}", "zzz: unknown key; expected one of: collectors, rules, runtime, watermarks"),
        ("- a", "['a']: expected a mapping of keys to values"),
        ("1: 2", "{1: 2}: expected a mapping of keys to values"),
        ("collectors: {dsks: {}}", "collectors.dsks: unknown key; did you mean 'disks'?"),
        ("collectors: {disks: {intervall: 5s}}", "collectors.disks.intervall: unknown key; did you mean 'interval'?"),
        ("collectors: {disks: {patern: x}}", "collectors.disks.patern: unknown key; did you mean 'pattern'?"),
        ("collectors: {disks: 5}", "collectors.disks: 5: expected a mapping of keys to values"),
        (
            "collectors: {disks: {interval: 5}}",
            "collectors.disks.interval: 5: expected a duration with its unit, such as 15s, 5m or 1h30m",
        ),
        (
            "collectors: {disks: {interval: 10ms}}",
            "collectors.disks.interval: '10ms': expected a duration from 1s to 1d",
        ),
        (
            "collectors: {disks: {deadline: 30s}}",
            "collectors.disks.deadline: '30s': expected a duration up to the interval, 20s",
        ),
        (
            "collectors: {disks: {series_budget: 0}}",
            "collectors.disks.series_budget: 0: expected a number of series, 1",
        ),
        (
            "collectors: {disks: {enabled: 'yes'}}",
            "collectors.disks.enabled: 'yes': expected true or false, got a text",
        ),
        ("collectors: {disks: {pattern: 5}}", "collectors.disks.pattern: 5: expected a text, got a whole number"),
        ("collectors: {disks: {pattern: '('}}", "collectors.disks: {'pattern': '('}: expected a regular expression"),
        ("collectors: {disks: {roots: {a: [1]}}}", "collectors.disks.roots: {'a': [1]}: expected a text, got a whole"),
        ("watermarks: {inode: {}}", "watermarks.inode: unknown key; did you mean 'inodes'?"),
        (
            "watermarks: {inodes: {tiers: {warning: {raise: 2}}}}",
            "watermarks.inodes.tiers.warning: {'raise': 2.0, 'clear': 0.75}: expected ratios with 0 < clear < raise",
        ),
        (
            "watermarks: {inodes: {tiers: {warning: {raise: 0.95, clear: 0.9}}}}",
            "tier critical must be over tier warning",
        ),
        (
            "watermarks: {inodes: {tiers: {warning: {raize: 0.95}}}}",
            "watermarks.inodes.tiers.warning.raize: unknown key; did you mean 'raise'?",
        ),
        (
            "watermarks: {inodes: {tiers: {warning: {raise: '0.9'}}}}",
            "watermarks.inodes.tiers.warning.raise: '0.9': expected a number, got a text",
        ),
        (
            "watermarks: {inodes: {tiers: {critical: {for: 10m}}}}",
            "watermarks.inodes.tiers.critical.for: '10m': expected a duration up to 4m: a longer one loses",
        ),
        ("runtime: {docke: {}}", "runtime.docke: unknown key; did you mean 'docker'?"),
        ("runtime: {docker: {sockt: []}}", "runtime.docker.sockt: unknown key; did you mean 'socket'?"),
        ("runtime: {docker: {root: /x}}", "runtime.docker.root: '/x': expected a list of absolute paths"),
        ("runtime: {docker: {root: [x]}}", "runtime.docker.root: ['x']: expected a list of absolute paths"),
        ("watermarks: {inodes: {tiers: {criticl: {}}}}", "watermarks.inodes.tiers.criticl: unknown key; did you mean"),
        ("watermarks: {inodes: {tiers: [1]}}", "watermarks.inodes.tiers: [1]: expected a mapping, got a list"),
        ("watermarks: {inodes: {overrides: [{}]}}", "watermarks.inodes.overrides[0]: {}: expected the key 'target'"),
        ("watermarks: {inodes: {overrides: [3]}}", "watermarks.inodes.overrides[0]: 3: expected a mapping of keys"),
        (
            "watermarks: {inodes: {overrides: [{target: a, tiers: {warning: {raise: 7}}}]}}",
            "watermarks.inodes.overrides[0].tiers.warning: {'raise': 7.0",
        ),
        ("watermarks: {inodes: {reserve: 1GiB}}", "watermarks.inodes.reserve: 1073741824: expected no reserve"),
        (
            "watermarks: {bytes: {reserve: 1 x}}",
            "watermarks.bytes.reserve: '1 x': expected a size in bytes, such as 10GiB",
        ),
        ("rules: {keep_firing_for: 5}", "rules.keep_firing_for: 5: expected a duration with its unit"),
        ("rules: {runbook_url: 'x/{b}'}", "rules.runbook_url: 'x/{b}': expected a URL whose only field is {alert}"),
        ("a: [", "is not valid YAML: "),
        ("rules: {}\nrules: {}", "is not valid YAML: key 'rules' twice, again in line 2"),
        ("? [a]\n: 1", "is not valid YAML: "),
        (b"\xff\xfe\xfd", "is not "),
        ("[" * 5000, "is n"),
        ("a: !!python/object/apply:os.system [true]", "is not valid YAML: "),
    ],
)
def test_a_mistake_is_named_with_its_file_key_value_and_what_was_expected(
    read: Read, tmp_path: Path, text: str | bytes, complaint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert str(caught.value).startswith(f"{tmp_path}/ullage.yml: ")
    assert complaint in str(caught.value)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="/nonexistent: cannot be read: No such file or directory"):
        load("/nonexistent", (), {})
