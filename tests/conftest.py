"""Which tests share a worker where there are several (`pytest -n 2`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # the lab's guest has no pytest-xdist
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

ANYWHERE = ("tests/fuzz/", "tests/unit/")


def share(nodeid: str) -> str:
    """Return what a test shares with others: the lab's guest, this machine, or, if it needs neither, its file."""
    if nodeid.startswith("tests/vm/"):
        return "guest"
    return nodeid.partition("::")[0] if nodeid.startswith(ANYWHERE) else "machine"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    from xdist.scheduler import LoadScopeScheduling  # noqa: PLC0415  see above

    class Shares(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return share(nodeid)

    return Shares(config, log)
