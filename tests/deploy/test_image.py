"""The image itself: what is in it, and what is not."""

from __future__ import annotations

import csv
import json
import time
import zipfile
from typing import Any

import pytest

from agent import __version__
from tests.deploy import image
from tests.deploy.docker import Docker
from tests.deploy.node import WAIT

pytestmark = [pytest.mark.root, pytest.mark.docker, pytest.mark.slow]


@pytest.fixture(scope="module")
def config(engine: Docker) -> dict[str, Any]:
    (found,) = json.loads(engine("image", "inspect", image.NAME))
    made: dict[str, Any] = found["Config"]
    return made


def in_image(engine: Docker, *command: str) -> str:
    return engine("run", "--rm", "--network=none", "--entrypoint", command[0], image.NAME, *command[1:])


def test_it_names_itself_and_runs_as_nobody(config: dict[str, Any]) -> None:
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()}
    assert labels["title"] == "Ullage"
    assert labels["licenses"] == "Apache-2.0"
    assert {"description", "source", "version", "revision", "created"} <= set(labels)
    assert config["User"] == "65534:65534"
    assert config["Entrypoint"] == ["ullage"]
    assert list(config["ExposedPorts"]) == ["10940/tcp"]


def test_what_is_installed_is_the_wheel_that_was_built(engine: Docker) -> None:
    with zipfile.ZipFile(engine.wheel) as wheel:
        (record,) = [name for name in wheel.namelist() if name.endswith(".dist-info/RECORD")]
        wanted = {name: digest for name, digest, _ in csv.reader(wheel.read(record).decode().splitlines()) if digest}
    found = in_image(engine, "sh", "-c", "cat /opt/ullage/lib/python3*/site-packages/ullage-*.dist-info/RECORD")
    installed = {name: digest for name, digest, _ in csv.reader(found.splitlines())}
    assert {name: installed.get(name) for name in wanted} == wanted
    assert in_image(engine, "ullage", "--version") == f"ullage {__version__}"


def test_it_has_no_compiler_no_pip_and_no_cache(engine: Docker) -> None:
    script = "command -v gcc cc make g++; ls /opt/ullage/bin; ls -A /root; ls /build 2> /dev/null; true"
    found = set(in_image(engine, "sh", "-c", script).split())
    assert not found & {"pip", "pip3", "gcc", "cc", "make", "dist"}
    assert ".cache" not in found


def test_it_is_healthy_with_a_read_only_root_and_no_rights(engine: Docker) -> None:
    options = ["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--health-interval=1s"]
    engine("run", "--detach", "--network=none", "--name", "healthy", *options, image.NAME)
    try:
        end = time.monotonic() + WAIT
        while engine("inspect", "--format={{.State.Health.Status}}", "healthy") != "healthy":
            assert time.monotonic() < end, engine("logs", "healthy")
            time.sleep(0.2)
        began = engine("inspect", "--format={{.State.Running}}", "healthy")
        assert began == "true"
        engine("stop", "--time=30", "healthy")
        assert engine("inspect", "--format={{.State.ExitCode}}", "healthy") == "0"
    finally:
        engine("rm", "--force", "healthy")
