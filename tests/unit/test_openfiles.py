"""What is told of deleted files as they are held by others, or no more, on a recorded node."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from agent.collector import Running, Start
from agent.units import Size
from collectors.openfiles import COLLECTOR, OpenFiles
from tests.trees.node import Node
from tests.trees.tree import TreeProber

MIB = 1 << 20


@pytest.fixture
def node(tmp_path: Path) -> Node:
    def start(given: Start) -> Running:
        return OpenFiles(replace(given, settings=msgspec.structs.replace(given.settings, held=Size(2 * MIB))))

    return Node(COLLECTOR, "docker", tmp_path, start)


def test_who_holds_too_much_is_told_with_the_way_to_end_it(node: Node) -> None:
    node.run()
    found = node.found()
    assert set(found) == {("deleted-files-held", "holder"), ("deleted-files-held", "/system.slice/app.service")}
    container, service = found["deleted-files-held", "holder"], found["deleted-files-held", "/system.slice/app.service"]
    assert container.remedy.startswith("docker restart holder   #")
    assert (
        "holder holds 1 deleted files open, 64.0 MiB in all. The largest: /log with 64.0 MiB" in container.explanation
    )
    assert service.remedy.startswith("systemctl restart app.service   #")


def test_a_process_that_nobody_starts_again_is_to_be_ended(node: Node) -> None:
    (service,) = [path for path in node.path.glob("proc/*/cgroup") if b"app.service" in path.read_bytes()]
    service.write_text("0::/user.slice/user-1000.slice/user@1000.service/app.slice/app.service\n")
    node.run()
    (found,) = [each for (_, target), each in node.found().items() if target.startswith("/user.slice/")]
    assert found.remedy.startswith(f"kill {service.parent.name}   #")


def test_what_is_closed_is_told_no_more(node: Node) -> None:
    node.run()
    for info in node.path.glob("proc/*/fdinfo"):
        shutil.rmtree(info.parent / "fd")
        (info.parent / "fd").mkdir()
    text = node.run()
    assert node.found() == {}
    assert "ullage_filesystem_deleted_open_files{" not in text
    assert 'ullage_deleted_open_bytes{container="holder",id="06be6ff2b423",namespace="",pod=""} 0' in text


def test_a_file_that_two_containers_hold_counts_for_the_same_one_in_each_pass(node: Node) -> None:
    links = [path for path in node.path.glob("proc/*/fd/*") if path.is_symlink()]
    (holder,) = {path.parents[1] for path in links if str(path.readlink()) == "/log (deleted)"}
    path = node.path / "inodes.json"
    inodes = json.loads(path.read_text())
    for number in ("3", "999999"):
        group = (holder / "cgroup").read_text().replace("06be6ff2b423", "0" * 12)
        shutil.copytree(holder, node.path / "proc" / number, symlinks=True)
        (node.path / "proc" / number / "cgroup").write_text(group)
        inodes[f"/proc/{number}/fd/3"] = inodes[f"/proc/{holder.name}/fd/3"]
    path.write_text(json.dumps(inodes))
    node.runner.host.prober = TreeProber(node.path)
    text = node.run()
    assert 'ullage_deleted_open_files{container="",id="000000000000",namespace="",pod=""} 1' in text
    assert 'ullage_deleted_open_files{container="holder",id="06be6ff2b423",namespace="",pod=""} 0' in text
    assert 'ullage_filesystem_deleted_open_files{device="/dev/vda",fstype="ext4",mountpoint="/"} 2' in text


def test_while_a_filesystem_does_not_answer_who_holds_its_files_is_unknown(tmp_path: Path) -> None:
    node = Node(COLLECTOR, "sick", tmp_path)
    text = node.run()
    assert 'ullage_open_files_skipped_files{reason="stuck"} 2' in text
    assert 'container="host"' not in text
    assert "ullage_filesystem_deleted_open_bytes{" not in text
    assert 'ullage_deleted_open_files{container="main",id="abababababab",namespace="shop",pod="web-1"} 2' in text


@pytest.mark.parametrize("content", ["", "1 2", "a b c", "1 2 3 4", "-1 0 5", "9" * 30 + " 0 1"])
def test_senseless_file_handles_are_counted_and_cost_nothing_else(node: Node, content: str) -> None:
    (node.path / "proc/sys/fs/file-nr").write_text(content)
    text = node.run()
    assert "ullage_file_handles" not in text
    assert "ullage_deleted_open_bytes" in text
    assert node.runner.errors["malformed"] == 1
