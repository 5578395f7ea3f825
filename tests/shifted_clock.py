"""A clock that one process alone sees set back or forth: the machine's own stays as it is."""

from __future__ import annotations

import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")


class ShiftedClock:
    """What a process's environment needs (`environment`), and the shift that it sees; made with gcc."""

    def __init__(self, directory: Path) -> None:
        library = directory / "shifted_clock.so"
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE)], check=True)
        self._file = directory / "shift"
        self.shift(0)
        self.environment = {"LD_PRELOAD": str(library), "SHIFTED_CLOCK": str(self._file)}

    def shift(self, seconds: int) -> None:
        """Have it run so many seconds before (or, less than 0, behind) the machine's clock from now on."""
        with open(self._file, "r+b" if self._file.exists() else "wb") as file:  # the same pages as are mapped
            file.write(seconds.to_bytes(8, "little", signed=True))
