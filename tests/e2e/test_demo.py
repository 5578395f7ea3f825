"""The demonstration comes up, and Ctrl-C leaves nothing of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.stack import fetch
from tests.generate import ROOT


def processes(text: str) -> list[str]:
    """Return the command lines that have a text in them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in line:
            found.append(line)
    return found


@pytest.mark.e2e
@pytest.mark.root
@pytest.mark.slow
def test_ctrl_c_removes_everything() -> None:
    command = [sys.executable, "-m", "tests.demo"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True) as demo:
        assert demo.stdout is not None
        shown = ""
        for line in demo.stdout:
            shown += line
            if "Ctrl-C" in line:
                break
        match = re.search(r"(/tmp\S+/ullage-demo-\w+|/tmp/ullage-demo-\w+)/ext4", shown)
        assert match is not None, shown
        directory = match[1]
        for url in re.findall(r"http://\S+", shown):
            assert fetch(url)
        assert processes(directory)
        os.killpg(demo.pid, signal.SIGINT)  # as a terminal does, to all in the foreground
        demo.stdout.read()
        assert demo.wait(60) == 0
    assert not os.path.exists(directory)
    assert directory not in Path("/proc/self/mountinfo").read_text()
    assert directory not in subprocess.run(["losetup", "-a"], check=True, capture_output=True, text=True).stdout
    assert processes(directory) == []
