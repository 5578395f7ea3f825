"""Every reader under coverage-guided fuzzing, from what real kernels gave. libFuzzer ends its process: one for each."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from tests.fuzz.planted import SEED
from tests.fuzz.targets import TARGETS

pytest.importorskip("atheris", reason="atheris has wheels for x86_64 only")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "tests" / "fuzz" / "corpus"
RUNS = {"btrfs": 100_000, "mountinfo": 15_000, "slabinfo": 100_000}  # by their speed: seconds each
MANY = 8_000  # for the others
ADDR_NO_RANDOMIZE = 0x0040000  # linux/personality.h
ENDLESS = 60  # seconds on one input: so long takes nothing but a loop that never ends


def fuzz(name: str, corpus: Path, kept: Path, runs: int) -> subprocess.CompletedProcess[str]:
    """Fuzz a target with the same inputs each time. What it fails on lies in `kept`."""
    found = kept / "found"
    found.mkdir()
    command = [sys.executable, "-m", "tests.fuzz", name, f"-runs={runs}", "-seed=1", "-reload=0"]
    command += [f"-timeout={ENDLESS}", f"-artifact_prefix={kept}/failed-", str(found), str(corpus)]
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    # libFuzzer learns from addresses that were compared: they have to be the same. Where seccomp refuses, they are not
    same = partial(ctypes.CDLL(None).personality, ADDR_NO_RANDOMIZE)
    return subprocess.run(
        command,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=environment,
        preexec_fn=same,
    )


def failures(kept: Path) -> Sequence[bytes]:
    return [path.read_bytes() for path in sorted(kept.glob("failed-*"))]


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_is_too_strange_for_a_reader(name: str, tmp_path: Path) -> None:
    runs = RUNS.get(name, MANY)
    done = fuzz(name, CORPUS / name, tmp_path, runs)
    again = [f"from tests.fuzz.targets import TARGETS; TARGETS[{name!r}]({raw!r})" for raw in failures(tmp_path)]
    assert (done.returncode, again) == (0, []), done.stdout[done.stdout.find("Uncaught Python exception") :]
    assert f"Done {runs} runs" in done.stdout


def test_a_planted_bug_is_found(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "seed").write_bytes(SEED)
    done = fuzz("planted", corpus, tmp_path, runs=2_000_000)
    assert done.returncode != 0
    assert "IndexError" in done.stdout
    assert [raw.split(b" ")[4][:2] for raw in failures(tmp_path)] == [b"\xf7{"]
