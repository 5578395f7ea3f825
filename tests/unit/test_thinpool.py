"""The thinpool collector on trees; real pools are in tests/vm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.collector import Start
from collectors.thinpool import COLLECTOR, HELD_FOR, KINDS_EVERY, STALLED_FOR, ThinPools
from tests.trees.node import Node

LVM, DOCKER = "vg-pool-tpool", "docker-254:0-262149-pool"
Devices = dict[str, Any]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Pools:
    """Pools to be changed between two runs."""

    def __init__(self, case: str, workplace: Path) -> None:
        self.clock = Clock()

        def start(start: Start) -> ThinPools:
            return ThinPools(start, self.clock)

        self.node = Node(COLLECTOR, case, workplace, start=start)

    def change(self, change: Callable[[Devices], object]) -> None:
        path = self.node.path / "dm.json"
        devices = json.loads(path.read_text())
        change(devices)
        path.write_text(json.dumps(devices))

    def status(self, name: str, text: str) -> None:
        def change(devices: Devices) -> None:
            devices[name]["status"] = ["thin-pool", text] if text != "stuck" else text

        self.change(change)

    def write(self, path: str, text: str) -> None:
        target = self.node.path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.write_text(text)

    def run(self) -> set[str]:
        """Do one run; return the findings' ids."""
        self.page = self.node.run()
        return {finding for finding, _ in self.node.found()}

    def remedy(self, finding: str) -> str:
        (found,) = [each for (name, _), each in self.node.found().items() if name == finding]
        return found.remedy


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str], Pools]:
    return lambda case: Pools(case, tmp_path)


Make = Callable[[str], Pools]


def test_loop_files_are_found_with_the_way_to_leave(make: Make) -> None:
    pools = make("docker-loop")
    assert pools.run() == {"thin-pool-loop-backed"}
    found = pools.node.found()["thin-pool-loop-backed", DOCKER]
    assert "/var/lib/docker/devicemapper/devicemapper/data" in found.explanation
    assert '"storage-driver": "overlay2"' in found.remedy


def test_each_mode_that_takes_no_writes_is_found_at_once(make: Make) -> None:
    pools = make("lvm")
    assert pools.run() == set()
    pools.status(LVM, "7 66/512 1024/1024 - out_of_data_space discard_passdown queue_if_no_space - 128 ")
    assert pools.run() == {"thin-pool-read-only"}
    assert "If out_of_data_space: lvextend --extents +20%LV vg/pool. " in pools.remedy("thin-pool-read-only")
    pools.status(LVM, "7 454/512 1024/2048 - ro discard_passdown queue_if_no_space needs_check 128 ")
    assert pools.run() == {"thin-pool-read-only", "thin-pool-needs-check"}
    for finding in ("thin-pool-read-only", "thin-pool-needs-check"):
        assert "lvextend --poolmetadatasize +2097152b vg/pool. " in pools.remedy(finding)
        assert "lvchange --activate y --select 'pool_lv=\"pool\"' vg" in pools.remedy(finding)
        assert "lvconvert --repair vg/pool" in pools.remedy(finding)
    pools.status(LVM, "Fail")
    assert pools.run() == {"thin-pool-read-only"}
    assert "lvextend --poolmetadatasize +SIZE vg/pool. " in pools.remedy("thin-pool-read-only")
    assert f'ullage_thin_pool_mode{{mode="fail",pool="{LVM}"}} 1' in pools.page
    assert "ullage_thin_pool_data_used_bytes{" not in pools.page
    pools.status(LVM, "7 419/512 13800/16384 - rw discard_passdown queue_if_no_space - 128 ")
    assert pools.run() == set()


def test_a_pool_that_lvm_did_not_make_has_remedies_without_lvm(make: Make) -> None:
    pools = make("docker-loop")
    pools.status(DOCKER, "7 54/64 512/1638400 - ro discard_passdown queue_if_no_space needs_check 16 ")
    assert pools.run() > {"thin-pool-read-only", "thin-pool-needs-check", "thin-pool-metadata-small"}
    for finding in ("thin-pool-read-only", "thin-pool-needs-check", "thin-pool-metadata-small"):
        assert "lv" not in pools.remedy(finding)
    assert "thin_repair" in pools.remedy("thin-pool-needs-check")


def test_metadata_below_the_recommended_size_is_found_with_what_is_missing(make: Make) -> None:
    pools = make("lvm")
    pools.status(LVM, "7 400/512 20/163840 - rw discard_passdown queue_if_no_space")
    assert pools.run() == {"thin-pool-metadata-small"}
    # 163,840 blocks at 126 to a leaf, one more, and two thin devices: 1,304 blocks of which 512 are there
    assert pools.remedy("thin-pool-metadata-small") == f"lvextend --poolmetadatasize +{(1304 - 512) * 4096}b vg/pool"


def test_a_stuck_pool_is_named_each_time_and_the_others_stay_fresh(make: Make) -> None:
    pools = make("sick")
    for _ in range(3):
        pools.clock.now += KINDS_EVERY
        assert "thin-pool-io-stalled" in pools.run()
        assert 'ullage_thin_pool_stuck{pool="hangs"} 1' in pools.page
        assert 'ullage_thin_pool_stuck{pool="full"} 0' in pools.page
        assert 'ullage_thin_pool_mode{mode="out_of_data_space",pool="full"} 1' in pools.page
    assert pools.node.runner.errors["stuck"] == 3
    pools.status("hangs", "0 66/512 960/1024 - rw discard_passdown queue_if_no_space - 128")
    assert "thin-pool-io-stalled" not in pools.run()


def test_requests_that_do_not_complete_for_a_minute_are_found(make: Make) -> None:
    pools = make("docker-loop")
    pools.write("sys/block/loop1/inflight", "       3       12\n")
    pools.write("sys/block/loop1/stat", "10 0 0 0 20 0 0 0 0 0 0\n")
    pools.run()
    pools.clock.now += STALLED_FOR - 1
    assert "thin-pool-io-stalled" not in pools.run()
    pools.clock.now += 1
    assert "thin-pool-io-stalled" in pools.run()
    explanation = pools.node.found()["thin-pool-io-stalled", DOCKER].explanation
    assert "15 requests to its metadata are in flight, and none completed for 60 seconds" in explanation
    pools.write("sys/block/loop1/stat", "10 0 0 0 21 0 0 0 0 0 0\n")  # one write completed
    assert "thin-pool-io-stalled" not in pools.run()
    pools.clock.now += STALLED_FOR
    pools.write("sys/block/loop1/inflight", "       2       12\n")
    assert "thin-pool-io-stalled" not in pools.run()


def test_a_metadata_snapshot_is_found_when_it_is_held_for_long(make: Make) -> None:
    pools = make("lvm")
    held = "7 419/512 13800/16384 29 rw discard_passdown queue_if_no_space - 128 "
    pools.status(LVM, held)
    assert pools.run() == set()
    assert f'ullage_thin_pool_held_root{{pool="{LVM}"}} 1' in pools.page
    pools.clock.now += HELD_FOR
    assert pools.run() == {"thin-pool-held-root"}
    pools.status(LVM, held.replace("29", "-"))
    assert pools.run() == set()
    pools.status(LVM, held)
    assert pools.run() == set()


@pytest.mark.parametrize(
    ("configuration", "local", "expected"),
    [
        ("", "", "1.0"),
        ("activation { thin_pool_autoextend_threshold = 70 }", "", "0.7"),
        ("activation/thin_pool_autoextend_threshold=70", "activation { thin_pool_autoextend_threshold=100 }", "1.0"),
        ("activation { # thin_pool_autoextend_threshold = 70\n}", "", "1.0"),
        ("activation { thin_pool_autoextend_threshold = ", "", "1.0"),
    ],
)
def test_lvms_threshold_is_that_of_its_files(make: Make, configuration: str, local: str, expected: str) -> None:
    pools = make("lvm")
    pools.write("etc/lvm/lvm.conf", configuration)
    pools.write("etc/lvm/backup/vg", "vg { logical_volumes { pool { id = 1 } } }")
    if local:
        pools.write("etc/lvm/lvmlocal.conf", local)
    found = pools.run()
    assert f'ullage_thin_pool_autoextend_threshold_ratio{{pool="{LVM}"}} {expected}\n' in pools.page
    assert found == ({"thin-pool-no-autoextend"} if expected == "1.0" else set())


def test_without_lvms_configuration_nothing_is_said_of_it(make: Make) -> None:
    pools = make("lvm")
    (pools.node.path / "etc/lvm/lvm.conf").unlink()
    assert pools.run() == set()
    assert "autoextend" not in pools.page


def test_a_profile_cannot_lead_out_of_its_directory(make: Make) -> None:
    pools = make("lvm")
    pools.write("etc/lvm/secret.profile", "activation { thin_pool_autoextend_threshold = 55 }")
    pools.write("etc/lvm/backup/vg", 'vg { logical_volumes { pool { profile = "../secret" } } }')
    pools.write("etc/lvm/lvm.conf", "activation { thin_pool_autoextend_threshold = 90 }")
    pools.run()
    assert f'ullage_thin_pool_autoextend_threshold_ratio{{pool="{LVM}"}} 0.9\n' in pools.page


def test_pools_come_and_go(make: Make) -> None:
    pools = make("lvm")
    pools.run()
    pools.change(lambda devices: devices.update({"new": devices[LVM] | {"number": "253:9"}}))
    pools.run()
    assert 'ullage_thin_pool_mode{mode="rw",pool="new"} 1' in pools.page
    pools.change(lambda devices: devices.pop(LVM))
    pools.run()
    assert LVM not in pools.page
    assert not pools.node.runner.errors["stuck"]


def test_a_reloaded_table_is_seen_and_thin_devices_of_a_failed_pool_stay_its_own(make: Make) -> None:
    pools = make("lvm")
    pools.run()

    def fail(devices: Devices) -> None:
        devices["vg-t0"]["table"] = devices["vg-t0"]["status"] = ["thin", "Fail"]
        devices["vg-s1"]["table"] = ["linear", "253:2 0"]

    pools.change(fail)
    pools.clock.now += KINDS_EVERY
    pools.run()
    running = pools.node.running
    assert isinstance(running, ThinPools)
    assert {volume.device.name: volume.pool for volume in running._kinds.values() if volume.kind == "thin"} == {
        "vg-t0": "253:2"
    }
    assert 'name="vg-s1"' not in pools.page


def test_names_are_an_attackers_input(make: Make) -> None:
    pools = make("lvm")
    pools.change(lambda devices: devices.update({'a"b\n\\': devices[LVM] | {"number": "253:9"}}))
    pools.run()
    assert 'pool="a\\"b\\n\\\\"' in pools.page


def test_without_the_capability_it_says_so_and_is_silent(make: Make) -> None:
    pools = make("lvm")
    (pools.node.path / "dm.json").write_text('"EACCES"')
    assert pools.run() == set()
    assert pools.page == ""
    assert pools.node.runner.outcome.reason == "device mapper tells nothing without CAP_SYS_ADMIN"
    assert not pools.node.runner.errors
