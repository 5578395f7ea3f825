"""What a client may be sent: the exposition's form by Accept, gzip by Accept-Encoding (RFC 9110, 12.5).

Prometheus 2.42 asks `application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,
text/plain;version=0.0.4;q=0.5,*/*;q=0.1`; 3.x adds `escaping=allow-utf-8` and a `text/plain;version=1.0.0`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from agent.exposition import Form

CONTENT_TYPES: dict[Form, str] = {
    "text": "text/plain; version=0.0.4; charset=utf-8",
    "openmetrics": "application/openmetrics-text; version=1.0.0; charset=utf-8",
}
_OFFERS: dict[Form, tuple[str, str, str]] = {
    "text": ("text", "plain", "0.0.4"),
    "openmetrics": ("application", "openmetrics-text", "1.0.0"),
}
_WEIGHT = re.compile(r"0(?:\.\d{0,3})?|1(?:\.0{0,3})?", re.ASCII)


class _Item(NamedTuple):
    """One element of an Accept header: `text/plain;version=0.0.4;q=0.5`."""

    name: str
    parameters: dict[str, str]
    weight: float


def choose_form(accept: str) -> Form:
    """Return the form the client likes best; the text format where it has no preference, or none that we offer."""
    items = list(_items(accept))
    return "openmetrics" if _quality("openmetrics", items) > _quality("text", items) else "text"


def accepts_gzip(accept_encoding: str) -> bool:
    """Return whether gzip is allowed, and not less welcome than an identity that is named."""
    weights = {item.name: item.weight for item in _items(accept_encoding)}
    gzip = weights.get("gzip", weights.get("x-gzip", weights.get("*", 0.0)))
    return gzip > 0 and gzip >= weights.get("identity", 0.0)


def _items(header: str) -> Iterator[_Item]:
    """Yield the elements of a header; one whose weight is malformed is left out."""
    for element in header.lower().split(","):
        name, *rest = (part.strip() for part in element.split(";"))
        parameters = {key.rstrip(): value.strip(' "') for key, _, value in (part.partition("=") for part in rest)}
        weight = parameters.pop("q", "1")
        if name and _WEIGHT.fullmatch(weight):
            yield _Item(name, parameters, float(weight))


def _quality(form: Form, items: list[_Item]) -> float:
    """Return the weight of the most specific element that covers a form, 0 if none does."""
    kind, subtype, version = _OFFERS[form]
    covering = [(0, 0.0)]
    for item in items:
        wanted_kind, _, wanted_subtype = item.name.partition("/")
        wanted_version = item.parameters.get("version", version)
        if wanted_kind in ("*", kind) and wanted_subtype in ("*", subtype) and wanted_version == version:
            specificity = (wanted_kind != "*") + (wanted_subtype != "*") + ("version" in item.parameters)
            covering.append((specificity, item.weight))
    return max(covering)[1]
