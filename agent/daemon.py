"""The wiring: configuration, host, collectors, scheduler, server and signals. Only this file meets all of them."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import select
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import structlog

from agent import __version__
from agent.collector import Collector
from agent.command import HostCommands
from agent.config import Config, load
from agent.errors import ConfigError, StartError
from agent.exposition import Form, Pages
from agent.host import Host
from agent.ioctl import HelperIoctls
from agent.latches import Latches
from agent.metric import label
from agent.privileges import lacks
from agent.probe import HelperProber
from agent.runner import Outcome
from agent.scheduler import Scheduler, Worker
from agent.selfmetrics import Reload, SelfPage
from agent.server import Server
from agent.sightings import Sightings
from agent.status import Agent, Status, build, read_node
from agent.webconfig import WebConfig
from agent.webconfig import load as load_web

# what is wrong with the filesystem then, not with what we were told
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
STOP_WITHIN = 1.0  # seconds for collectors to end; the whole stop is promised within two
SAVE_WITHIN = 0.5  # seconds for the last save: its disk may hang
KEEP_EVERY = 5.0  # seconds between looks at what is overdue, unsaved, or changed on disk
REFRESH_EVERY = 10.0  # seconds after which the agent's own page is made again without any news
DESCRIPTORS = 65536
_M_ARENA_MAX = -8  # malloc.h


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says; everything that cannot be reloaded."""

    listen_address: str = "0.0.0.0:10940"
    procfs: str = "/proc"
    sysfs: str = "/sys"
    rootfs: str = "/"
    dev: str = "/dev"
    state: Path | None = None
    config_file: str | None = None
    web_config_file: str | None = None
    has_lifecycle: bool = False
    switches: Mapping[str, bool] = field(default_factory=dict)
    runtimes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def load(self, collectors: Sequence[Collector]) -> Config:
        """Return the configuration as file and command line have it now."""
        return load(self.config_file, collectors, self.switches, self.runtimes)


class Engine:
    """Collectors at work and the pages they make: all of the agent but its web server."""

    def __init__(self, options: Options, config: Config, node: str, *, has_process: bool = True) -> None:
        self.pages = Pages()
        self.reload = Reload(succeeded_at=time.time())
        self.prober = HelperProber()
        self.ioctls = HelperIoctls()
        self.commands = HostCommands()
        self.latches = Latches(options.state / "watermarks.json" if options.state else None)
        self.sightings = Sightings(options.state / "findings.json" if options.state else None)
        self.latches.load()
        self.sightings.load()
        places = options.procfs, options.sysfs, options.rootfs, options.dev
        self._host = Host(*places, self.prober, ioctls=self.ioctls, commands=self.commands)
        self.scheduler = Scheduler(self._host, self.latches, self.pages, node, options.state)
        self._self_page = SelfPage(self.pages, self.reload, has_process=has_process)
        self._publishing = threading.Lock()
        self._told: dict[str, Outcome] = {}
        self._news: list[tuple[object, ...]] = []
        self._started_at = time.time()
        self._config_file = label(options.config_file) if options.config_file is not None else None
        self._node = node
        self.apply(config)

    def apply(self, config: Config) -> None:
        """Run what this configuration says."""
        self._runbook_url = config.rules.runbook_url
        self._node_status = read_node(self._host)
        self._lacking = {plan.name: lacks(self._host, plan.collector.wants) for plan in config.plans}
        self.scheduler.apply(config.plans)
        self.publish()

    def publish(self) -> None:
        """Bring the agent's own page and the times of findings up to date."""
        with self._publishing:
            for name, worker in self.scheduler.workers.items():
                self._see(name, worker.runner.outcome)
            self._self_page.publish(self.scheduler.workers)

    def has_news(self) -> bool:
        """Return whether the agent's own page says something else now than times and counts alone."""
        told, self._news = self._news, [_news(worker) for worker in self.scheduler.workers.values()]
        return told != self._news

    def _see(self, name: str, outcome: Outcome) -> None:
        """Remember what a new run has found; one that failed says nothing."""
        if outcome is not self._told.get(name) and outcome.is_conclusive:
            self._told[name] = outcome
            self.sightings.update(name, {found.key for found in outcome.findings}, outcome.last_success or time.time())

    def status(self, most: int | None = None) -> Status:
        """Return all that there is to tell, with the `most` fullest watermark targets."""
        agent = Agent(
            version=__version__,
            node=self._node,
            started_at=self._started_at,
            config_file=self._config_file,
            config_reloaded=self.reload.is_successful,
            ready=self.scheduler.is_ready,
        )
        workers, url = self.scheduler.workers, self._runbook_url
        places = agent, self._node_status, workers, self.pages, self.sightings
        return build(*places, lacking=self._lacking, runbook_url=url, most=most)

    def save_if_needed(self) -> None:
        """Write what outlives the agent, where it has changed."""
        self.latches.save_if_needed()
        self.sightings.save_if_needed()

    def _save(self) -> None:
        self.latches.save()
        self.sightings.save()

    def stop(self) -> None:
        """End all collectors, save what outlives the agent, end the helper processes."""
        self.scheduler.stop(STOP_WITHIN)
        saver = threading.Thread(target=self._save, daemon=True)
        saver.start()
        saver.join(SAVE_WITHIN)
        self.prober.close()
        self.ioctls.close()
        self.commands.close()


class Daemon:
    """The agent as a service; also the `App` that its web server serves."""

    def __init__(self, options: Options, collectors: Sequence[Collector]) -> None:
        self.lifecycle = options.has_lifecycle
        self._options = options
        self._collectors = collectors
        self._log = structlog.get_logger()
        self._node = os.uname().nodename
        self._reloading = threading.Lock()
        self._wake_reader, self._wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._is_stopping = False
        self._is_reload_wanted = False
        self._config = options.load(collectors)
        self._web = load_web(options.web_config_file) if options.web_config_file else None
        self._server = Server(options.listen_address, self, self._web)
        self._engine = Engine(options, self._config, self._node)

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; SIGHUP reloads the configuration."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        # Python calls a handler between two of its instructions: a signal just before the poll would wait for the next
        signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
        for target in (self._keep_page, self._keep_files):
            threading.Thread(target=target, name=target.__name__.strip("_"), daemon=True).start()
        self._server.start()
        if self._options.state is None:
            self._log.warning("watermark levels are not kept over restarts", reason="no state directory")
        self._log.info("serving", url=self._server.url, version=__version__, config=self._options.config_file or "none")
        poller = select.poll()
        poller.register(self._wake_reader, select.POLLIN)
        while not self._is_stopping:
            poller.poll()
            os.read(self._wake_reader, 4096)
            if self._is_reload_wanted:
                self._is_reload_wanted = False
                with contextlib.suppress(ConfigError):  # logged and counted by reload
                    self.reload()
        signal.set_wakeup_fd(-1)
        self._log.info("stopping")
        self._server.stop()
        self._engine.stop()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._is_reload_wanted = True
        else:
            self._is_stopping = True
        # a pipe, as no lock may be taken here: the main thread may hold the very same one
        with contextlib.suppress(BlockingIOError):  # full: it will wake up
            os.write(self._wake_writer, b".")

    def _keep_page(self) -> None:
        """Keep the agent's own page current: at once where a run has found something else, every few seconds if not."""
        scheduler, due = self._engine.scheduler, 0.0
        while not self._is_stopping:
            scheduler.changed.wait(KEEP_EVERY)
            scheduler.changed.clear()
            scheduler.tell_overdue()
            if self._engine.has_news() or time.monotonic() >= due:
                self._engine.publish()
                due = time.monotonic() + REFRESH_EVERY

    def _keep_files(self) -> None:
        """Keep what lies on disks: save the state, take over changed certificates. A sick disk hangs only this."""
        while not self._is_stopping:
            time.sleep(KEEP_EVERY)
            self._engine.save_if_needed()
            if self._web is not None and self._web.changed():
                self._reload_web(self._web)

    def _reload_web(self, web: WebConfig) -> None:
        try:
            self._web = load_web(web.path)
        except ConfigError as error:
            self._log.error("web configuration not reloaded", error=str(error))
        else:
            self._server.use(self._web)
            self._log.info("web configuration reloaded", path=web.path)

    # -- what the server asks --

    def metrics(self, form: Form, *, gzip: bool) -> list[bytes]:
        """Return the exposition in ready parts."""
        return self._engine.pages.members(form, gzip=gzip)

    def is_ready(self) -> bool:
        """Return whether the first round is complete."""
        return self._engine.scheduler.is_ready

    def reload(self) -> None:
        """Load the configuration again; a bad one is refused with a ConfigError and the old one stays in force."""
        reload = self._engine.reload
        with self._reloading:
            try:
                self._config = self._options.load(self._collectors)
                self._engine.apply(self._config)
            except ConfigError as error:
                reload.is_successful = False
                self._engine.publish()  # before it is told, as whoever reads the log may look
                self._log.error("configuration not reloaded", error=str(error))
                raise
            reload.is_successful, reload.succeeded_at = True, time.time()
            self._engine.publish()
            self._log.info("configuration reloaded", config=self._options.config_file)

    def status(self, most: int | None = None) -> Status:
        """Return all that there is to tell, with the `most` fullest watermark targets."""
        return self._engine.status(most)


def _news(worker: Worker) -> tuple[object, ...]:
    outcome = worker.runner.outcome
    levels = [(table.targets, dict(table.raised)) for table in outcome.levels]
    findings = [found.key for found in outcome.findings]
    is_so = worker.is_first_done, worker.is_overdue, outcome.is_up, outcome.is_supported, outcome.reason
    return *is_so, outcome.dropped, dict(worker.runner.errors), levels, findings


def once(options: Options, collectors: Sequence[Collector]) -> bytes:
    """Return one complete exposition: every collector run once; those past their deadline are overdue."""
    config = options.load(collectors)
    engine = Engine(options, config, os.uname().nodename, has_process=False)
    try:
        while not engine.scheduler.is_ready:
            engine.scheduler.changed.wait(0.05)
            engine.scheduler.changed.clear()
        engine.publish()
        return b"".join(engine.pages.members("text", gzip=False))
    finally:
        engine.stop()


def prepare_state(path: Path) -> Path:
    """Make the state directory; raises StartError when it cannot be written.

    A full or read-only filesystem is no reason not to start: the agent is there to tell of it. What could not be
    written is tried again.
    """
    try:
        path.mkdir(mode=0o750, parents=True, exist_ok=True)
        probe = path / ".write-test"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        if error.errno not in FULL:
            raise StartError(f"--path.state {path}: cannot be written: {error.strerror}") from error
        structlog.get_logger().warning("state cannot be written for now", path=str(path), error=error.strerror)
    return path


def prepare_process() -> None:
    """Hold glibc to two arenas, as one per thread would cost megabytes for nothing; allow all descriptors we may have.

    systemd's soft limit of 1,024 is for programs that use select(2); kept descriptors of cgroups are worth more.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
