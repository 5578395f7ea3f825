"""The qgroup collector on directories that stand for /sys/fs/btrfs; a real btrfs is in tests/real."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.collector import Start
from agent.config import load
from agent.exposition import Pages
from agent.finding import Found
from agent.latches import Latches
from agent.runner import Runner
from collectors.qgroup import COLLECTOR, Qgroups
from tests.trees.tree import host_of

TREES = Path(__file__).resolve().parents[1] / "trees" / "qgroup"
UUID = "5baa8140-b4ea-4744-b119-4c12e1b9efc2"
SYSFS = f"sys/fs/btrfs/{UUID}"
WRITER, IDLER = "qgroups/0_258", "qgroups/0_260"  # of the tree `docker`


class Node:
    """A copy of the tree, to be changed between two runs."""

    def __init__(self, tree: Path, workplace: Path, budget: int) -> None:
        self.tree = tree
        self.host = host_of(tree, workplace)
        self.copy = Path(self.host.rootfs)
        (self.sysfs,) = (self.copy / "sys" / "fs" / "btrfs").iterdir()
        (plan,) = load(None, [COLLECTOR], {}).plans
        plan = dataclasses.replace(plan, series_budget=budget)
        self.pages = Pages()
        self.runner = Runner(plan, self.host, Latches(None), self.pages)
        self.running = Qgroups(Start(self.runner.host, plan.settings))

    def run(self) -> str:
        self.runner.run(self.running)
        assert "bug" not in self.runner.errors, self.runner.outcome.reason
        return b"".join(self.pages.members("text", gzip=False)).decode()

    def found(self) -> dict[str, str]:
        return {found.finding.id: found.remedy for found in self.runner.outcome.findings}

    def finding(self, finding: str) -> Found | None:
        """Do one run; return what it found."""
        self.run()
        return next((found for found in self.runner.outcome.findings if found.finding.id == finding), None)

    def write(self, path: str, text: str | bytes | int) -> None:
        data = text if isinstance(text, bytes) else str(text).encode()
        (self.sysfs / path).write_bytes(data)


Change = Callable[[Path], None]
Make = Callable[..., Node]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def node(change: Change = lambda _: None, tree: str = "limits", budget: int = COLLECTOR.series_budget) -> Node:
        shutil.copytree(TREES / tree, tmp_path / "tree", symlinks=True)
        change(tmp_path / "tree")
        return Node(tmp_path / "tree", tmp_path / "trees", budget)

    return node


def test_errors_of_a_device_are_found_by_their_kind(make: Make) -> None:
    node = make()
    node.run()
    assert "btrfs-device-errors" in node.found()
    (found,) = [each for each in node.runner.outcome.findings if each.finding.id == "btrfs-device-errors"]
    assert found.target == f"{UUID}/1"
    assert "2 corruption" in found.explanation
    node.write("devinfo/1/error_stats", "write_errs 0\ncorruption_errs 0\n")
    node.run()
    assert "btrfs-device-errors" not in node.found()


def test_kernels_before_the_files_came_lack_the_numbers_only(make: Make) -> None:
    def older(tree: Path) -> None:
        for path in ("commit_stats", "devinfo/1/error_stats", "qgroups/mode", "qgroups/inconsistent"):
            (tree / SYSFS / path).unlink(missing_ok=True)

    node = make(older)
    text = node.run()
    assert "ullage_btrfs_commits_total" not in text
    assert "ullage_btrfs_device_errors_total" not in text
    assert "ullage_qgroup_referenced_bytes{" in text
    assert f'ullage_qgroups_mode{{mode="qgroup",uuid="{UUID}"}} 1' in text
    assert not node.runner.errors


def test_hostile_numbers_are_counted_and_cost_their_qgroup_only(make: Make) -> None:
    node = make()
    before = node.run().count("ullage_qgroup_referenced_bytes{")
    node.write("qgroups/0_257/referenced", b"\xff\x00 many")
    node.write("commit_stats", b"commits\ncommits -3\n\xff\xff 5\n")
    (node.copy / SYSFS / "qgroups" / "0_x\n9").mkdir()
    text = node.run()
    assert text.count("ullage_qgroup_referenced_bytes{") == before - 1
    assert node.runner.errors["malformed"] == 1
    assert "ullage_btrfs_commits_total{" not in text


def test_a_path_is_an_attackers_input(make: Make) -> None:
    name = 'a"b\nc\u202e'

    def hostile(tree: Path) -> None:
        path = tree / "subvolumes.json"
        links = json.loads(path.read_text())
        path.write_text(json.dumps([[links[0][0], 5, 256, name], *links[1:]]))

    lines = [line for line in make(hostile).run().splitlines() if 'path="/a' in line]
    assert lines
    assert all("\u202e" not in line and '"b' not in line.replace('\\"b', "") for line in lines)


def test_a_qgroup_whose_path_is_unknown_is_not_called_stale(make: Make) -> None:
    node = make(lambda tree: (tree / "subvolumes.json").unlink())
    text = node.run()
    assert "ullage_qgroup_referenced_bytes{" in text
    assert "ullage_qgroup_stale{" not in text


def changed(name: str, **values: object) -> Change:
    """Return a change of one of the tree's answers to ioctls."""

    def change(tree: Path) -> None:
        path = tree / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def test_full_metadata_is_found_with_a_remedy_that_can_be_pasted(make: Make) -> None:
    def spaced(tree: Path) -> None:
        for table in tree.glob("proc/*/mountinfo"):
            table.write_text(table.read_text().replace("/srv/btrfs", "/srv/my\\040$(btrfs)"))

    found = make(spaced, "metadata-full").finding("btrfs-metadata-full")
    assert found is not None
    assert found.explanation.startswith(f"The btrfs {found.target} will soon refuse new files with ENOSPC")
    assert " 7.6 MiB are left for metadata of which it has 32.0 MiB" in found.explanation
    assert found.remedy.startswith("btrfs balance start -dusage=10 '/srv/my $(btrfs)'   #")


def test_metadata_is_full_until_there_is_clearly_more_room(make: Make) -> None:
    node = make(tree="metadata-full")
    used, mib = 19775488, 1 << 20  # 7.6 MiB of room: it raises below 8 and clears at 10
    rooms = []
    for more in (0.5, -0.5, 0, 2.3, 2.5, 0.5, 0):
        node.write("allocation/metadata/bytes_used", int(used - more * mib))
        rooms.append(node.finding("btrfs-metadata-full") is not None)
    assert rooms == [False, True, True, True, False, False, True]


def test_unallocated_space_is_room_by_the_number_of_copies(make: Make) -> None:
    def with_unallocated(mib: int) -> Change:
        return changed("btrfs.json", devices={"1": [314572800, 314572800 - (mib << 20)]})

    node = make(with_unallocated(3), "metadata-full")  # a MiB of it is never allocated
    assert node.finding("btrfs-metadata-full") is None
    assert f'ullage_btrfs_unallocated_bytes{{uuid="{node.sysfs.name}"}} 3145728' in node.run()
    profiles = node.sysfs / "allocation" / "metadata"
    (profiles / "dup").rename(profiles / "raid1")  # one device is not enough for that
    assert node.finding("btrfs-metadata-full") is not None
    (profiles / "raid1").rename(profiles / "raid9")
    assert node.finding("btrfs-metadata-full") is None


def test_a_device_that_takes_no_writes_has_no_room(make: Make) -> None:
    node = make()
    assert f'ullage_btrfs_unallocated_bytes{{uuid="{UUID}"}} 2659188736' in node.run()
    node.write("devinfo/1/missing", 1)
    assert f'ullage_btrfs_unallocated_bytes{{uuid="{UUID}"}} 0' in node.run()
    node.write("devinfo/1/missing", 0)
    node.write("devinfo/1/writeable", 0)
    assert f'ullage_btrfs_unallocated_bytes{{uuid="{UUID}"}} 0' in node.run()


def test_mixed_block_groups_are_balanced_with_both_filters(make: Make) -> None:
    node = make(tree="metadata-full")
    shutil.rmtree(node.sysfs / "allocation" / "data")
    (node.sysfs / "allocation" / "metadata").rename(node.sysfs / "allocation" / "mixed")
    found = node.finding("btrfs-metadata-full")
    assert found is not None
    assert found.remedy.startswith("btrfs balance start -dusage=10 -musage=10 /srv/btrfs ")


def test_where_devices_do_not_answer_nothing_is_said_of_their_room(make: Make) -> None:
    node = make(lambda tree: (tree / "btrfs.json").unlink(), "metadata-full")
    text = node.run()
    assert "ullage_btrfs_unallocated_bytes{" not in text
    assert "ullage_btrfs_used_bytes{" in text
    assert "btrfs-metadata-full" not in node.found()
    assert node.runner.errors == {"failed": 1}


def test_a_btrfs_that_is_mounted_elsewhere_is_counted_as_unreachable(make: Make) -> None:
    node = make(lambda tree: (tree / "proc/self/mountinfo").write_text(""))
    text = node.run()
    assert 'qgroup="0/256"' in text
    assert "ullage_qgroup_stale{" not in text
    assert set(node.runner.errors) == {"unreachable"}


def test_usage_is_withheld_during_a_rescan(make: Make) -> None:
    text = make(changed("btrfs.json", is_rescanning=True)).run()
    assert f'ullage_qgroups_rescan_running{{uuid="{UUID}"}} 1' in text
    assert "ullage_qgroup_referenced_bytes{" not in text
    assert "ullage_qgroup_exclusive_bytes{" not in text
    assert "ullage_qgroup_referenced_limit_bytes{" in text


def test_the_container_near_its_limit_is_named_with_what_it_would_take(make: Make) -> None:
    node = make(tree="docker")
    found = node.finding("pressure-candidate")
    assert found is not None
    assert found.target == f"{node.sysfs.name}/0/258"
    assert found.explanation == (
        f"Container writer is the fullest of its btrfs: qgroup {node.sysfs.name}/0/258 uses 91.1 % of its limit of "
        "48234496 referenced bytes. It falls below 80 % when 5354292 bytes go, or with a limit of 55574528."
    )
    assert found.remedy.startswith("btrfs qgroup limit 55574528 0/258 /var/lib/docker ")
    node.write(f"{WRITER}/referenced", 43941888 - 5354292)
    assert node.finding("pressure-candidate") is None
    node.write(f"{WRITER}/referenced", 43941888)
    assert node.finding("pressure-candidate") is not None
    node.write(f"{WRITER}/max_referenced", 55574528)
    assert node.finding("pressure-candidate") is None


def test_a_candidate_is_held_through_the_band_and_not_swapped_within_it(make: Make) -> None:
    node = make(tree="docker")

    def targets(writer: int, idler: int) -> str:
        for qgroup, percent in ((WRITER, writer), (IDLER, idler)):
            node.write(f"{qgroup}/limit_flags", 2)
            node.write(f"{qgroup}/max_exclusive", 1000)
            node.write(f"{qgroup}/exclusive", 10 * percent)
        found = node.finding("pressure-candidate")
        return "" if found is None else found.target.rpartition("/")[2]

    assert targets(84, 20) == ""
    assert targets(85, 20) == "258"
    assert targets(80, 20) == "258"
    assert targets(80, 84) == "258"  # never raised
    assert targets(86, 90) == "258"
    assert targets(86, 92) == "260"
    assert targets(79, 81) == "260"
    assert targets(84, 79) == ""
    assert targets(100, 79) == "258"
    found = node.finding("pressure-candidate")
    assert found is not None
    assert found.remedy.startswith("btrfs qgroup limit -e ")


def test_no_candidate_is_named_while_numbers_are_wrong_and_the_old_one_afterwards(make: Make) -> None:
    node = make(tree="docker")
    assert node.finding("pressure-candidate") is not None
    node.write("qgroups/inconsistent", 1)
    assert node.finding("pressure-candidate") is None
    node.write("qgroups/inconsistent", 0)
    node.write(f"{WRITER}/max_referenced", 43941888 * 10 // 8)  # inside the band
    assert node.finding("pressure-candidate") is not None


def test_a_qgroup_that_is_no_containers_is_no_candidate(make: Make) -> None:
    node = make()
    node.write("qgroups/0_256/referenced", 20971520)
    assert node.finding("pressure-candidate") is None


def test_a_container_cannot_take_anothers_name_by_the_name_of_a_subvolume(make: Make) -> None:
    layer = "74b0e1a8dc909f06b7d7d61c47f0e66be02ffdce761a3252f40e4b37e2d026d5"  # the idler's

    def fake(tree: Path) -> None:
        path = tree / "subvolumes.json"
        path.write_text(json.dumps([*json.loads(path.read_text()), [261, 258, 300, layer]]))
        answers = json.loads((tree / "btrfs.json").read_text())
        answers["directories"]["258/300"] = "btrfs/subvolumes/"
        (tree / "btrfs.json").write_text(json.dumps(answers))
        (qgroups,) = (tree / "sys/fs/btrfs").glob("*/qgroups")
        shutil.copytree(qgroups / "0_260", qgroups / "0_261")

    lines = [line for line in make(fake, "docker").run().splitlines() if line.startswith("ullage_qgroup_referenced_b")]
    assert len([line for line in lines if layer + '"' in line]) == 2
    assert len([line for line in lines if 'container="idler"' in line]) == 1


def test_the_subvolume_of_a_mount_is_not_read_from_a_name(make: Make) -> None:
    def hostile(tree: Path) -> None:
        table = tree / "proc/1/mountinfo"
        table.write_text(table.read_text().replace("subvol=/io", "subvol=/,subvolid=257,/io"))

    text = make(hostile, "squota").run()
    named = {line.split('qgroup="')[1].split('"')[0] for line in text.splitlines() if 'container="by-hand"' in line}
    assert named == {"0/260"}


def test_the_names_of_containers_that_are_gone_are_forgotten(make: Make) -> None:
    node = make(tree="docker")
    assert 'container="writer"' in node.run()
    assert len(node.running._containers._known) == 2
    for path in (node.copy / "var/lib/docker/image/btrfs/layerdb/mounts").glob("eb07*"):
        shutil.rmtree(path)
    assert 'container="writer"' not in node.run()
    assert len(node.running._containers._known) == 1


def test_a_budget_that_does_not_suffice_drops_qgroups_without_a_limit_first(make: Make) -> None:
    node = make(tree="docker", budget=35)
    text = node.run()
    assert node.runner.outcome.dropped == 4
    assert text.count('qgroup="0/258"') == 4  # the last of the subvolumes with ids below 300
    assert text.count('qgroup="0/5"') == 0


def test_qgroups_go_and_come_while_they_are_read(make: Make) -> None:
    node = make()
    (node.sysfs / "qgroups/0_257/referenced").unlink()
    text = node.run()
    assert 'qgroup="0/257"' not in text
    assert 'qgroup="0/256"' in text
    assert node.runner.errors == {"vanished": 1}


def test_quota_that_went_while_the_agent_was_stopped_is_found_for_a_day(make: Make, tmp_path: Path) -> None:
    node, state = make(), tmp_path / "state"
    now = [1e9]

    def found() -> bool:
        made = Qgroups(Start(node.runner.host, None, state), lambda: now[0])
        ids = {each.finding.id for each in made.collect(node.runner.host) if isinstance(each, Found)}
        made.close()
        return "qgroups-disappeared" in ids

    assert not found()
    shutil.rmtree(node.sysfs / "qgroups")
    assert found()
    now[0] += 86_000
    assert found()
    now[0] += 500
    assert not found()
    (state / "quota.json").write_text('{"version": 1, "had_quota": []}')
    assert not found()
    assert (state / "quota.damaged").exists()
