"""The systemd units: what systemd says of them, and the agent with just the rights that they give."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.docker import Docker
from tests.deploy.tools import ROOT

pytestmark = [pytest.mark.root, pytest.mark.slow]
UNITS = ROOT / "deploy" / "systemd"
PROGRAM = "/opt/ullage/bin/ullage"
# what is left is what the agent is for: capabilities, devices, the kernel's log, the host's files and processes
EXPOSURE = {"ullage.service": 3.6, "ullage-textfile.service": 3.9}


def test_units_are_valid(tmp_path: Path) -> None:
    for unit in (*UNITS.glob("*.service"), *UNITS.glob("*.timer")):
        (tmp_path / unit.name).write_text(unit.read_text().replace(PROGRAM, sys.executable))
    command = ["systemd-analyze", "verify", "--man=no", *map(str, tmp_path.iterdir())]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    ours = [line for line in done.stderr.splitlines() if "ullage" in line]
    assert (done.returncode, ours) == (0, [])


@pytest.mark.parametrize("unit", EXPOSURE)
def test_units_are_as_hardened_as_they_can_be(unit: str) -> None:
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(UNITS / unit)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    match = re.search(r"exposure level for \S+: ([0-9.]+)", told)
    assert match is not None
    assert float(match[1]) <= EXPOSURE[unit]


def test_the_service_s_user_with_its_capabilities_sees_what_root_sees(engine: Docker) -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=False, delimiters="=")
    unit.optionxform = str  # type: ignore[assignment, method-assign]  # as its documentation says
    unit.read(UNITS / "ullage.service")
    service = unit["Service"]
    assert service["AmbientCapabilities"] == service["CapabilityBoundingSet"]
    names = [name.removeprefix("CAP_").lower() for name in service["AmbientCapabilities"].split()]
    node = engine.node
    node.mounted("btrfs", "/var/lib/systemd-btrfs", 200)
    node.run("btrfs", "quota", "enable", "/var/lib/systemd-btrfs")
    uuid = node.run("findmnt", "--noheadings", "--output=UUID", "/var/lib/systemd-btrfs")
    engine.sleeper("beside", "--user=1000:1000")
    state = node.run("mktemp", "--directory", "--tmpdir=/run")
    node.run("chown", "65534:65534", state)
    given = ",".join(f"+{name}" for name in names)
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]
    rights = [f"--inh-caps=-all,{given}", f"--ambient-caps=-all,{given}", f"--bounding-set=-all,{given}"]
    ullage = ["env", f"--chdir={ROOT}", sys.executable, "-m", "agent", "once"]
    try:
        text = node.run(*user, *rights, *ullage, f"--path.state={state}")
    finally:
        engine("rm", "--force", "beside")
        node.run("umount", "/var/lib/systemd-btrfs")
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    # what others have on this machine may be out of reach; Docker's socket is for its group, which the unit only names
    errors = [sample.labels for sample in samples if sample.name == "ullage_collector_errors_total"]
    askers = ["layers", "overlay", "volumes"]
    assert [each["collector"] for each in errors if each["reason"] == "permission"] == askers
    quota = [sample.labels for sample in samples if sample.name == "ullage_qgroup_referenced_bytes"]
    assert {each["path"] for each in quota if each["uuid"] == uuid} == {"/"}
    assert "beside" in {s.labels["container"] for s in samples if s.name == "ullage_container_written_bytes_total"}
    assert "dentry" in {s.labels["cache"] for s in samples if s.name == "ullage_slab_bytes"}
