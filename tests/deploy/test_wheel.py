"""The wheel that the image is made of: it is the sources that all other tests run."""

from __future__ import annotations

import zipfile

import pytest

from tests.deploy import image
from tests.deploy.tools import ROOT

pytestmark = pytest.mark.slow


def test_what_is_in_the_wheel_is_what_was_tested() -> None:
    with zipfile.ZipFile(image.wheel()) as wheel:
        packed = {name: wheel.read(name) for name in wheel.namelist() if ".dist-info/" not in name}
    files = [path for package in ("agent", "collectors") for path in (ROOT / package).rglob("*") if path.is_file()]
    sources = {str(path.relative_to(ROOT)): path.read_bytes() for path in files if "__pycache__" not in path.parts}
    assert set(packed) == set(sources)
    assert [name for name in sources if packed[name] != sources[name]] == []
