"""Budget: a share of one processor for work that may take long, done in slices with pauses between them.

The thread is not made nice: it holds the interpreter's lock, and all others would wait while it does not get a
processor.
"""

from __future__ import annotations

import time
from collections.abc import Callable

SLICE = 0.01  # seconds of processor time
PAUSE = 0.04  # seconds after each
AT_MOST = 10.0  # seconds that one round takes, however slow the disk
SAVED_UP = 60.0  # seconds for which an unused budget is kept


class Budget:
    """What one thread may spend. `share` is that of one processor; what a round does not use is saved up."""

    def __init__(
        self,
        share: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.thread_time,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._share = share
        self._clock, self._cpu, self._pause = clock, cpu, pause
        self._left = share * SAVED_UP  # seconds of processor time, less than none after one long step
        self._began = clock()
        self._charged_at = self._since_pause = 0.0

    def begin(self) -> None:
        """Begin a round: grant what has become due since the last one."""
        now = self._clock()
        self._left = min(self._left + self._share * (now - self._began), self._share * SAVED_UP)
        self._began = now
        self._charged_at, self._since_pause = self._cpu(), 0.0

    def goes_on(self) -> bool:
        """Charge what was spent since the last call, pause after a slice, and return whether something is left."""
        now = self._cpu()
        spent = now - self._charged_at
        self._charged_at = now
        self._left -= spent
        self._since_pause += spent
        if self._since_pause >= SLICE:
            self._since_pause = 0.0
            self._pause(PAUSE)
        return self._left > 0 and self._clock() - self._began < AT_MOST

    def is_slice_over(self) -> bool:
        """Return whether a slice has been spent since the last `goes_on`."""
        return self._cpu() - self._charged_at >= SLICE
