"""What ZFS says in the kernel's log when it suspends a pool."""

from __future__ import annotations

import pytest

from tests.real.kernellog import Agent
from tests.vm.guest.zpool import Pool

pytestmark = pytest.mark.vm(zfs=True, deadline=400)


def test_a_suspended_pool_is_told_by_its_name(pool: Pool) -> None:
    agent = Agent()
    try:
        pool.suspend()
        agent.until("zfs", "suspended", pool.name)
    finally:
        agent.running.close()
