"""A runtime's daemon as a process: how it is ended, and how it hangs."""

from __future__ import annotations

import signal
import subprocess

WAIT = 120.0  # seconds until a test gives up
_END = 30.0  # seconds to end by itself


class Daemon:
    """What a daemon does at signals; whoever starts it sets `process`."""

    process: subprocess.Popen[bytes]

    def quit(self) -> None:
        """End the daemon alone, as a restart of its service does; `start` begins it anew."""
        self.process.terminate()
        self.process.wait(WAIT)

    def kill(self) -> None:
        """End the daemon in the middle of all it does; `start` begins it anew."""
        self.process.kill()
        self.process.wait(WAIT)

    def hang(self) -> None:
        """Have the daemon answer nothing until `wake`."""
        self.process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        """Have the daemon go on."""
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """End the daemon for good, by force if it does not in time."""
        self.process.terminate()
        try:
            self.process.wait(_END)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
