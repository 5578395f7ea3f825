"""Pytest plugin: tests marked `vm` run inside the lab's machine and are reported here like any other test.

The host collects and selects as always. At the first selected `vm` test it boots one machine and starts one pytest in
it for all of them; that one writes its reports, a JSON object a line, into the shared results, and the host hands
them on in its own name, each test with a deadline (`@pytest.mark.vm(deadline=seconds)`). A test that hangs, or takes
the guest down, fails with the guest's console; the next one gets a new machine.

Tests marked `@pytest.mark.vm(zfs=True)` come last of all, in a machine of their own with ZFS: while those before them
run, its modules are built, if this user's cache does not have them.

Both sides load this module: `install` in a conftest's `pytest_configure`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import coverage
import pytest

from tests.vm.boot.server import Reply
from tests.vm.cache import default_cache
from tests.vm.errors import GuestDied, GuestError, GuestStuck, LabError, Unavailable
from tests.vm.kernel import obtain
from tests.vm.machine import RESULTS, Machine, check_host
from tests.vm.zfs import Obtaining, Zfs

MARKER = "vm"

_IN_GUEST = "ULLAGE_GUEST"
_REPORTS = "reports"
_COVERAGE = "coverage"
_START_SECONDS = 300.0
_TEST_SECONDS = 400.0
_FINISH_SECONDS = 120.0
_POLL_SECONDS = 0.02


def install(config: pytest.Config) -> None:
    """Make this pytest the host's side, or the guest's if it runs there."""
    if os.environ.get(_IN_GUEST) == "1":
        config.pluginmanager.register(GuestSide(config, Path(RESULTS, _REPORTS)))
    else:
        config.pluginmanager.register(HostSide(config))


class GuestSide:
    """Writes down what happens, as it happens."""

    def __init__(self, config: pytest.Config, reports: Path) -> None:
        self._config = config
        self._file = reports.open("w", buffering=1)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        if session.testsfailed == 0:  # else this is as far as it goes
            self._write(event="started")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        Path("/dev/kmsg").write_text(f"lab: {nodeid:.200}\n")  # so that the console says whose its lines are

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._write(event="report", nodeid=report.nodeid, report=data)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._write(event="finished", nodeid=nodeid)

    def _write(self, **message: Any) -> None:
        self._file.write(json.dumps(message, default=str) + "\n")


class GuestRun:
    """One pytest in a machine of its own, and what it has told so far."""

    def __init__(self, config: pytest.Config, items: Iterable[pytest.Item], zfs: Zfs | None) -> None:
        self._config = config
        self._reports: defaultdict[str, list[pytest.TestReport]] = defaultdict(list)
        self._finished: set[str] = set()
        self._outcomes: set[str] = set()  # of the test that runs now, in this try
        self._has_started = False
        self._partial = b""
        self._coverage_file = _coverage_file(config)
        self.machine = Machine(obtain(default_cache()), visible=[config.rootpath, *([zfs.root] if zfs else [])])
        self.machine.start()
        if zfs:
            self._install(zfs)
        path = self.machine.results / _REPORTS
        path.touch()
        self._stream = path.open("rb")
        self._end = self.machine.submit(
            [sys.executable, *_coverage_arguments(), "-m", "pytest", *_pytest_arguments(config, items)],
            env={name: os.environ[name] for name in ("CI", "PYTHONPATH") if name in os.environ} | {_IN_GUEST: "1"},
            cwd=str(config.rootpath),
        )

    def wait_for_start(self) -> None:
        """Wait until the guest's pytest has found its tests and runs them."""
        until = time.monotonic() + _START_SECONDS
        while not self._has_started:
            self._receive(until, "pytest did not start in the guest")

    def reports_of(self, nodeid: str, seconds: float) -> list[pytest.TestReport]:
        """Return a test's reports, as soon as it is done; raise a GuestError if it is not within its deadline."""
        until = time.monotonic() + seconds
        while nodeid not in self._finished:
            self._receive(until, f"the test was not done in {seconds:g} s")
        return self._reports.pop(nodeid, [])

    def finish(self) -> None:
        """Wait for the end of the guest's pytest and fetch what coverage has measured there."""
        try:
            reply = self._end.result(_FINISH_SECONDS)
        except TimeoutError as error:
            raise GuestStuck("pytest did not end in the guest", self.machine.console()) from error
        if reply["code"] not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            raise self._ended_early(reply)
        for path in self.machine.results.glob(f"{_COVERAGE}.*"):
            shutil.move(path, f"{self._coverage_file}{path.name.removeprefix(_COVERAGE)}")

    def stop(self) -> None:
        """End the machine."""
        self._stream.close()
        self.machine.stop()

    def _install(self, zfs: Zfs) -> None:
        try:
            zfs.install(self.machine)
        except BaseException:
            self.machine.stop()
            raise

    def _receive(self, until: float, otherwise: str) -> None:
        """Take in one more message."""
        while not self._partial.endswith(b"\n"):
            is_over = self._end.done()  # before the read: what was written until then is read
            part = self._stream.readline()
            self._partial += part
            if part:
                continue
            if is_over:
                raise self._ended_early(self._end.result())
            if time.monotonic() > until:
                raise GuestStuck(otherwise, self.machine.console())
            time.sleep(_POLL_SECONDS)
        message = json.loads(self._partial)
        self._partial = b""
        match message["event"]:
            case "started":
                self._has_started = True
            case "report":
                data = message["report"]
                if isinstance(data["longrepr"], list):
                    data["longrepr"] = tuple(data["longrepr"])  # a skip's, as pytest's own plugins expect it
                report = self._config.hook.pytest_report_from_serializable(config=self._config, data=data)
                self._reports[message["nodeid"]].append(report)
                self._outcomes.add(report.outcome)
            case "finished":
                if "rerun" not in self._outcomes:  # else it gets a second try
                    self._finished.add(message["nodeid"])
                self._outcomes.clear()

    def _ended_early(self, reply: Reply) -> GuestError:
        said = f"{reply['stdout']}\n{reply['stderr']}".strip()
        return GuestDied(f"pytest ended in the guest with code {reply['code']}\n{said}", self.machine.console())


class Guests:
    """The guests of tests that need the same of them, one at a time. `obtain_zfs` may take its time."""

    def __init__(self, config: pytest.Config, obtain_zfs: Callable[[], Zfs | None]) -> None:
        self.boots: list[float] = []
        self._config = config
        self._obtain_zfs = obtain_zfs
        self._run: GuestRun | None = None
        self._refusal: LabError | None = None

    def reports_of(self, remaining: list[pytest.Item]) -> list[pytest.TestReport]:
        """Return the first test's reports; the others are those that come after it."""
        item = remaining[0]
        if self._run is None:
            try:
                self._begin(remaining)
            except LabError as error:
                return [_report(item, "setup", error)]
        assert self._run is not None
        try:
            reports = self._run.reports_of(item.nodeid, _option(item, "deadline", _TEST_SECONDS))
        except GuestError as error:
            self.stop()
            return [_report(item, "call", error)]
        for report in reports:
            if report.failed:
                report.sections.append(("Guest console", self._run.machine.console()))
        if remaining == [item]:
            # not at the session's end: pytest-cov combines its data before that
            try:
                self._run.finish()
            except GuestError as error:
                reports.append(_report(item, "teardown", error))
            self.stop()
        return reports

    def stop(self) -> None:
        """End the guest, if there is one."""
        if self._run is not None:
            self._run.stop()
            self._run = None

    def _begin(self, items: list[pytest.Item]) -> None:
        if self._refusal is not None:
            raise self._refusal
        try:
            check_host()
            zfs = self._obtain_zfs()
            try:
                self._boot(items, zfs)
            except GuestDied:  # an emulated processor does so once in a long while, before any test has run
                self.stop()
                self._boot(items, zfs)
        except LabError as error:
            self.stop()
            self._refusal = error
            raise

    def _boot(self, items: list[pytest.Item], zfs: Zfs | None) -> None:
        self._run = GuestRun(self._config, items, zfs)
        self.boots.append(self._run.machine.boot_seconds)
        self._run.wait_for_start()


class HostSide:
    """Runs the `vm` tests of this session in guests."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._obtaining: Obtaining | None = None
        self._plain = Guests(config, lambda: None)
        self._with_zfs = Guests(config, lambda: self._obtaining.result if self._obtaining else None)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=_needs_zfs)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        if item.get_closest_marker(MARKER) is None:
            return None
        self._begin_to_obtain(item.session)
        guests = self._guests_for(item)
        ours = [each for each in item.session.items if each.get_closest_marker(MARKER)]
        ours = [each for each in ours if self._guests_for(each) is guests]
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in guests.reports_of(ours[ours.index(item) :]):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        # of this side nothing was set up for it, but what an earlier test left for the tests of this directory goes
        item.session._setupstate.teardown_exact(nextitem)
        return True

    def pytest_sessionfinish(self) -> None:
        self._plain.stop()
        self._with_zfs.stop()
        if self._obtaining:
            self._obtaining.stop()

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for seconds in [*self._plain.boots, *self._with_zfs.boots]:
            terminalreporter.write_line(f"lab: the machine booted in {seconds:.1f} s")

    def _begin_to_obtain(self, session: pytest.Session) -> None:
        # not at the collection: of several workers, each collects all tests, and one runs those of the guest
        if self._obtaining or not any(map(_needs_zfs, session.items)):
            return
        with suppress(Unavailable):  # the tests themselves will tell
            check_host()
            self._obtaining = Obtaining()

    def _guests_for(self, item: pytest.Item) -> Guests:
        return self._with_zfs if _needs_zfs(item) else self._plain


def _option(item: pytest.Item, name: str, otherwise: Any) -> Any:
    """Return what the markers of a test say, the closest first."""
    return next((mark.kwargs[name] for mark in item.iter_markers(MARKER) if name in mark.kwargs), otherwise)


def _needs_zfs(item: pytest.Item) -> bool:
    return bool(_option(item, "zfs", otherwise=False))


def _report(item: pytest.Item, when: Literal["setup", "call", "teardown"], error: LabError) -> pytest.TestReport:
    """Return the report of a test that the lab itself has failed. What is merely not to be had here is no failure."""
    is_skipped = isinstance(error, Unavailable) and os.environ.get("CI") != "true"
    path, line, _ = item.location
    return pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords={},
        outcome="skipped" if is_skipped else "failed",
        longrepr=(path, line or 0, f"Skipped: {error}") if is_skipped else str(error),
        when=when,
        sections=[("Guest console", error.console)] if isinstance(error, GuestError) else [],
    )


def _pytest_arguments(config: pytest.Config, items: Iterable[pytest.Item]) -> list[str]:
    return [
        f"--rootdir={config.rootpath}",
        *([f"--config-file={config.inipath}"] if config.inipath else []),
        "--basetemp=/run/lab/tmp",
        *("-p", "no:xdist"),
        *([f"--reruns={reruns}"] if (reruns := config.getoption("--reruns", None)) else []),
        *("-p", "no:hypothesispytest"),  # its import alone takes 6 s of emulated CPU; @given works without it
        f"--tb={config.option.tbstyle}",
        f"--verbosity={config.option.verbose}",
        *(["--showlocals"] if config.option.showlocals else []),
        *(item.nodeid for item in items),
    ]


def _coverage_arguments() -> list[str]:
    """Return how the guest's Python measures what this one measures, if it does."""
    measured = coverage.Coverage.current()
    if measured is None:
        return []
    source = measured.get_option("run:source")
    return [
        *("-m", "coverage", "run", "--parallel-mode", f"--data-file={RESULTS}/{_COVERAGE}"),
        *([f"--source={','.join(source)}"] if isinstance(source, list) and source else []),
        *(["--branch"] if measured.get_option("run:branch") else []),
    ]


def _coverage_file(config: pytest.Config) -> Path | None:
    """Return the file beside which this Python's own coverage looks for more data to combine, if it measures."""
    measured = coverage.Coverage.current()
    return config.invocation_params.dir / str(measured.get_option("run:data_file")) if measured else None
