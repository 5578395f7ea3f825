from __future__ import annotations

import pytest

from agent.negotiation import accepts_gzip, choose_form

PROMETHEUS_2_42 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
    "text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)
PROMETHEUS_3_TEXT = (
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.5,"
    "application/openmetrics-text;version=1.0.0;q=0.4,*/*;q=0.1"
)
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


@pytest.mark.parametrize("accept", [PROMETHEUS_2_42, PROMETHEUS_3, "application/openmetrics-text", "application/*"])
def test_openmetrics_for_those_who_like_it_better(accept: str) -> None:
    assert choose_form(accept) == "openmetrics"


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "*/*",
        BROWSER,
        PROMETHEUS_3_TEXT,
        "text/plain",
        "text/plain;q=0.5, application/openmetrics-text;q=0.5",
        "application/openmetrics-text;version=0.0.1",
        "application/openmetrics-text;q=0, */*;q=0.1",
        "*/*;q=0.9, application/openmetrics-text;q=0.2",
        "image/png",
        "application/openmetrics-text;q=2",
        "application/openmetrics-text;q=nan",
        ";;;,,=,",
    ],
)
def test_text_for_all_others(accept: str) -> None:
    assert choose_form(accept) == "text"


def test_a_specific_range_outweighs_a_general_one_with_a_higher_weight() -> None:
    assert choose_form("text/plain;q=0.1, */*") == "openmetrics"


@pytest.mark.parametrize(
    "accept_encoding",
    ["gzip", "GZIP", "x-gzip", "deflate, gzip;q=0.5", "*", "gzip, deflate, br, zstd", "identity;q=0.5, gzip"],
)
def test_gzip_for_those_who_allow_it(accept_encoding: str) -> None:
    assert accepts_gzip(accept_encoding)


@pytest.mark.parametrize(
    "accept_encoding",
    ["", "identity", "gzip;q=0", "gzip;q=0.000", "*;q=0", "gzip;q=0, *", "br", "identity, gzip;q=0.5", "gzip;q=x"],
)
def test_no_gzip_for_those_who_do_not(accept_encoding: str) -> None:
    assert not accepts_gzip(accept_encoding)
