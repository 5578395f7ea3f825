"""What the collector of layers tells of recorded stores, as time goes on and things break in them."""

from __future__ import annotations

import os
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from agent.cli import _parser
from agent.collector import Running, Start
from agent.errors import Denied, Unsupported
from agent.host import Host
from collectors import layers
from collectors.layers import COLLECTOR, Layers, Settings
from collectors.stored import APART
from tests.trees.node import Node
from tests.unit.storetrees import hexadecimal, short

HOUR = 3600.0
OVERLAY2 = "var/lib/docker/overlay2"


class Late:
    """A node whose clocks are late by as much as the test says."""

    def __init__(self, case: str, workplace: Path, settings: Settings | None = None, state: Path | None = None) -> None:
        self.seconds = 0.0

        def start(given: Start) -> Running:
            given = replace(given, settings=settings or given.settings, state=state)
            return Layers(given, clock=lambda: time.monotonic() + self.seconds, now=lambda: time.time() + self.seconds)

        self._start = start
        self.node = Node(COLLECTOR, case, workplace, start)
        self.path = self.node.path

    def run(self, later: float = 0.0) -> dict[str, float]:
        """Do one run so much later; return the values of a page by series, without the label `store`."""
        self.seconds += later
        text = self.node.run()
        series = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
        return {re.sub(r',?store="[^"]*"', "", name): float(value) for name, value in series}

    def restart(self) -> None:
        self.node.running.close()
        runner = self.node.runner
        self.node.running = self._start(Start(runner.host, runner.plan.settings))

    def found(self) -> dict[str, str]:
        """Return the remedies by finding and target."""
        return {f"{name} {target}": found.remedy for (name, target), found in self.node.found().items()}

    def explained(self, finding: str) -> str:
        (text,) = [found.explanation for (name, _), found in self.node.found().items() if name == finding]
        return text


@pytest.fixture
def docker(tmp_path: Path) -> Late:
    return Late("docker", tmp_path)


STRAY = hexadecimal("stray")


def test_a_layer_that_nobody_knows_is_an_orphan_in_time(docker: Late) -> None:
    values = docker.run()
    assert values['ullage_layers{state="incomplete"}'] == 1
    assert 'ullage_layers_files{state="incomplete"}' not in values
    assert values['ullage_layers{state="orphan"}'] == 0
    docker.run(HOUR / 2)
    assert f"orphan-layers /{OVERLAY2}" not in docker.found()
    values = docker.run(HOUR)
    assert values['ullage_layers{state="orphan"}'] == 1
    assert values['ullage_layers{state="incomplete"}'] == 0
    assert values['ullage_layers_files{state="orphan"}'] == 8  # it, diff, left, work, keep, link, lower, the link to it
    explained = docker.explained("orphan-layers")
    assert explained.startswith(f"1 layers in /{OVERLAY2} belong to no image and no container: 8 inodes, ")
    assert STRAY in explained
    assert STRAY in docker.found()[f"orphan-layers /{OVERLAY2}"]


def test_a_layer_that_the_last_agent_saw_as_well_is_an_orphan_at_the_first_look(tmp_path: Path) -> None:
    late = Late("docker", tmp_path / "node", state=tmp_path / "state")
    late.run(2 * HOUR)
    assert f"orphan-layers /{OVERLAY2}" not in late.found()
    late.restart()
    late.run(APART)
    assert f"orphan-layers /{OVERLAY2}" in late.found()


def test_doctor_sees_orphans_with_its_second_reading() -> None:
    assert _parser().parse_args(["doctor"]).seconds >= APART


def test_a_mounted_layer_is_no_orphan(docker: Late) -> None:
    table = docker.path / "proc/1/mountinfo"
    table.write_text(table.read_text().replace("lowerdir=", f"lowerdir=/{OVERLAY2}/l/{short(STRAY)}:"))
    docker.run()
    docker.run(2 * HOUR)
    assert docker.run(HOUR)['ullage_layers{state="orphan"}'] == 0


def test_what_cannot_be_known_has_no_number(docker: Late) -> None:
    docker.run()
    (docker.path / "var/lib/docker/buildkit/snapshots.db").write_bytes(b"damaged")
    values = docker.run(2 * HOUR)
    assert 'ullage_layers{state="orphan"}' not in values
    assert values['ullage_layers{state="image"}'] == 2
    assert docker.node.runner.errors["malformed"] >= 1


def test_litter_is_told_and_a_link_that_is_needed_is_critical(docker: Late) -> None:
    docker.run()
    assert list(docker.found()) == [f"layer-link-litter /{OVERLAY2}"]
    base = hexadecimal("base")
    (docker.path / OVERLAY2 / "l" / short(base)).unlink()
    values = docker.run()
    assert values['ullage_layers_links{state="missing"}'] == 1
    assert docker.found()[f"layer-link-broken {base}"].startswith(
        f"ln -sfn ../{base}/diff /{OVERLAY2}/l/{short(base)}   #"
    )
    explained = docker.explained("layer-link-broken")
    assert "the container old and the container web and 2 images" in explained


def test_what_is_lost_cannot_be_linked_anew(docker: Late) -> None:
    docker.run()
    base = hexadecimal("base")
    shutil.rmtree(docker.path / OVERLAY2 / base)
    docker.run()
    assert docker.found()[f"layer-link-broken {base}"].startswith("What it led to is lost")


def test_an_import_that_never_ended_is_told(docker: Late) -> None:
    left = docker.path / "var/lib/docker/image/overlay2/layerdb/tmp/write-set-1"
    left.mkdir()
    docker.run()
    assert f"layer-import-interrupted /{OVERLAY2}" not in docker.found()
    docker.run(30 * HOUR)
    assert "write-set-1" in docker.explained("layer-import-interrupted")


def test_the_biggest_have_series_and_the_others_a_sum(tmp_path: Path) -> None:
    node = Late("docker", tmp_path, Settings(top=1))
    values = node.run()
    name = "ullage_container_writable_files"
    shown = {key: value for key, value in values.items() if key.startswith(name)}
    assert shown == {
        f'{name}{{container="web",id="4b5e57f6eb2f",namespace="",pod=""}}': 7,
        f'{name}{{container="other",id="",namespace="",pod=""}}': 3,
    }


def test_a_file_in_a_container_is_counted_with_the_next_run(docker: Late) -> None:
    name = 'ullage_container_writable_files{container="web",id="4b5e57f6eb2f",namespace="",pod=""}'
    before = docker.run()[name]
    layer = docker.path / OVERLAY2 / hexadecimal("mount web") / "diff"
    (layer / "srv").mkdir()
    (layer / "srv" / "new").touch()
    assert docker.run(30)[name] == before + 2
    shutil.rmtree(layer / "srv")
    assert docker.run(30)[name] == before


def test_a_new_layer_is_seen_with_the_next_run(docker: Late) -> None:
    docker.run()
    place = docker.path / OVERLAY2
    os.rename(place / STRAY, docker.path / "aside")
    assert docker.run(30)['ullage_layers{state="incomplete"}'] == 0
    assert docker.run(layers.SCAN_EVERY)['ullage_layers{state="image"}'] == 2


def test_how_far_the_first_count_is_can_be_seen(tmp_path: Path) -> None:
    node = Late("docker", tmp_path, Settings(cpu_budget=1e-9))
    values = node.run()
    progress = values["ullage_layers_count_progress_ratio{}"]
    assert 0 <= progress < 1
    assert node.node.runner.outcome.progress == progress
    assert 'ullage_layers_files{state="image"}' not in values
    assert values['ullage_layers{state="image"}'] == 2


def test_a_node_without_layers_has_nothing_to_read(docker: Late) -> None:
    shutil.rmtree(docker.path / "var")
    assert docker.run() == {}
    assert docker.node.runner.outcome.reason == "no container storage with overlay layers is here"


class Closed(Host):
    """A host as somebody sees it who may not look into anything of root's."""

    def lstat(self, path: str) -> os.stat_result:
        raise Denied(path)


def test_storage_that_is_for_root_alone_is_said_so(tmp_path: Path) -> None:
    running = Layers(Start(Closed(rootfs=str(tmp_path)), Settings()))
    with pytest.raises(Unsupported, match="for root alone, or with CAP_DAC_READ_SEARCH"):
        list(running.collect(running.start.host))
    running.close()


@pytest.mark.parametrize("wrong", [{"cpu_budget": 0.0}, {"cpu_budget": 1.5}, {"top": 0}])
def test_senseless_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="cpu_budget over 0"):
        Settings(**wrong)  # type: ignore[arg-type]
