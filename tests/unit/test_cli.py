"""The command line as a user has it: a process with flags, output, exit code and signals."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from agent import __version__
from tests.agent_process import children, running
from tests.unit.test_contract import KNOWN_TO_PROMTOOL

WAIT = 60.0


def ullage(*arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agent", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, env=environment)


def test_version() -> None:
    assert ullage("--version").stdout == f"ullage {__version__}\n"


@pytest.mark.parametrize(
    "command", [(), ("run",), ("once",), ("check-config",), ("rules",), ("lint-storage",), ("doctor",)]
)
def test_help_is_there_for_every_command(command: tuple[str, ...]) -> None:
    answer = ullage(*command, "--help")
    assert answer.returncode == 0
    assert "usage: ullage" in answer.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("walk",),
        ("run", "--colector.filesystem"),
        ("run", "--collector.filesys"),
        ("once", "--log.level=loud"),
        ("check-config",),
        ("lint-storage",),
        ("check-config", "/nonexistent"),
        ("rules", "--config.file=/nonexistent"),
        ("once", "--config.file=/nonexistent"),
        ("run", "--web.config.file=/nonexistent"),
    ],
)
def test_bad_usage_and_bad_configuration_exit_with_2_and_a_reason(arguments: tuple[str, ...]) -> None:
    answer = ullage(*arguments)
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert "ullage" in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--web.listen-address=127.0.0.1:99999"),
        ("run", "--web.listen-address=192.0.2.1:0"),
        ("once", "--textfile=/nonexistent/ullage.prom"),
        ("run", "--path.state=/proc/nowhere"),
    ],
)
def test_what_cannot_be_done_exits_with_1_or_2_and_a_reason(arguments: tuple[str, ...]) -> None:
    answer = ullage(*arguments)
    assert answer.returncode in (1, 2)
    assert arguments[1].partition("=")[2] in answer.stderr
    assert "Traceback" not in answer.stderr


def test_once_prints_one_complete_exposition() -> None:
    answer = ullage("once")
    assert answer.returncode == 0
    families = {family.name: family for family in parse_text(answer.stdout)}
    assert families["ullage_filesystem_size_bytes"].samples
    assert [sample.value for sample in families["ullage_collector_up"].samples] == [1.0] * len(
        families["ullage_collector_up"].samples
    )
    assert not [name for name in families if name.startswith(("process_", "python_"))]


def test_once_runs_only_the_collectors_that_are_named() -> None:
    text = ullage("once", "--no-collector.filesystem").stdout
    assert "ullage_filesystem_size_bytes" not in text
    assert "ullage_build_info" in text
    assert "ullage_filesystem_size_bytes" in ullage("once", "--collector.filesystem").stdout


def test_a_textfile_is_whole_readable_and_alone(tmp_path: Path) -> None:
    path = tmp_path / "ullage.prom"
    path.write_text("old")
    assert ullage("once", f"--textfile={path}", f"--path.state={tmp_path / 'state'}").returncode == 0
    assert "ullage_filesystem_size_bytes" in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o644
    assert sorted(os.listdir(tmp_path)) == ["state", "ullage.prom"]


def test_a_good_configuration_is_said_to_be_valid(tmp_path: Path) -> None:
    path = tmp_path / "ullage.yml"
    path.write_text("collectors: {filesystem: {interval: 5s}}")
    answer = ullage("check-config", str(path))
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.startswith(f"{path}: valid; collectors: filesystem")


def test_rules_are_those_of_the_watermarks_in_force(tmp_path: Path) -> None:
    path = tmp_path / "ullage.yml"
    path.write_text("rules: {runbook_url: 'https://wiki.example/{alert}', keep_firing_for: 7m}")
    text = ullage("rules", f"--config.file={path}").stdout
    assert "https://wiki.example/UllageInodesCritical" in text
    assert "keep_firing_for: 7m" in text


Series = set[tuple[str, frozenset[tuple[str, str]]]]


def test_both_formats_and_gzip_carry_the_same_series(tmp_path: Path) -> None:
    def series(families: object) -> Series:
        assert isinstance(families, Iterator)
        return {(s.name, frozenset(s.labels.items())) for family in families for s in family.samples}

    expected: Series = set()
    after: Series | None = None
    with running(tmp_path) as agent:
        agent.wait_until_ready()
        while expected != after:  # the node's mounts come and go
            expected = series(iter(parse_text(agent.get("/metrics")[1].decode())))
            _, openmetrics = agent.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
            _, packed = agent.get("/metrics", **{"Accept-Encoding": "gzip"})
            after = series(iter(parse_text(agent.get("/metrics")[1].decode())))
    assert len(expected) > 30
    assert series(iter(parse_openmetrics(openmetrics.decode()))) == expected
    assert series(iter(parse_text(gzip.decompress(packed).decode()))) == expected
    names = {name for name, _ in expected}
    assert {"process_resident_memory_bytes", "python_info", "ullage_build_info"} <= names


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing_to_say_about_the_whole_page(tmp_path: Path) -> None:
    with running(tmp_path) as agent:
        agent.wait_until_ready()
        page = agent.get("/metrics")[1]
    command = ["promtool", "check", "metrics"]
    checked = subprocess.run(command, check=False, input=page.decode(), capture_output=True, text=True)
    assert set((checked.stdout + checked.stderr).splitlines()) <= KNOWN_TO_PROMTOOL


def test_a_stop_is_clean_and_leaves_no_process(tmp_path: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        with running(tmp_path) as agent:
            agent.wait_until_ready()
            helpers = children(agent.process.pid)
            agent.process.send_signal(number)
            assert agent.process.wait(WAIT) == 0
            assert "event=stopping" in agent.log
            assert not [pid for pid in helpers if Path(f"/proc/{pid}").exists()]


def test_a_storm_of_signals_does_not_hang_it(tmp_path: Path) -> None:
    with running(tmp_path) as agent:
        for _ in range(3000):
            agent.process.send_signal(signal.SIGHUP)
        agent.process.send_signal(signal.SIGTERM)
        assert agent.process.wait(WAIT) == 0


def test_a_kill_leaves_no_process_either(tmp_path: Path) -> None:
    with running(tmp_path) as agent:
        agent.wait_until_ready()
        helpers = children(agent.process.pid)
        agent.process.kill()
        agent.process.wait()
        end = time.monotonic() + WAIT
        while [pid for pid in helpers if Path(f"/proc/{pid}").exists()]:
            assert time.monotonic() < end
            time.sleep(0.02)


def test_a_reload_takes_effect_and_a_bad_one_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ullage.yml"
    path.write_text("watermarks: {inodes: {tiers: {warning: {raise: 0.61}}}}".replace("0.61", "0.81"))
    with running(tmp_path, f"--config.file={path}", "--web.enable-lifecycle") as agent:
        agent.wait_until_ready()

        def threshold() -> str:
            text = agent.get("/metrics")[1].decode()
            wanted = 'ullage_watermark_threshold_ratio{edge="raise",target="",tier="warning",watermark="inodes"}'
            return next(line.split()[-1] for line in text.splitlines() if line.startswith(wanted))

        assert threshold() == "0.81"
        path.write_text("watermarks: {inodes: {tiers: {warning: {raise: 0.82}}}}")
        agent.process.send_signal(signal.SIGHUP)
        agent.wait_for_log("configuration reloaded")
        assert threshold() == "0.82"
        path.write_text("watermarks: {inodes: {tiers: {warning: {raise: 7}}}}")
        agent.process.send_signal(signal.SIGHUP)
        agent.wait_for_log("configuration not reloaded")
        assert threshold() == "0.82"
        assert b"ullage_config_last_reload_successful 0\n" in agent.get("/metrics")[1]
        code, body = agent.get("/-/reload", "POST")
        assert code == 400
        assert b"watermarks.inodes.tiers.warning" in body
        path.write_text("watermarks: {inodes: {tiers: {warning: {raise: 0.83}}}}")
        assert agent.get("/-/reload", "POST")[0] == 200
        assert threshold() == "0.83"
        assert b"ullage_config_last_reload_successful 1\n" in agent.get("/metrics")[1]


def test_a_reload_over_http_needs_leave(tmp_path: Path) -> None:
    with running(tmp_path) as agent:
        assert agent.get("/-/reload", "POST")[0] == 403


def test_logs_are_json_when_asked_for(tmp_path: Path) -> None:
    log = tmp_path / "agent.log"
    flags = ["--web.listen-address=127.0.0.1:0", "--log.format=json", f"--path.state={tmp_path / 'state'}"]
    with open(log, "w") as stderr:
        process = subprocess.Popen([sys.executable, "-m", "agent", "run", *flags], stderr=stderr)
    try:
        end = time.monotonic() + WAIT
        while '"serving"' not in log.read_text():
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        process.terminate()
        assert process.wait(WAIT) == 0
    events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    assert "stopping" in events


def test_the_status_is_the_same_as_json_and_as_a_page(tmp_path: Path) -> None:
    with running(tmp_path) as agent:
        agent.wait_until_ready()
        status = json.loads(agent.get("/api/v1/status")[1])
        page = agent.get("/")[1].decode()
    assert status["agent"]["version"] == __version__
    assert [entry["state"] for entry in status["collectors"] if entry["name"] == "filesystem"] == ["up"]
    assert {entry["watermark"] for entry in status["watermarks"]} >= {"inodes", "filesystem_bytes"}
    for entry in status["collectors"]:
        assert entry["name"] in page


def test_the_daemon_does_not_carry_what_it_has_no_use_for() -> None:
    program = "import sys; import agent.cli, agent.daemon; print({'rich', 'asyncio'} & sys.modules.keys())"
    program += "; import rich.console, asyncio; asyncio.run(asyncio.sleep(0))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n"
