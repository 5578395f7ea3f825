"""Documents that name a test to prove what they say: it is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
DOCUMENTS = sorted(path for path in (ROOT / "docs").glob("*.md") if NAMED.search(path.read_text()))


def functions(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_faults_name_their_tests() -> None:
    assert ROOT / "docs/faults.md" in DOCUMENTS


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_test_that_a_document_names_is_there(document: Path) -> None:
    named = NAMED.findall(document.read_text())
    missing = [f"{path}::{name}" for path, name in named if name not in functions(ROOT / path)]
    assert missing == []


def test_every_fault_that_is_tried_is_told() -> None:
    told = {name for _, name in NAMED.findall((ROOT / "docs/faults.md").read_text())}
    tried = {
        name
        for path in (ROOT / "tests/faults").glob("test_*.py")
        for name in functions(path)
        if name.startswith("test_")
    }
    assert tried - told == set()
