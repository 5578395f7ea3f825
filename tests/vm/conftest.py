from __future__ import annotations

import pytest

from tests.vm import plugin


def pytest_configure(config: pytest.Config) -> None:
    plugin.install(config)
