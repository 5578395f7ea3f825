"""`python -m tests.soak --minutes 30`: soak the agent and print what it held; exits with 1 when that is not flat."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from tests.soak.soak import TOOLS, soak


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="for how long (%(default)s)")
    minutes = parser.parse_args().minutes
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if os.geteuid() != 0 or missing:
        print(f"a soak needs root, and {', '.join(missing) or 'nothing else'}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="ullage-") as directory:
        record = soak(Path(directory), minutes)
    print(f"{minutes:g} minutes: {record}")
    return 0 if all(verdict.is_flat for verdict in record.verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
