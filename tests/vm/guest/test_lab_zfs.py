from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.host import Host
from tests.vm.guest.zpool import Pool, run

pytestmark = pytest.mark.vm(zfs=True)

WRITTEN = 5 << 20


def test_a_pools_kstats_count_what_is_written_to_a_dataset(pool: Pool) -> None:
    run("zfs", "create", "tank/data")
    before = int(pool.objset("tank/data")["nwritten"])

    with Path("/tank/data/file").open("wb") as file:
        file.write(os.urandom(WRITTEN))

    assert int(pool.objset("tank/data")["nwritten"]) - before == WRITTEN


@pytest.mark.usefixtures("pool")
def test_the_agents_host_sees_the_pool() -> None:
    assert Host().read("proc/spl/kstat/zfs/tank/state") == b"ONLINE\n"


def test_a_pool_that_lost_its_device_is_suspended_and_lists_nothing(pool: Pool) -> None:
    run("zfs", "create", "tank/data")

    pool.suspend()

    assert run("zpool", "list", "-H", "-o", "name,health") == "tank\tSUSPENDED\n"
    assert run("zfs", "list", "-Hp") == ""


def test_a_pool_that_has_its_device_back_recovers(pool: Pool) -> None:
    pool.suspend()

    pool.resume()

    (Path("/tank") / "file").write_bytes(b"1")
    run("zpool", "sync", pool.name)
    assert run("zfs", "list", "-H", "-o", "name") == "tank\n"
