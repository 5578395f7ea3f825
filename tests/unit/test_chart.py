"""The chart's schema and values, against what the agent takes."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import yaml

from agent.config import RUNTIME_KEYS, SECTIONS
from tests.generate import ROOT

CHART = ROOT / "deploy" / "helm" / "ullage"
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
CONFIG: dict[str, Any] = SCHEMA["properties"]["config"]["properties"]


def complaint(config: Any) -> str:
    """Return what the schema says of a configuration, nothing if it takes it."""
    found = jsonschema.Draft7Validator(SCHEMA).iter_errors({"config": config})
    return "; ".join(each.message for each in found)


def test_the_chart_takes_the_sections_that_the_agent_takes() -> None:
    assert set(CONFIG) == set(SECTIONS)


def test_the_chart_takes_the_places_of_runtimes_that_the_agent_takes() -> None:
    runtimes = CONFIG["runtime"]["properties"]
    assert {name: set(each["properties"]) for name, each in runtimes.items()} == {
        name: set(keys) for name, keys in RUNTIME_KEYS.items()
    }


def test_the_chart_refuses_places_that_the_agent_would_refuse() -> None:
    assert complaint({"runtime": {"docker": {"root": ["/data/docker"]}}}) == ""
    for wrong in ("docke: {}", "docker: {rot: [/x]}", "docker: {root: /x}", "docker: {root: [x]}"):
        assert complaint({"runtime": yaml.safe_load(wrong)}), wrong


def test_the_values_name_every_section() -> None:
    text = (CHART / "values.yaml").read_text()
    (head,) = [line for line in text.splitlines() if line.startswith("# the agent's configuration")]
    assert head.partition(": ")[2].split(", ") == list(SECTIONS)
    assert complaint(yaml.safe_load(text)["config"]) == ""
