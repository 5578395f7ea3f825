"""Metric and Sample: what a collector declares and what it yields.

Names and units follow the Prometheus naming rules; values are floats or ints in base units.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Kind = Literal["gauge", "counter", "info"]
LabelSet = tuple[str, ...]

LABEL_LIMIT = 256


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """One metric family: its name as Prometheus stores it (counters end in `_total`), its help, its label names.

    Called with a value and its label values it gives a Sample: `USED(4096, "0_256")`.
    """

    name: str
    help: str
    labels: LabelSet = ()
    kind: Kind = "gauge"

    def __call__(self, value: float, *labels: str) -> Sample:
        """Return one sample; label values in the order of `labels`."""
        return Sample(self, labels, value)

    def __add__(self, other: Metric) -> Sum:
        """Return the sum of two metrics, for a watermark's declaration."""
        return Sum(((1, self), (1, other)))

    def __sub__(self, other: Metric) -> Sum:
        """Return the difference of two metrics, for a watermark's declaration."""
        return Sum(((1, self), (-1, other)))


@dataclass(frozen=True, slots=True)
class Sum:
    """A signed sum of metrics that carry the same labels, as a watermark compares them."""

    terms: tuple[tuple[int, Metric], ...]

    def __add__(self, other: Metric) -> Sum:
        """Return the sum with one more metric added."""
        return Sum((*self.terms, (1, other)))

    def __sub__(self, other: Metric) -> Sum:
        """Return the sum with one more metric subtracted."""
        return Sum((*self.terms, (-1, other)))

    def promql(self) -> str:
        """Return the sum as PromQL: `(a - b)`, or `a` alone."""
        text = "".join((" + " if sign > 0 else " - ") + metric.name for sign, metric in self.terms)
        text = text.removeprefix(" + ")
        return f"({text})" if len(self.terms) > 1 else text


class Sample(NamedTuple):
    """One number with its label values, in base units."""

    metric: Metric
    labels: LabelSet
    value: float


class Family(NamedTuple):
    """All samples of one metric at once, for collectors with thousands of targets.

    `labelsets` and `values` run in parallel. A collector that yields the same `labelsets` object
    in the next round saves the renderer the comparison.
    """

    metric: Metric
    labelsets: Sequence[LabelSet]
    values: Sequence[float]


def label(text: str | bytes, limit: int = LABEL_LIMIT) -> str:
    r"""Return `text` as a label value: valid UTF-8 and at most `limit` characters.

    What containers control (names, paths, tags) is an attacker's input. Bytes that are no UTF-8 become
    U+FFFD; a longer text is cut and ends in `~` and a hash of the whole, so that two cut texts stay two.
    Quotes, newlines and backslashes stay: the renderer escapes them.
    """
    if isinstance(text, str) and len(text) <= limit and text.isascii():
        return text
    try:
        raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a surrogate that stands for no byte, as JSON can smuggle in
        raw = str(text).encode("utf-8", "replace")
    clean = raw.decode("utf-8", "replace")
    if len(clean) <= limit:
        return clean
    digest = hashlib.blake2b(raw, digest_size=4).hexdigest()
    return f"{clean[: limit - 9]}~{digest}"
