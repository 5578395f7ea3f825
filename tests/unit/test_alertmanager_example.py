"""The example for Alertmanager, as amtool judges it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest
import yaml

from tests.generate import ROOT
from tests.prometheus import installed, newest

EXAMPLE = ROOT / "deploy" / "alertmanager" / "alertmanager.yml"
VERSIONS = pytest.mark.parametrize(
    "find", [installed, pytest.param(newest, marks=pytest.mark.slow)], ids=["installed", "newest"]
)


def rules() -> dict[str, dict[str, str]]:
    """Return the labels that our rules give each alert."""
    groups = yaml.safe_load((ROOT / "deploy" / "rules" / "ullage.rules.yml").read_text())["groups"]
    return {rule["alert"]: rule["labels"] for group in groups for rule in group["rules"] if "alert" in rule}


@VERSIONS
def test_it_is_valid(find: Callable[[str], str]) -> None:
    done = subprocess.run([find("amtool"), "check-config", str(EXAMPLE)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("severity", "receiver"), [("critical", "pager"), ("warning", "team"), ("info", "nobody")])
def test_a_severity_reaches_its_receiver(severity: str, receiver: str) -> None:
    command = [installed("amtool"), "config", "routes", "test", f"--config.file={EXAMPLE}", "instance=node-1"]
    done = subprocess.run([*command, f"severity={severity}"], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == receiver


def test_every_alert_that_it_names_is_one_of_ours() -> None:
    ours, inhibitions = rules(), yaml.safe_load(EXAMPLE.read_text())["inhibit_rules"]
    named = {
        name
        for inhibition in inhibitions
        for matcher in (*inhibition["source_matchers"], *inhibition["target_matchers"])
        if matcher.startswith("alertname=")
        for name in matcher.partition("=")[2].lstrip("~").strip('"').split("|")
    }
    assert {name for name in named if name[:4] != "Kube" and name != "Ullage.+"} <= set(ours)
