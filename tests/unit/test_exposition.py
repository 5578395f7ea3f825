"""Our rendering against prometheus_client's own, for both formats."""

from __future__ import annotations

import gzip
import math
import re
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.core import Metric as ClientMetric
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from agent.exposition import FORMS, Form, Pages, Renderer, make_page, number
from agent.metric import Family, Metric, label

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ['"', "\\", "\n", 'a"b\\c\nd', "%s", "%%", "100 %", "\\n", "{}", "é\u2028\x00", "} 1", "# EOF"]
)
NUMBER = (
    st.floats(allow_nan=True, allow_infinity=True)
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([0, -0.0, 1e300, 5e-324, 2**53 + 1, math.nan, math.inf, -math.inf, 10**400, True])
)
LABELS = ("zone", "a_name", "id")
LINE = re.compile(rb"(?P<series>.*) (?P<value>[^ ]+)$", re.DOTALL)


class Fixed:
    """A prometheus_client collector that gives what it was given."""

    def __init__(self, families: list[ClientMetric]) -> None:
        self._families = families

    def collect(self) -> list[ClientMetric]:
        return self._families


def theirs(families: list[ClientMetric], form: Form) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Fixed(families))
    if form == "text":
        return generate_latest(registry)
    return generate_openmetrics(registry)  # type: ignore[no-any-return]  # untyped


def ours(families: list[Family], form: Form) -> bytes:
    pages = Pages(clock=lambda: 0.0)
    pages.put("all", make_page(Renderer(), families, 0.0, 1.0))
    body = b"".join(pages.members(form, gzip=False))
    assert gzip.decompress(b"".join(pages.members(form, gzip=True))) == body
    return body


def lines(text: bytes) -> list[tuple[bytes, object]]:
    """Split into (series, number) and (comment, None). Numbers compare by value: `5` and `5.0` are one number."""
    split: list[tuple[bytes, object]] = []
    for line in text.removesuffix(b"\n").split(b"\n"):
        if line.startswith(b"#"):
            split.append((line, None))
            continue
        match = LINE.fullmatch(line)
        assert match is not None, line
        value = float(match["value"])
        split.append((match["series"], "NaN" if math.isnan(value) else value))
    return split


def as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=300)
@given(
    kind=st.sampled_from(["gauge", "counter", "info"]),
    help_text=TEXT,
    rows=st.dictionaries(st.tuples(TEXT, TEXT, TEXT), NUMBER, min_size=1, max_size=5),
)
def test_lines_equal_those_of_prometheus_client(
    form: Form, kind: str, help_text: str, rows: dict[tuple[str, str, str], float]
) -> None:
    if kind == "info":
        rows = dict.fromkeys(rows, 1)
    name = {"gauge": "ullage_x_bytes", "counter": "ullage_x_total", "info": "ullage_x_info"}[kind]
    makers: dict[str, Any] = {
        "gauge": lambda: GaugeMetricFamily(name, help_text, labels=LABELS),
        "counter": lambda: CounterMetricFamily("ullage_x", help_text, labels=LABELS),
        "info": lambda: InfoMetricFamily("ullage_x", help_text, labels=()),
    }
    family = makers[kind]()
    for labels, value in rows.items():
        values = dict(zip(LABELS, labels, strict=True))
        if kind == "info":
            family.add_metric((), values)
        else:
            family.add_metric(labels, as_float(value))
    metric = Metric(name, help_text, LABELS, kind)  # type: ignore[arg-type]  # drawn from the kinds there are
    mine = ours([Family(metric, tuple(rows), list(rows.values()))], form)
    assert lines(mine) == lines(theirs([family], form))


@settings(max_examples=200)
@given(rows=st.dictionaries(st.tuples(TEXT, TEXT, TEXT), NUMBER, min_size=1, max_size=8))
def test_both_formats_parse_and_carry_the_same_samples(rows: dict[tuple[str, str, str], float]) -> None:
    gauge = Metric("ullage_x_bytes", "Help.", LABELS)
    counter = Metric("ullage_y_total", "Help.", LABELS, "counter")
    positive = [abs(v) if v == v else 1 for v in rows.values()]  # noqa: PLR0124  NaN is no value of a counter
    families = [Family(gauge, tuple(rows), list(rows.values())), Family(counter, tuple(rows), positive)]
    text = parse_text(ours(families, "text").decode())
    openmetrics = parse_openmetrics(ours(families, "openmetrics").decode())

    def samples(parsed: list[ClientMetric]) -> list[tuple[str, frozenset[tuple[str, str]], str]]:
        found = [s for family in parsed for s in family.samples]
        return [(s.name, frozenset(s.labels.items()), repr(float(s.value))) for s in found]

    expected = [
        (name, frozenset(zip(LABELS, labels, strict=True)), repr(as_float(value)))
        for name, values in (("ullage_x_bytes", rows.values()), ("ullage_y_total", positive))
        for labels, value in zip(rows, values, strict=True)
    ]
    assert samples(list(text)) == expected
    assert samples(list(openmetrics)) == expected


@given(first=st.lists(NUMBER, min_size=3, max_size=3), second=st.lists(NUMBER, min_size=3, max_size=3))
def test_a_renderer_that_is_used_again_gives_what_a_new_one_gives(first: list[float], second: list[float]) -> None:
    metric = Metric("ullage_x", "Help.", ("a",))
    labelsets = (("1",), ("2",), ("3",))
    used = Renderer()
    used.render(Family(metric, labelsets, first))
    other = (("1",), ("2",), ("4",))
    for each, values in (
        (labelsets, [*first]),
        (labelsets, second),
        (other, first),
        (other, [*first]),
        (other, second),
    ):
        assert used.render(Family(metric, each, values)) == Renderer().render(Family(metric, each, values))


@given(value=NUMBER)
def test_a_number_keeps_its_value(value: float) -> None:
    expected = as_float(value)
    assert repr(float(number(value))) == repr(expected)


def test_a_surrogate_in_a_label_costs_a_character_not_the_page() -> None:
    metric = Metric("ullage_x", "Help.", ("a",))
    assert Renderer().render(Family(metric, (("\udcff",),), [1])) == b'ullage_x{a="?"} 1\n'


def test_label_sets_that_came_and_went_take_no_memory() -> None:
    metrics = [Metric(f"ullage_{name}", "Help.", ("a",)) for name in "xyz"]
    renderer = Renderer()

    def play(turns: range) -> None:
        for turn in turns:
            labelsets = tuple((f"{turn}-{number}-{'a' * 1000}",) for number in range(20))
            families = [Family(metric, labelsets, [turn] * 20) for metric in metrics[: 1 + turn % 3]]
            page = make_page(renderer, families)
            assert page.series == 20 * len(families)

    play(range(10))
    tracemalloc.start()
    try:
        play(range(10, 200))
        assert tracemalloc.get_traced_memory()[0] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_page_over_its_age_is_withdrawn_and_comes_back() -> None:
    now = [0.0]
    pages = Pages(clock=lambda: now[0])
    families = [Family(Metric("ullage_x", "Help."), ((),), [1])]
    pages.put("x", make_page(Renderer(), families, 0.0, 30.0))
    assert pages.is_current("x")
    assert b"ullage_x 1\n" in b"".join(pages.members("text", gzip=False))
    assert not pages.is_withdrawn("x")
    now[0] = 30.1
    assert not pages.is_current("x")
    assert pages.is_withdrawn("x")
    assert b"".join(pages.members("text", gzip=False)) == b""
    assert gzip.decompress(b"".join(pages.members("openmetrics", gzip=True))) == b"# EOF\n"
    pages.put("x", make_page(Renderer(), families, 30.0, 30.0))
    assert pages.is_current("x")
    assert not pages.is_withdrawn("x")
    pages.drop("x")
    assert not pages.is_withdrawn("x")


def test_a_large_family_is_compressed_again_only_when_it_changes() -> None:
    small, large = Metric("ullage_small", "Help."), Metric("ullage_large", "Help.", ("a",))
    labelsets = tuple((f"{number:050}",) for number in range(1000))
    renderer, pages = Renderer(), Pages(clock=lambda: 0.0)
    pages.members("text", gzip=True)
    seen = []
    for turn, values in ((1, [1.5] * 1000), (2, [1.5] * 1000), (2, [2.5] * 1000)):
        page = make_page(renderer, [Family(large, labelsets, values), Family(small, ((),), [turn])], 0.0, 1.0)
        pages.put("x", page)
        body = b"".join(pages.members("text", gzip=False))
        assert gzip.decompress(b"".join(pages.members("text", gzip=True))) == body
        assert body.count(b"# HELP ullage_large Help.\n# TYPE ullage_large gauge\nullage_large{") == 1
        seen.append(page.gzip("text"))
    first, second, third = seen
    assert first[1] is second[1]
    assert first[0] != second[0]
    assert third[1] != second[1]


def test_empty_families_leave_no_header() -> None:
    page = make_page(Renderer(), [Family(Metric("ullage_x", "Help."), (), [])], 0.0, 1.0)
    assert page.plain("text") == []
    assert page.series == 0


ANY_TEXT = st.text(st.characters(), max_size=400)


@given(text=ANY_TEXT | st.binary(max_size=400))
def test_label_is_valid_utf8_and_short(text: str | bytes) -> None:
    clean = label(text)
    clean.encode()
    assert len(clean) <= 256


@given(text=st.text(min_size=300, max_size=400))
def test_label_keeps_two_long_texts_two(text: str) -> None:
    assert label(text) != label(text + "x")
