"""`python -m tests.fuzz [READER [FLAG...] [FILE or DIRECTORY...]]`: fuzz one reader until it fails; or each in turn.

Flags are libFuzzer's (`-help=1`). A file is run alone; into the first directory goes what is found to be interesting.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["collectors", "tests"]):
    from tests.fuzz.planted import fuzz_planted
    from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
RUNS = 200_000  # of each, where none is named


def fuzz(name: str, arguments: list[str]) -> None:
    """Fuzz one target. This ends the process, with 0 only if nothing was found."""
    if all(each.startswith("-") for each in arguments):
        arguments = [*arguments, f"-seed_inputs={','.join(map(str, (CORPUS / name).iterdir()))}"]
    atheris.Setup([f"fuzz-{name}", *arguments], (TARGETS | {"planted": fuzz_planted})[name])
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:]:
        fuzz(sys.argv[1], sys.argv[2:])
    for each in TARGETS:
        subprocess.run([sys.executable, "-m", "tests.fuzz", each, f"-runs={RUNS}"], check=True)
