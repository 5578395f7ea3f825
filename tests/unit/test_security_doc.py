"""docs/security.md: every threat names a test, and it is found from the README; see test_named_tests."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/security.md").read_text()


def test_every_threat_names_a_test() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("| ") and line.count(" | ") == 2]
    threats = [row for row in rows if not row.startswith(("| threat ", "| --- "))]
    assert len(threats) > 20
    assert [row for row in threats if "::test_" not in row] == []


def test_everything_that_looks_like_a_test_was_read() -> None:
    assert TEXT.count("::") == len(re.findall(r"`tests/[\w/]+\.py::\w+`", TEXT))


def test_it_is_linked_from_the_readme() -> None:
    assert "docs/security.md" in (ROOT / "README.md").read_text()
