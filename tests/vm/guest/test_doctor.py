"""`ullage doctor` in the guest, against dmsetup, zpool, zfs and df."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.vm.guest import pools
from tests.vm.guest.zpool import Pool, run

pytestmark = pytest.mark.vm(zfs=True, deadline=600)
MIB = 1 << 20


def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agent", "doctor", "--seconds=1", "--no-collector.kernellog", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=200)


def percent(text: str, watermark: str, target: str) -> float:
    """Return what a bar says."""
    found = re.search(rf"^  {watermark} +\S{{40}} +([\d.]+)%  (?:\w+  )?{re.escape(target)}$", text, re.MULTILINE)
    assert found is not None, text
    return float(found[1])


def parts(fields: str) -> float:
    """Return a percentage of `used/total`."""
    used, total = map(int, fields.split("/"))
    return 100 * used / total


@pytest.mark.usefixtures("pool")
def test_pools_of_both_kinds_are_as_their_own_tools_say() -> None:
    run("zfs", "create", "-o", "sync=disabled", "tank/db")
    run("dd", "if=/dev/urandom", "of=/tank/file", "bs=1M", "count=100", "conv=fsync", "status=none")
    with pools.pool("thin", data_mib=64, at_mib=1024) as thin:
        pools.write(thin.thin, 0, 54 * MIB)
        told = doctor()
        _, _, _, _, metadata, data, _, mode, *_ = thin.status().split()
        assert percent(told.stdout, "thin_data", "thin") == pytest.approx(parts(data), abs=0.06)
        assert percent(told.stdout, "thin_metadata", "thin") == pytest.approx(parts(metadata), abs=0.06)
        assert mode == "rw"
        assert told.returncode == 1, told.stdout  # 84 % of the data
        used, available = map(int, run("df", "--block-size=1", "--output=used,avail", "/tank").splitlines()[1].split())
        ratio = 100 * used / (used + available)
        assert percent(told.stdout, "filesystem_bytes", "/tank") == pytest.approx(ratio, abs=0.2)
        assert ", cgroup v2, up " in told.stdout
        assert f"Linux {run('uname', '-r').strip()}" in told.stdout
        document = json.loads(doctor("--json").stdout)
        (found,) = document["findings"]
        assert (found["finding"], found["target"]) == ("zfs-sync-disabled", "tank/db")
        run("sh", "-c", found["remedy"].partition(", or ")[0])
        assert "\nNo findings.\n" in doctor().stdout
        states = {each["name"]: each["state"] for each in document["collectors"]}
        assert (states["thinpool"], states["zfs"]) == ("up", "up")
        assert not [lack for each in document["collectors"] for lack in each["lacks"]]
        facts = {fact["metric"]: fact["items"] for fact in document["facts"]}
        health = run("zpool", "list", "-H", "-o", "health", "tank").strip()
        assert {"zpool": "tank", "state": health} in facts["ullage_zfs_pool_state"]
        assert [item["pool"] for item in facts["ullage_thin_pool_info"]] == ["thin"]


def test_a_suspended_pool_is_critical_until_its_remedy_is_done(pool: Pool) -> None:
    assert "zfs-pool-suspended" not in doctor().stdout
    pool.suspend()
    told = doctor()
    assert told.returncode == 2
    assert "  critical  zfs-pool-suspended  tank\n" in told.stdout
    remedy = re.search(
        r"^            \$ Bring the devices back \((.*) names them.* then: (.*?)\. ", told.stdout, re.MULTILINE
    )
    assert remedy is not None, told.stdout
    assert "SUSPENDED" in run("sh", "-c", remedy[1])
    pool.give_back()
    run("sh", "-c", remedy[2])
    pool.resume()
    after = doctor()
    assert "zfs-pool-suspended" not in after.stdout
    assert after.returncode == 0, after.stdout


def test_the_advice_knows_zfs_and_thin_pools() -> None:
    run("modprobe", "dm-thin-pool")
    told = json.loads(doctor("--advise", "--json").stdout)
    assert told["node"]["has"]["zfs"] == told["node"]["has"]["thin pools"] == "yes"
    version = run("zfs", "version").splitlines()[1]
    assert version == f"zfs-kmod-{told['node']['zfs']}"
    assert told["node"]["has_zfs_tools"] is True
