"""Overlay mounts and Docker's storage options as text."""

from __future__ import annotations

import pytest

from collectors.readers.mountinfo import parse
from collectors.readers.overlay import Layers, effective, parse_options, parse_parameter, resolve
from collectors.readers.storage_opts import parse_major, refused
from tests.trees.node import TREES

PARAMETERS = {"redirect_dir": 0, "redirect_always_follow": 1, "metacopy": 0, "index": 0, "nfs_export": 0}


def read(text: str) -> Layers:
    return parse_options(text.split(","))


def test_layers_with_both_escapes() -> None:
    layers = read(r"rw,lowerdir=/l\134:3:/l\134\0544:/l\0405:/b\134\134,upperdir=/u\134\0541,workdir=/w,uuid=on")
    assert layers.lowers == ("/l:3", "/l,4", "/l 5", "/b\\")
    assert (layers.upper, layers.work) == ("/u,1", "/w")


def test_layers_set_one_by_one_have_no_limit_and_no_escapes_of_their_own() -> None:
    layers = read(r"rw,lowerdir+=/l/0\072x,lowerdir+=/b\134,datadir+=/d,upperdir=/u,workdir=/w")
    assert (layers.lowers, layers.data_lowers) == (("/l/0:x", "/b\\"), ("/d",))
    assert layers.data_bytes is None


def test_layers_for_data_alone_stand_after_two_colons() -> None:
    assert read("ro,lowerdir=/a:/b::/c::/d")[:2] == (("/a", "/b"), ("/c", "/d"))


def test_the_bytes_of_a_mount_are_those_of_what_was_given() -> None:
    data = "lowerdir=l/A:l/B,upperdir=ID/diff,workdir=ID/work"
    assert read(f"rw,{data}").data_bytes == len(data) + 1
    assert read(f"rw,{data},uuid=on").data_bytes == len(data) + 1
    assert read(f"rw,{data},metacopy=on").data_bytes == len(data) + len(",metacopy=on") + 1


def test_relative_paths_of_docker_are_below_the_directory_that_it_mounts_from() -> None:
    layers = resolve(read("rw,lowerdir=l/A:l/B,upperdir=ID/diff,workdir=ID/work"), "/d/overlay2/ID/merged")
    assert layers.lowers == ("/d/overlay2/l/A", "/d/overlay2/l/B")
    assert (layers.upper, layers.work) == ("/d/overlay2/ID/diff", "/d/overlay2/ID/work")


@pytest.mark.parametrize("point", ["/d/overlay2/OTHER/merged", "/mnt", "/"])
def test_what_somebody_elses_paths_are_relative_to_is_not_known(point: str) -> None:
    layers = resolve(read("rw,lowerdir=l/A:/l,upperdir=ID/diff,workdir=ID/work"), point)
    assert (layers.lowers, layers.upper, layers.work) == (("", "/l"), "", "")


def test_each_option_of_a_real_kernel() -> None:
    mounts, _ = parse((TREES / "overlay/options/proc/1/mountinfo").read_bytes())
    told = {
        mount.mountpoint.rpartition("m-")[2]: dict(parse_options(mount.super_options).told)
        for mount in mounts
        if mount.fstype == "overlay" and "m-" in mount.mountpoint
    }
    assert told == {
        "plain": {},
        "metacopy": {"redirect_dir": "on", "metacopy": "on"},
        "redirect": {"redirect_dir": "on"},
        "nofollow": {"redirect_dir": "nofollow"},
        "index": {"index": "on"},
        "export": {"index": "on", "nfs_export": "on"},
        "volatile": {"volatile": "on"},
        "userxattr": {"redirect_dir": "nofollow", "userxattr": "on"},
        "verity": {"verity": "on"},
        "readonly": {"redirect_dir": "on"},
        "escaped": {},
        "again": {},
        "new": {},
    }


def test_older_kernels_have_a_word_for_volatile() -> None:
    assert read("rw,lowerdir=/l,upperdir=/u,workdir=/w,volatile").told == {"volatile": "on"}


@pytest.mark.parametrize(
    ("told", "parameters", "option", "value"),
    [
        ({}, PARAMETERS, "metacopy", "off"),
        ({}, PARAMETERS | {"metacopy": 1}, "metacopy", "on"),
        ({"metacopy": "off"}, PARAMETERS | {"metacopy": 1}, "metacopy", "off"),
        ({"metacopy": "on"}, {}, "metacopy", "on"),
        ({}, {}, "metacopy", "unknown"),
        ({}, PARAMETERS, "redirect_dir", "follow"),
        ({}, PARAMETERS | {"redirect_always_follow": 0}, "redirect_dir", "nofollow"),
        ({}, PARAMETERS | {"redirect_dir": 1}, "redirect_dir", "on"),
        ({}, {"redirect_dir": 0}, "redirect_dir", "unknown"),
        ({"redirect_dir": "off"}, PARAMETERS | {"redirect_dir": 1}, "redirect_dir", "follow"),
        ({"redirect_dir": "nofollow"}, {}, "redirect_dir", "nofollow"),
        ({"redirect_dir": "\nnew"}, PARAMETERS, "redirect_dir", "unknown"),
        ({}, {}, "volatile", "off"),
    ],
)
def test_an_option_that_is_not_told_has_the_parameters_value(
    told: dict[str, str], parameters: dict[str, int], option: str, value: str
) -> None:
    assert effective(told, parameters)[option] == value


@pytest.mark.parametrize(
    ("text", "value"), [(b"Y\n", 1), (b"N\n", 0), (b"256\n", 256), (b"", None), (b"many\n", None), (b"9" * 16, None)]
)
def test_a_parameter(text: bytes, value: int | None) -> None:
    assert parse_parameter(text) == value


@pytest.mark.parametrize(
    ("option", "driver", "major", "is_refused"),
    [
        ("overlay2.size=10G", "overlay2", 29, False),
        ("Overlay2.Size=10G", "overlay2", 29, False),
        ("overlay2.size", "overlay2", 29, True),
        ("overlay2.min_space=10GB", "overlay2", 20, True),
        ("overlay2.hysteresis=5", "", None, True),
        ("overlay2.override_kernel_check=true", "overlay2", 20, False),
        ("overlay2.override_kernel_check=true", "overlay2", 24, True),
        ("overlay2.override_kernel_check=true", "", None, True),
        ("overlay2.override_kernel_check=true", "btrfs", 20, True),
        ("dm.thinpooldev=/dev/mapper/pool", "devicemapper", 20, False),
        ("dm.thinpooldev=/dev/mapper/pool", "overlay2", 20, True),
        ("dm.thinpooldev=/dev/mapper/pool", "", None, False),
        ("btrfs.min_space=1G", "btrfs", 20, False),
        ("zfs.fsname=tank", "zfs", 20, False),
        ("size=1G", "vfs", 20, False),
        ("size=1G", "", None, False),
        ("Size=1G", "vfs", 20, True),
        ("what.ever=1", "", None, True),
        ("what.ever=1", "a-plugin", 20, False),
    ],
)
def test_an_option_that_docker_refuses(option: str, driver: str, major: int | None, *, is_refused: bool) -> None:
    assert bool(refused([option], driver, major)) is is_refused


def test_a_version_begins_with_its_number() -> None:
    assert (parse_major("20.10.24+dfsg1"), parse_major("29.0.0"), parse_major("dev"), parse_major("")) == (
        20,
        29,
        None,
        None,
    )
