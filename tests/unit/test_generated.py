from __future__ import annotations

import pytest

from tests.generate import FILES, ROOT


@pytest.mark.parametrize("path", FILES)
def test_what_is_committed_is_what_would_be_generated(path: str) -> None:
    assert (ROOT / path).read_text() == FILES[path](), f"{path} is not up to date: run `make generate`"
