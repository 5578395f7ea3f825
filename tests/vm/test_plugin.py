"""The lab's plugin, tried on a project of its own whose tests fail in every way that a guest's test can."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.refusal import refuse
from tests.vm.errors import Unavailable
from tests.vm.machine import check_host

pytestmark = pytest.mark.slow

PROOF = Path("/etc/ullage-lab-proof")

FILES = {
    "pytest.ini": """\
[pytest]
markers = vm: runs in the guest
""",
    "conftest.py": """\
from tests.vm import plugin

def pytest_configure(config):
    plugin.install(config)
""",
    "subject.py": """\
def where(is_guest):
    if is_guest:
        return "guest"
    return "host"
""",
    "test_project.py": f"""\
import os, time
from pathlib import Path
import pytest

def test_without_the_marker_runs_on_the_host():
    assert "ULLAGE_GUEST" not in os.environ

@pytest.mark.vm
def test_fails():
    Path({str(PROOF)!r}).touch()
    Path("/dev/kmsg").write_text("said by the kernel")
    print("said by the test")
    assert 6 * 9 == 42

@pytest.mark.vm
@pytest.mark.skipif("ULLAGE_GUEST" in os.environ, reason="told by the guest")
def test_skips():
    pass

@pytest.mark.vm(deadline=3)
def test_hangs():
    time.sleep(3600)

@pytest.mark.vm
def test_takes_the_guest_down():
    Path("/proc/sysrq-trigger").write_text("c")

@pytest.mark.vm
def test_fails_at_first():
    proof = Path("/run/failed-at-first")
    if not proof.exists():
        proof.touch()
        raise AssertionError("said by the first try")

@pytest.mark.vm
@pytest.mark.parametrize("value", ["", "two words", "a::b", "[/]"])
def test_comes_after(value):
    import subject
    assert subject.where(is_guest="ULLAGE_GUEST" in os.environ) == "guest"
""",
}

ZFS_TEST = """\
import pytest

@pytest.mark.vm(deadline=10)
@pytest.mark.vm(zfs=True)
def test_with_zfs():
    pass
"""


@dataclass
class Outcome:
    """What a session said: `tests` maps names to outcome and text, `lines` names the lines of subject.py it saw run."""

    output: str
    tests: dict[str, tuple[str, str]]
    lines: list[int]


def run_session(project: Path, *arguments: str, **env: str) -> Outcome:
    for name, text in FILES.items():
        (project / name).write_text(text)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "CI"))}
    output = subprocess.run(
        [sys.executable, "-m", "pytest", "--junitxml=junit.xml", "--cov=subject", "--cov-report=json", *arguments],
        cwd=project,
        env=inherited | {"PYTHONPATH": str(Path(__file__).parents[2])} | env,
        check=False,
        capture_output=True,
        text=True,
        timeout=900,
    ).stdout
    tests = {}
    for case in ET.parse(project / "junit.xml").iter("testcase"):
        results = [child for child in case if child.tag in ("failure", "error", "skipped")]
        tests[case.get("name", "")] = (
            (results[0].tag, f"{results[0].get('message')}\n{results[0].text}") if results else ("passed", "")
        )
    report = json.loads((project / "coverage.json").read_text()) if (project / "coverage.json").exists() else None
    return Outcome(output, tests, report["files"]["subject.py"]["executed_lines"] if report else [])


def tools_without(absent: str, directory: Path) -> Path:
    directory.mkdir()
    for tool in (tool for place in os.environ["PATH"].split(":") for tool in Path(place).glob("*")):
        link = directory / tool.name
        if tool.name != absent and not link.is_symlink():
            link.symlink_to(tool)
    return directory


@pytest.fixture(scope="module")
def _lab() -> None:
    try:
        check_host()
    except Unavailable as error:
        refuse(str(error))


@pytest.fixture(scope="module")
def outcome(_lab: None, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    outcome = run_session(tmp_path_factory.mktemp("project"))
    print(outcome.output)
    return outcome


def test_a_test_without_the_marker_runs_on_the_host(outcome: Outcome) -> None:
    assert outcome.tests["test_without_the_marker_runs_on_the_host"] == ("passed", "")


def test_a_failure_is_reported_with_its_assertion_and_output(outcome: Outcome) -> None:
    result, text = outcome.tests["test_fails"]

    assert result == "failure"
    assert "assert (6 * 9) == 42" in text
    assert "said by the test" in outcome.output


def test_a_failure_shows_the_guests_console(outcome: Outcome) -> None:
    assert "said by the kernel" in outcome.output


def test_a_skip_is_reported_with_its_reason(outcome: Outcome) -> None:
    result, text = outcome.tests["test_skips"]

    assert result == "skipped"
    assert "told by the guest" in text


def test_a_hang_fails_at_its_deadline(outcome: Outcome) -> None:
    result, text = outcome.tests["test_hangs"]

    assert result == "failure"
    assert "the test was not done in 3 s" in text


def test_the_death_of_the_guest_fails_its_test_with_the_panic(outcome: Outcome) -> None:
    result, text = outcome.tests["test_takes_the_guest_down"]

    assert result == "failure"
    assert "the guest died" in text
    assert "Kernel panic" in outcome.output


def test_tests_after_a_death_run_in_a_new_machine(outcome: Outcome) -> None:
    after = {name: result for name, (result, _) in outcome.tests.items() if name.startswith("test_comes_after")}

    assert len(after) == 4
    assert set(after.values()) == {"passed"}


def test_coverage_of_the_guest_is_combined_on_the_host(outcome: Outcome) -> None:
    assert outcome.lines == [1, 2, 3]


@pytest.mark.usefixtures("outcome")
def test_what_the_guest_writes_does_not_reach_the_host() -> None:
    assert not PROOF.exists()


@pytest.mark.usefixtures("_lab")
def test_a_second_try_counts_and_the_first_is_told(tmp_path: Path) -> None:
    outcome = run_session(tmp_path, "-k", "test_fails", "--reruns=1", "--rerun-show-tracebacks")

    assert outcome.tests["test_fails"][0] == "failure"
    assert outcome.tests["test_fails_at_first"][0] == "passed"
    assert "said by the first try" in outcome.output
    assert sum(line.startswith("RERUN ") for line in outcome.output.splitlines()) == 2


def test_a_host_without_the_tools_skips_with_the_reason(tmp_path: Path) -> None:
    result, text = run_session(tmp_path, "-k", "test_fails", PATH="/nonexistent").tests["test_fails"]

    assert result == "skipped"
    assert "qemu-system-x86_64" in text


def test_in_ci_a_host_without_the_tools_fails(tmp_path: Path) -> None:
    result, text = run_session(tmp_path, "-k", "test_fails", PATH="/nonexistent", CI="true").tests["test_fails"]

    assert result == "error"
    assert "qemu-system-x86_64" in text


@pytest.mark.usefixtures("_lab")
def test_without_a_compiler_tests_with_zfs_come_last_and_only_they_fail(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "test_before.py").write_text(ZFS_TEST)
    tools = tools_without("gcc", tmp_path / "tools")  # not in the project: a link among them may lead in a circle

    outcome = run_session(project, "-k", "with_zfs or test_comes_after", PATH=str(tools), CI="true")

    *others, last = outcome.tests
    assert last == "test_with_zfs"
    result, text = outcome.tests[last]
    assert result == "error"
    assert "ZFS needs gcc" in text
    assert [outcome.tests[name] for name in others] == [("passed", "")] * 4
