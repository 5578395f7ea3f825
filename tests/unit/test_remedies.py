"""Every finding says where its remedy was tried, or why it was not."""

from __future__ import annotations

import ast

import pytest

import collectors
from tests.generate import ROOT
from tests.remedies import BY_HAND, NOT_TRIED, WORD_BY_WORD


def test_every_finding_stands_in_one_table() -> None:
    told = [*WORD_BY_WORD, *BY_HAND, *NOT_TRIED]
    assert sorted(told) == sorted(finding.id for each in collectors.ALL for finding in each.findings)
    assert all(NOT_TRIED.values())


def source(place: str) -> str:
    """Return the text of a test."""
    path, _, name = place.partition("::")
    text = (ROOT / path).read_text()
    (found,) = [each for each in ast.parse(text).body if isinstance(each, ast.FunctionDef) and each.name == name]
    return ast.get_source_segment(text, found) or ""


@pytest.mark.parametrize("place", sorted({*WORD_BY_WORD.values(), *BY_HAND.values()}))
def test_the_test_that_tries_it_is_there_and_reads_the_remedy(place: str) -> None:
    text = source(place)
    assert place not in WORD_BY_WORD.values() or "remedy" in text
