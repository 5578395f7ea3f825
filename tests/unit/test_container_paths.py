"""Every form of a container's cgroup path, and what it says."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.containers import Place, Runtime, outermost, parse_cgroup

C = "0d69e9e6d4926b12c63747788afe29fa54711e93ebd68b8d4d0024f447384a56"
D = "72761c54ac6549f2771cab980f34e1b61a412c6d204d001a3b08f9cf9adb62d5"
UID = "3f050238-cd37-4a09-9784-e8c3d3ff9501"
UID_ = UID.replace("-", "_")
STATIC = "61fce55674b0e35ad1ca93f6440104cf"
SYSTEMD = "/kubepods.slice"
BURSTABLE = f"{SYSTEMD}/kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice"
BESTEFFORT = f"{SYSTEMD}/kubepods-besteffort.slice/kubepods-besteffort-pod{UID_}.slice"
GUARANTEED = f"{SYSTEMD}/kubepods-pod{UID_}.slice"
KIND = "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice"
USER = "/user.slice/user-1000.slice/user@1000.service"


def place(runtime: Runtime, uid: str = "", qos: str = "", container: str = C) -> Place:
    return Place(container, runtime, uid, qos)


def pod(uid: str, qos: str) -> Place:
    return Place("", "", uid, qos)


FORMS: list[tuple[str, Place | None]] = [
    # Docker, both drivers
    (f"/docker/{C}", place("docker")),
    (f"/system.slice/docker-{C}.scope", place("docker")),
    (f"/system.slice/docker-{C}.scope/init.scope", place("docker")),
    (f"/docker/{C}/system.slice/cron.service", place("docker")),
    (f"{USER}/app.slice/docker-{C}.scope", place("docker")),
    (f"/my-parent/{C}", place("")),
    # Kubernetes with cgroupfs names, all classes
    (f"/kubepods/pod{UID}/{C}", place("", UID, "guaranteed")),
    (f"/kubepods/burstable/pod{UID}/{C}", place("", UID, "burstable")),
    (f"/kubepods/besteffort/pod{UID}/{C}", place("", UID, "besteffort")),
    (f"/kubepods/pod{STATIC}/{C}", place("", STATIC, "guaranteed")),
    (f"/kubepods/burstable/pod{STATIC}/{C}", place("", STATIC, "burstable")),
    (f"/kubepods/burstable/pod{UID}/crio-{C}", place("cri-o", UID, "burstable")),
    (f"/kubepods/burstable/pod{UID}/crio-conmon-{C}", None),
    (f"/kubepods/pod{UID}", pod(UID, "guaranteed")),
    (f"/kubepods/burstable/pod{UID}", pod(UID, "burstable")),
    (f"/kubepods/besteffort/pod{STATIC}", pod(STATIC, "besteffort")),
    ("/kubepods", None),
    ("/kubepods/burstable", None),
    # Kubernetes with systemd names, all classes and runtimes
    (f"{GUARANTEED}/cri-containerd-{C}.scope", place("containerd", UID, "guaranteed")),
    (f"{BURSTABLE}/cri-containerd-{C}.scope", place("containerd", UID, "burstable")),
    (f"{BESTEFFORT}/cri-containerd-{C}.scope", place("containerd", UID, "besteffort")),
    (f"{GUARANTEED}/crio-{C}.scope", place("cri-o", UID, "guaranteed")),
    (f"{BURSTABLE}/crio-{C}.scope", place("cri-o", UID, "burstable")),
    (f"{BURSTABLE}/crio-{C}.scope/container", place("cri-o", UID, "burstable")),
    (f"{BESTEFFORT}/docker-{C}.scope", place("docker", UID, "besteffort")),
    (f"{BURSTABLE}/crio-conmon-{C}.scope", None),
    (f"{BURSTABLE}/crio-{C}", None),
    (f"{SYSTEMD}/kubepods-pod{STATIC}.slice/cri-containerd-{C}.scope", place("containerd", STATIC, "guaranteed")),
    (GUARANTEED, pod(UID, "guaranteed")),
    (BURSTABLE, pod(UID, "burstable")),
    (BESTEFFORT, pod(UID, "besteffort")),
    (f"{SYSTEMD}/kubepods-burstable.slice", None),
    # Podman
    (f"/machine.slice/libpod-{C}.scope", place("podman")),
    (f"/machine.slice/libpod-{C}.scope/container", place("podman")),
    (f"/machine.slice/libpod-conmon-{C}.scope", None),
    (f"/machine.slice/machine-libpod_pod_{D}.slice/libpod-{C}.scope", place("podman")),
    (f"/machine.slice/machine-libpod_pod_{D}.slice", None),
    (f"{USER}/user.slice/libpod-{C}.scope/container", place("podman")),
    (f"/libpod_parent/libpod-{C}", place("podman")),
    # one in another: kind, k3s, Docker in Docker
    (f"/docker/{D}/kubelet/kubepods/burstable/pod{UID}/{C}", place("", UID, "burstable")),
    (f"/system.slice/docker-{D}.scope/kubelet/kubepods/pod{UID}/{C}", place("", UID, "guaranteed")),
    (
        f"{KIND}/kubelet-kubepods-besteffort-pod{UID_}.slice/cri-containerd-{C}.scope",
        place("containerd", UID, "besteffort"),
    ),
    (f"/docker/{D}/docker/{C}", place("docker")),
    (f"/docker/{D}", place("docker", container=D)),
    (f"/system.slice/k3s.service/kubepods/pod{UID}/{C}", place("", UID, "guaranteed")),
    (f"/lxc/101/kubepods/burstable/pod{UID}/{C}", place("", UID, "burstable")),
    # none
    ("", None),
    ("/", None),
    ("/init.scope", None),
    ("/system.slice/containerd.service", None),
    ("/system.slice/var-lib-docker-overlay2.mount", None),
    ("/docker/buildkit/k8mzd3x5p2vq1w9c7r4t6y8b0", None),
    # what somebody made to be mistaken
    (f"/docker/{C[:63]}", None),
    (f"/docker/{C}0", None),
    (f"/docker/{C.upper()}", None),
    (f"/docker/{C}\n", None),
    (f"/docker/x{C}", None),
    (f"/docker/{C}.scope", None),
    (f"/kubepods/podx{UID}/{C[:10]}", None),
    (f"/kubepods/pod{UID}-/{C[:10]}", None),
    ("/" + "../" * 1000, None),
    ("/" + "a" * 100_000, None),
]


@pytest.mark.parametrize(("path", "expected"), FORMS, ids=[path[:60] for path, _ in FORMS])
def test_a_path_says_which_container_or_pod_it_is(path: str, expected: Place | None) -> None:
    assert parse_cgroup(path) == expected


PARTS = st.sampled_from(
    [C, D, f"docker-{C}.scope", f"pod{UID}", f"kubepods-pod{UID_}.slice", "kubepods", "x", "..", ""]
)


@given(st.lists(PARTS | st.text(max_size=80), max_size=8).map("/".join))
def test_no_path_breaks_the_parser_and_ids_are_ids(path: str) -> None:
    found = parse_cgroup(path)
    if found is not None:
        assert found.id == "" or re.fullmatch("[0-9a-f]{64}", found.id)
        assert found.id or found.pod_uid


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"/docker/{C}/docker/{D}", f"/docker/{C}"),
        (f"{BURSTABLE}/cri-containerd-{C}.scope/a/{D}/b", f"{BURSTABLE}/cri-containerd-{C}.scope"),
        ("/user.slice/user-1000.slice", "/user.slice/user-1000.slice"),
    ],
)
def test_what_is_made_in_a_container_is_its_own(path: str, expected: str) -> None:
    assert outermost(path) == expected
