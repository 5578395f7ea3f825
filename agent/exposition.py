"""Families to bytes: the Prometheus text format 0.0.4 and OpenMetrics 1.0.0, and the store of ready pages.

A scrape joins bytes that are ready. It reads no file and waits for nobody.
Sources: https://prometheus.io/docs/instrumenting/exposition_formats/ and the OpenMetrics 1.0.0 specification.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from math import isfinite, isnan
from typing import Literal, NamedTuple

from agent.compression import Piece, compress, join
from agent.metric import Family, LabelSet, Metric

Form = Literal["text", "openmetrics"]
FORMS: tuple[Form, ...] = ("text", "openmetrics")
EOF = b"# EOF\n"
LARGE = 1 << 14  # bytes of a family from which on it is a piece of its own, compressed again only when it changes


def escape(value: str) -> str:
    r"""Return a label value as both formats write it: `\` is `\\`, a newline is `\n`, `"` is `\"`."""
    if "\\" in value or '"' in value or "\n" in value:
        return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return value


def header(metric: Metric, form: Form) -> bytes:
    """Return the HELP and TYPE lines of a family, as each format wants its name and its help."""
    name, kind, text = metric.name, metric.kind, metric.help.replace("\\", r"\\").replace("\n", r"\n")
    if form == "openmetrics":
        name = name.removesuffix({"counter": "_total", "info": "_info", "gauge": ""}[kind])
        text = text.replace('"', r"\"")
    elif kind == "info":
        kind = "gauge"
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n".encode()


def number(value: float) -> str:
    """Return a value as both formats write it. Whole numbers stay whole, so that 2**53 + 1 loses nothing here."""
    try:
        if isfinite(value):
            return repr(value if isinstance(value, int) and not isinstance(value, bool) else float(value))
    except OverflowError:  # an int that no float holds
        return "+Inf" if value > 0 else "-Inf"
    if isnan(value):
        return "NaN"
    return "+Inf" if value > 0 else "-Inf"


class _Kept(NamedTuple):
    """What a renderer keeps of a family's last round."""

    labelsets: Sequence[LabelSet]
    texts: Sequence[bytes]
    conversion: str
    values: Sequence[float]
    body: bytes


class Renderer:
    """Renders families; keeps the text of each label set, as those change far more rarely than values.

    Families with the same labels share it. All of a family's values are substituted in one operation, which costs a
    hundredth of formatting them line by line; a family none of whose values has changed costs a comparison.
    """

    def __init__(self) -> None:
        self._kept: dict[Metric, _Kept] = {}
        self._texts: dict[LabelSet, dict[LabelSet, bytes]] = {}  # by the names of labels
        self._has_new = False

    def render(self, family: Family) -> bytes:
        """Return the family's sample lines, which are the same in both formats."""
        metric, labelsets, values = family
        conversion = _conversion(values)
        kept = self._kept.get(metric)
        if kept is not None and kept.labelsets is not labelsets and kept.labelsets != labelsets:
            kept = None
        if kept is not None and kept.conversion == conversion == "%d" and kept.values == values:
            return kept.body
        texts = kept.texts if kept is not None else self._texts_of(metric.labels, labelsets)
        body = _template(metric, texts, conversion) % _arguments(values, conversion)
        if kept is not None and kept.body == body:
            body = kept.body  # one object is known again at a glance
        self._kept[metric] = _Kept(labelsets, texts, conversion, values, body)
        return body

    def _texts_of(self, names: LabelSet, labelsets: Sequence[LabelSet]) -> list[bytes]:
        known = self._texts.setdefault(names, {})
        if missing := [labels for labels in labelsets if labels not in known]:
            known.update(zip(missing, _texts(names, missing), strict=True))
            self._has_new = True
        return [known[labels] for labels in labelsets]

    def forget(self, shown: Collection[Metric]) -> None:
        """Forget what the families of the newest round have no use for; these are their metrics."""
        if len(self._kept) > len(shown):
            self._kept = {metric: self._kept[metric] for metric in shown}
        if not self._has_new:
            return
        self._has_new = False
        for names, known in self._texts.items():
            sharing = [kept for metric, kept in self._kept.items() if metric.labels == names]
            if len(known) > 2 * max((len(kept.texts) for kept in sharing), default=0):
                pairs = [zip(kept.labelsets, kept.texts, strict=True) for kept in sharing]
                self._texts[names] = dict(chain.from_iterable(pairs))


def _conversion(values: Sequence[float]) -> str:
    """Return how to write the values: `%d` if all are whole, `%r` if all are finite, `%b` if each needs a look."""
    try:
        total = sum(values)  # of floats, and not finite, if one of them is
        if not isfinite(total):
            return "%b"
    except OverflowError:
        return "%b"
    if isinstance(total, int):
        return "%d"
    return "%b" if bool in set(map(type, values)) else "%r"


def _arguments(values: Sequence[float], conversion: str) -> tuple[object, ...]:
    return tuple(number(value).encode() for value in values) if conversion == "%b" else tuple(values)


def _template(metric: Metric, texts: Sequence[bytes], conversion: str) -> bytes:
    name, end = metric.name.encode(), f" {conversion}\n".encode()
    return name + (end + name).join(texts) + end


def _texts(names: LabelSet, labelsets: Sequence[LabelSet]) -> Iterator[bytes]:
    """Yield each label set as it stands in a line of a template."""
    if not names:
        yield from [b""] * len(labelsets)
        return
    order = sorted(range(len(names)), key=names.__getitem__)
    pattern = "{" + ",".join(f'{names[at]}="%s"' for at in order) + "}"
    for labels in labelsets:
        text = pattern % tuple(escape(labels[at]) for at in order)
        yield text.replace("%", "%%").encode("utf-8", "replace")


class Part(NamedTuple):
    """One family as ready bytes."""

    header: bytes
    body: bytes


class Page:
    """One collector's newest samples as ready bytes. `made_at` is the start of its run on the store's clock."""

    __slots__ = ("_parts", "_pieces", "made_at", "max_age", "series")

    def __init__(
        self, parts: dict[Form, list[Part]], series: int, made_at: float = 0.0, max_age: float = float("inf")
    ) -> None:
        # small ones first, as they are compressed together
        self._parts = {form: sorted(each, key=_is_large) for form, each in parts.items()}
        self._pieces: dict[Form, dict[Part, Piece]] = {}
        self.series = series
        self.made_at = made_at
        self.max_age = max_age

    def plain(self, form: Form) -> list[bytes]:
        """Return the page in parts; joined they are the page."""
        return [text for part in self._parts[form] for text in part]

    def gzip(self, form: Form, before: Page | None = None) -> list[Piece]:
        """Return the page compressed, made at the first call; what is the same as in the page before is taken over."""
        if form not in self._pieces:
            kept = before.compressed(form) if before is not None else {}
            small = [text for part in self._parts[form] if not _is_large(part) for text in part]
            pieces = {_SMALL: compress(small)} if small else {}
            for part in filter(_is_large, self._parts[form]):
                pieces[part] = kept.get(part) or compress(part)
            self._pieces[form] = pieces
        return list(self._pieces[form].values())

    def compressed(self, form: Form) -> Mapping[Part, Piece]:
        """Return what was compressed so far."""
        return self._pieces.get(form, {})


_SMALL = Part(b"", b"")


def _is_large(part: Part) -> bool:
    return len(part.body) >= LARGE


def make_page(
    renderer: Renderer, families: Iterable[Family], made_at: float = 0.0, max_age: float = float("inf")
) -> Page:
    """Return the page of some families; empty ones are left out with their headers."""
    parts: dict[Form, list[Part]] = {form: [] for form in FORMS}
    series, shown = 0, []
    for family in families:
        if not family.values:
            continue
        body = renderer.render(family)
        series += len(family.values)
        shown.append(family.metric)
        for form in FORMS:
            parts[form].append(Part(header(family.metric, form), body))
    renderer.forget(shown)
    return Page(parts, series, made_at, max_age)


_EOF_PIECE = compress([EOF])


class Pages:
    """The store: the newest page of each name. A page older than its `max_age` is withdrawn, never shown as new."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pages: dict[str, Page] = {}
        self._wanted: frozenset[Form] = frozenset()

    def put(self, name: str, page: Page) -> None:
        """Publish a page. What scrapers have asked for so far is compressed here, in the collector's own time."""
        before = self._pages.get(name)
        for form in self._wanted:
            page.gzip(form, before)
        self._pages[name] = page

    def drop(self, name: str) -> None:
        """Withdraw a page for good."""
        self._pages.pop(name, None)

    def is_current(self, name: str) -> bool:
        """Return whether the name has a page that is not withdrawn."""
        page = self._pages.get(name)
        return page is not None and self._clock() - page.made_at <= page.max_age

    def is_withdrawn(self, name: str) -> bool:
        """Return whether the name has a page that is too old to be shown."""
        return name in self._pages and not self.is_current(name)

    def members(self, form: Form, *, gzip: bool) -> list[bytes]:
        """Return the whole exposition in ready parts; joined they are the body of a scrape."""
        now = self._clock()
        current = [page for _, page in sorted(self._pages.copy().items()) if now - page.made_at <= page.max_age]
        is_openmetrics = form == "openmetrics"
        if gzip:
            if form not in self._wanted:
                self._wanted |= {form}
            pieces = [piece for page in current for piece in page.gzip(form)]
            return join([*pieces, _EOF_PIECE] if is_openmetrics else pieces)
        return [part for page in current for part in page.plain(form)] + ([EOF] if is_openmetrics else [])
