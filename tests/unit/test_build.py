"""The wheel: when `make build` makes another, and that `make image` takes the one that is there."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.generate import ROOT

# pip and docker, as far as the Makefile needs them; no two wheels are alike
PIP = """#!/bin/sh
mkdir -p dist
date +%s%N > "dist/ullage-$(cut -d '"' -f 2 agent/__init__.py)-py3-none-any.whl"
"""
DOCKER = """#!/bin/sh
cat dist/*.whl > shipped
echo "$@" > asked
"""
PLAIN = ("pyproject.toml", "README.md", "LICENSE", "requirements-build.lock", "requirements-dev.lock")


class Checkout:
    """A checkout as small as the Makefile can do with, its environment up to date."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("agent/__init__.py", "agent/gone.py", "collectors/__init__.py", *PLAIN):
            self.write(name, "")
        self.release("1.0")
        shutil.copy(ROOT / "Makefile", root)
        for name, script in ((".venv/bin/python", PIP), ("bin/docker", DOCKER)):
            self.write(name, script).chmod(0o755)
        self.write(".venv/dev", "")

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def release(self, version: str) -> None:
        self.write("agent/__init__.py", f'__version__ = "{version}"\n')

    def make(self, target: str) -> None:
        environment = {"PATH": f"{self.root}/bin:{os.environ['PATH']}"}
        done = subprocess.run(
            ["make", target], cwd=self.root, env=environment, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        time.sleep(0.02)  # what is changed now is newer: times of files go in steps of up to 10 ms

    def wheels(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in (self.root / "dist").glob("ullage-*.whl")}


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    made = Checkout(tmp_path)
    made.make("build")
    return made


def test_a_new_version_leaves_no_wheel_of_the_old_one_and_those_of_others(checkout: Checkout) -> None:
    checkout.write("dist/psutil-7.0.0-cp311.whl", "")
    checkout.release("1.1")
    checkout.make("build")
    assert list(checkout.wheels()) == ["ullage-1.1-py3-none-any.whl"]
    assert (checkout.root / "dist" / "psutil-7.0.0-cp311.whl").exists()


def test_the_image_is_made_of_the_wheel_that_is_there(checkout: Checkout) -> None:
    built = checkout.wheels()
    checkout.make("image")
    assert checkout.wheels() == built
    assert (checkout.root / "shipped").read_text() == built["ullage-1.0-py3-none-any.whl"]
    assert "--tag ullage:1.0 --build-arg VERSION=1.0 " in (checkout.root / "asked").read_text()


@pytest.mark.parametrize("changed", ["agent/__init__.py", "collectors/__init__.py", "pyproject.toml"])
def test_a_change_of_what_belongs_in_the_wheel_makes_another(checkout: Checkout, changed: str) -> None:
    built = checkout.wheels()
    (checkout.root / changed).touch()
    checkout.make("build")
    assert checkout.wheels() != built


def test_a_module_that_is_gone_makes_another_wheel(checkout: Checkout) -> None:
    built = checkout.wheels()
    (checkout.root / "agent" / "gone.py").unlink()
    checkout.make("build")
    assert checkout.wheels() != built


def test_other_files_make_none(checkout: Checkout) -> None:
    built = checkout.wheels()
    checkout.write("tests/test_x.py", "")
    checkout.make("build")
    assert checkout.wheels() == built
