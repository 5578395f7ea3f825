"""The reader of bbolt's files: real ones of containerd and of Docker's BuildKit, and what no writer leaves."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from collectors.readers import bolt
from collectors.readers.bolt import BuildSnapshot, Snapshot

CORPUS = Path(__file__).resolve().parents[1] / "fuzz" / "corpus" / "bolt"
CONTAINERD = (CORPUS / "containerd-metadata.db").read_bytes()
PAGE = 4096
SHA = "sha256:8a01ecfe3768b2e30282d78ecce636af858855f88734a945b0a672bd9c3748f6"


def test_snapshots_of_containerd_have_the_directory_that_their_id_says() -> None:
    parent = f"default/2/{SHA}"
    assert bolt.parse_snapshots(CONTAINERD) == [
        # as `ctr snapshots usage` says: 1.9 MiB, 13 inodes
        Snapshot(parent, "default", SHA, 1, "committed", "", 2011136, 13),
        Snapshot("default/3/web", "default", "web", 2, "active", parent, None, None),
        Snapshot("default/4/spare", "default", "spare", 3, "active", parent, None, None),
        Snapshot("default/5/look", "default", "look", 4, "view", parent, None, None),
        Snapshot("default/6/gone", "default", "gone", 5, "active", parent, None, None),
    ]


def test_a_copy_of_an_active_snapshot_is_one() -> None:
    data = CONTAINERD.replace(b"kind\x02", b"kind\x04")
    assert {each.kind for each in bolt.parse_snapshots(data)} == {"committed", "snapshot", "view"}


def test_many_snapshots_are_on_branches() -> None:
    found = bolt.parse_snapshots((CORPUS / "containerd-many.db").read_bytes())
    assert len(found) == 25
    assert {each.directory for each in found} == set(range(1, 26))
    assert {each.parent for each in found} == {"", "default/2/b"}


def test_a_file_that_nobody_wrote_to_has_no_snapshots() -> None:
    assert bolt.parse_snapshots((CORPUS / "empty.db").read_bytes()) == []


def test_what_buildkit_has_built() -> None:
    found = bolt.parse_build_snapshots((CORPUS / "buildkit-snapshots.db").read_bytes())
    assert [each for each in found if each.layer] == [
        BuildSnapshot("5wpj9wbtjf9b60pjyd23icrp3", "sgw2g70hmyp5pkmzb1tk2pbcm", ""),
        BuildSnapshot("ktx7coov3th9bei9l3ma9clkr", "jvlav3t1b685g42xaf1futnd2", ""),
        BuildSnapshot("v56vuym91rrm9y8bncoj1nxq0", "nfyynm065d90yeuvkxckusapp", ""),
    ]
    assert BuildSnapshot("nfyynm065d90yeuvkxckusapp", "", "5wpj9wbtjf9b60pjyd23icrp3") in found
    assert BuildSnapshot("095gdfhw7bynli63v7ww4bvr8", "", "") in found


def newer(data: bytes) -> int:
    """Return which of the two pages that say where the tree begins is the newer one."""
    return max((0, 1), key=lambda page: struct.unpack_from("<Q", data, page * PAGE + 64)[0])


def changed(data: bytes, at: int, raw: bytes) -> bytes:
    return data[:at] + raw + data[at + len(raw) :]


def test_a_page_that_was_caught_half_written_leaves_the_transaction_before_it() -> None:
    half = changed(CONTAINERD, newer(CONTAINERD) * PAGE + 70, b"\xff")
    assert bolt.newest_transaction(half) == bolt.newest_transaction(CONTAINERD) - 1
    neither = changed(half, (1 - newer(CONTAINERD)) * PAGE + 70, b"\xff")
    with pytest.raises(ValueError, match="half written"):
        bolt.newest_transaction(neither)


def test_the_second_page_is_found_where_the_first_is_damaged() -> None:
    assert bolt.newest_transaction(changed(CONTAINERD, 0, bytes(PAGE))) > 0


def test_two_pages_say_which_transaction_is_the_newest() -> None:
    assert bolt.newest_transaction(CONTAINERD[: 2 * PAGE]) == bolt.newest_transaction(CONTAINERD)


def root_of(data: bytes) -> int:
    """Return where the page of the newest tree's root begins."""
    number: int = struct.unpack_from("<Q", data, newer(data) * PAGE + 32)[0]
    return number * PAGE


def test_a_page_cannot_lead_to_itself() -> None:
    at = root_of(CONTAINERD)
    number = at // PAGE
    branch = struct.pack("<QHHI", number, 1, 1, 0) + struct.pack("<IIQ", 16, 0, number)
    with pytest.raises(ValueError, match="met twice"):
        bolt.parse_snapshots(changed(CONTAINERD, at, branch))


def test_a_page_may_not_lie_outside_the_file() -> None:
    at = root_of(CONTAINERD)
    far = struct.pack("<QHHI", at // PAGE, 1, 1, 0) + struct.pack("<IIQ", 16, 0, 1 << 40)
    with pytest.raises(ValueError, match="outside"):
        bolt.parse_snapshots(changed(CONTAINERD, at, far))
    overflowing = struct.pack("<QHHI", at // PAGE, 2, 1, (1 << 32) - 1)
    with pytest.raises(ValueError, match="outside"):
        bolt.parse_snapshots(changed(CONTAINERD, at, overflowing))


def test_elements_may_not_lie_on_each_other() -> None:
    at = root_of(CONTAINERD)
    count = 100
    elements = b"".join(struct.pack("<IIII", 0, 16 * (count - place), 8, 2000) for place in range(count))
    with pytest.raises(ValueError, match="on another"):
        bolt.parse_snapshots(changed(CONTAINERD, at, struct.pack("<QHHI", at // PAGE, 2, count, 0) + elements))


def test_a_cut_file_is_refused() -> None:
    for size in (0, 1, PAGE, 2 * PAGE, root_of(CONTAINERD)):
        with pytest.raises(ValueError, match=r"."):
            bolt.parse_snapshots(CONTAINERD[:size])


def test_another_databases_file_is_refused() -> None:
    with pytest.raises(ValueError, match="bucket v1"):
        bolt.parse_snapshots((CORPUS / "buildkit-snapshots.db").read_bytes())
    with pytest.raises(ValueError, match="half written"):
        bolt.parse_snapshots(b"SQLite format 3\0" + bytes(3 * PAGE))
