"""Real Prometheus, Alertmanager, a webhook receiver and the agent, each a process of its own on a free port.

Intervals are short, so that a test sees many evaluations; the binaries are Debian's, or those that the environment
variables PROMETHEUS and ALERTMANAGER name.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.measure import free_port

WAIT = 120.0  # seconds until a test gives up


def fetch(url: str, timeout: float = 10.0) -> bytes:
    with urllib.request.urlopen(url, timeout=timeout) as answer:
        body: bytes = answer.read()
        return body


def until(condition: Callable[[], bool], what: str, seconds: float = WAIT) -> None:
    """Wait until a condition holds; a refused connection is not yet."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if condition():
                return
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds:.0f} s: {what}")


class Program:
    """A child process with its log in a file. It is ended by its own id."""

    def __init__(self, name: str, directory: Path, command: Sequence[str], ready_url: str) -> None:
        self.name = name
        self.log = directory / f"{name}.log"
        self._command = command
        self._ready_url = ready_url
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with open(self.log, "ab") as log:
            # in a session of its own: a terminal's Ctrl-C is for who started us
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            until(self._is_ready, f"{self.name} is ready")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log.read_text(errors='replace')[-3000:]}") from error

    def _is_ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            text = self.log.read_text(errors="replace")
            raise AssertionError(f"{self.name} ended with {self._process.returncode}:\n{text[-3000:]}")
        try:
            return bool(fetch(self._ready_url))
        except urllib.error.HTTPError:
            return False

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it with a signal and return its exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        try:
            return self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


class Receiver:
    """A webhook receiver that keeps every notification: (status, alert name, labels)."""

    def __init__(self) -> None:
        self.notifications: list[tuple[str, str, dict[str, str]]] = []
        notifications = self.notifications

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                for alert in body["alerts"]:
                    notifications.append((alert["status"], alert["labels"]["alertname"], alert["labels"]))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def of(self, alert: str) -> list[str]:
        """Return the statuses that were notified of one alert, in order."""
        return [status for status, name, _ in self.notifications if name == alert]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Stack:
    """Agent, Prometheus, Alertmanager and receiver, wired together.

    `alertmanager` is another configuration than one that tells the receiver of everything. With `is_hurried` no alert
    waits for longer than a second. `others` are more targets: their `host:port` by the name of the node.
    """

    def __init__(
        self,
        directory: Path,
        config: str,
        alertmanager: str = "",
        *,
        is_hurried: bool = False,
        others: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self._is_hurried = is_hurried
        self._others = others or {}
        self.receiver = Receiver()
        self._agent_port, prometheus_port, alertmanager_port = free_port(), free_port(), free_port()
        self.url = f"http://127.0.0.1:{prometheus_port}"
        self.alertmanager_url = f"http://127.0.0.1:{alertmanager_port}"
        self.agent_url = f"http://127.0.0.1:{self._agent_port}"
        (directory / "ullage.yml").write_text(config)
        (directory / "rules.yml").write_bytes(self._rules())
        (directory / "prometheus.yml").write_text(self._prometheus_config(alertmanager_port))
        (directory / "alertmanager.yml").write_text(alertmanager or self._alertmanager_config())
        python = [sys.executable, "-m", "agent"]
        self.agent = Program(
            "agent",
            directory,
            [
                *(*python, "run", f"--web.listen-address=127.0.0.1:{self._agent_port}"),
                *(f"--config.file={directory}/ullage.yml", f"--path.state={directory}/state"),
            ],
            f"{self.agent_url}/-/ready",
        )
        self.prometheus = Program(
            "prometheus",
            directory,
            [
                *(binary("PROMETHEUS", "prometheus"), f"--config.file={directory}/prometheus.yml"),
                *(f"--storage.tsdb.path={directory}/tsdb", f"--web.listen-address=127.0.0.1:{prometheus_port}"),
            ],
            f"{self.url}/-/ready",
        )
        self.alertmanager = Program(
            "alertmanager",
            directory,
            [
                *(binary("ALERTMANAGER", "prometheus-alertmanager"), "--cluster.listen-address="),
                *(f"--config.file={directory}/alertmanager.yml", f"--storage.path={directory}/alertmanager"),
                f"--web.listen-address=127.0.0.1:{alertmanager_port}",
            ],
            f"{self.alertmanager_url}/-/ready",
        )

    def _rules(self) -> bytes:
        command = [sys.executable, "-m", "agent", "rules", f"--config.file={self.directory}/ullage.yml"]
        rules = subprocess.run(command, check=True, capture_output=True).stdout
        return re.sub(rb"(?m)^( +for:) .*$", rb"\1 1s", rules) if self._is_hurried else rules

    def _prometheus_config(self, alertmanager_port: int) -> str:
        nodes = {"node-1": f"127.0.0.1:{self._agent_port}", **self._others}
        targets = ", ".join(
            f'{{targets: ["{address}"], labels: {{node: {name}, instance: {name}}}}}' for name, address in nodes.items()
        )
        return f"""
global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}
rule_files: ["{self.directory}/rules.yml"]
alerting: {{alertmanagers: [{{static_configs: [{{targets: ["127.0.0.1:{alertmanager_port}"]}}]}}]}}
scrape_configs:
  - job_name: ullage
    honor_labels: true
    static_configs: [{targets}]
"""

    def _alertmanager_config(self) -> str:
        return f"""
route: {{receiver: webhook, group_by: ['...'], group_wait: 0s, group_interval: 1s, repeat_interval: 4h}}
receivers: [{{name: webhook, webhook_configs: [{{url: "{self.receiver.url}", send_resolved: true}}]}}]
"""

    def start(self) -> None:
        for program in (self.alertmanager, self.agent, self.prometheus):
            program.start()

    def query(self, promql: str) -> list[dict[str, Any]]:
        """Return the result vector of an instant query."""
        answer = json.loads(fetch(f"{self.url}/api/v1/query?" + urllib.parse.urlencode({"query": promql})))
        assert answer["status"] == "success", answer
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def value(self, promql: str) -> float | None:
        """Return the value of a query's one series, or None."""
        result = self.query(promql)
        return float(result[0]["value"][1]) if len(result) == 1 else None

    @property
    def evaluations(self) -> int:
        """How often this Prometheus process has evaluated our rules."""
        lines = fetch(f"{self.url}/metrics").decode().splitlines()
        return sum(
            int(float(line.split()[-1])) for line in lines if line.startswith("prometheus_rule_group_iterations_total")
        )

    def evaluate(self, times: int) -> None:
        """Wait until our rules were evaluated so many times more."""
        wanted = self.evaluations + times
        until(lambda: self.evaluations >= wanted, f"{times} evaluations")

    def close(self) -> None:
        for program in (self.prometheus, self.alertmanager, self.agent):
            program.close()
        self.receiver.close()


def seen(stack: Stack, watermark: str, low: float, high: float) -> None:
    """Wait until Prometheus has evaluated a watermark's ratio between the two."""
    until(
        lambda: low <= (stack.value(f"ullage:{watermark}:ratio") or 0) < high,
        f"a ratio of {watermark} from {low} to {high} in Prometheus",
    )


def binary(variable: str, default: str) -> str:
    return os.environ.get(variable) or shutil.which(default) or default


@contextlib.contextmanager
def stack(directory: Path, config: str, alertmanager: str = "", **options: Any) -> Iterator[Stack]:
    """Run everything for the time of a block; the options are those of Stack."""
    made = Stack(directory, config, alertmanager, **options)
    try:
        made.start()
        yield made
    finally:
        made.close()
