"""Which mounts are sealed, and where none must be. That it works is tested with the DaemonSet's container."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import StartError
from agent.seal import Seal, is_apart, writable
from collectors.readers.mountinfo import parse

CONTAINER = b"""\
152 148 0:60 / / ro,relatime - overlay overlay rw,lowerdir=/l,upperdir=/u,workdir=/w
153 152 0:62 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw
154 152 0:61 / /dev rw,nosuid - tmpfs tmpfs rw,size=65536k,mode=755
158 154 0:64 / /dev/shm rw,nosuid,nodev,noexec,relatime - tmpfs shm rw,size=65536k
160 152 0:31 / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime master:9 - tmpfs tmpfs ro,mode=755
161 160 0:34 / /sys/fs/cgroup/memory rw,nosuid,nodev,noexec,relatime master:10 - cgroup cgroup rw,memory
170 152 254:0 /lib /host/var/lib ro,relatime master:1 - ext4 /dev/vda rw
171 170 0:46 / /host/var/lib/docker/overlay2/abc/merged rw,relatime master:2 - overlay overlay rw,lowerdir=/l
172 170 0:50 / /host/var/lib/kubelet/pods/1/volumes/share rw,relatime master:3 - nfs4 server:/share rw
173 170 254:0 /ullage /host/var/lib/ullage rw,relatime master:4 - ext4 /dev/vda rw
181 152 254:0 /ullage /var/lib/ullage rw,relatime - ext4 /dev/vda rw
"""


def test_all_is_sealed_that_is_writable_but_the_state_the_container_s_own_and_what_may_hang() -> None:
    sealed = [mount.mountpoint for mount in writable(parse(CONTAINER)[0], "/var/lib/ullage")]
    assert sealed == [
        "/sys/fs/cgroup/memory",
        "/host/var/lib/docker/overlay2/abc/merged",
        "/host/var/lib/ullage",
    ]


def test_a_container_s_mounts_are_known_by_their_ids() -> None:
    host = b"21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
    assert is_apart(CONTAINER, host)
    assert not is_apart(CONTAINER, host + CONTAINER)


def test_the_host_s_own_mounts_are_never_sealed(tmp_path: Path) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    with pytest.raises(StartError, match=r"--path\.seal"):
        Seal(tmp_path)
    assert Path("/proc/self/mountinfo").read_text() == before
