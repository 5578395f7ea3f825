from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.units import Seconds, Size


@pytest.mark.parametrize(
    ("text", "seconds"), [("15s", 15), ("5m", 300), ("1h30m", 5400), ("500ms", 0.5), ("1d", 86400), ("1.5h", 5400)]
)
def test_durations(text: str, seconds: float) -> None:
    assert Seconds.parse(text) == seconds


@pytest.mark.parametrize("value", ["", "5", 5, "5 s", "s", "-5s", "5sx", None, True, "1h 30m"])
def test_what_is_no_duration_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="a duration with its unit"):
        Seconds.parse(value)


@given(st.integers(0, 10**10))
def test_a_duration_reads_back(milliseconds: int) -> None:
    duration = Seconds(milliseconds / 1000)
    assert round(Seconds.parse(str(duration)) * 1000) == milliseconds


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("10GiB", 10 << 30),
        ("512MiB", 512 << 20),
        ("10GB", 10**10),
        (4096, 4096),
        ("4096", 4096),
        ("1.5KiB", 1536),
        ("7B", 7),
    ],
)
def test_sizes(value: object, size: int) -> None:
    assert Size.parse(value) == size


@pytest.mark.parametrize("value", ["", "GiB", "10 gigs", -1, True, None, 1.5, "-1GiB"])
def test_what_is_no_size_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="a size in bytes"):
        Size.parse(value)
