"""Uevents: the kernel tells which devices come, go and change, and costs nothing while none does.

pyudev on the kernel's own multicast group: that is heard in a container too, where no udevd speaks.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Iterable

from agent.errors import Failed, from_os


class Uevents:
    """A thread that calls `told` with the subsystem, such as `block`, of each device that comes, goes or changes.

    After a flood in which events were lost, every subsystem is told. Raises HostError where nothing can be heard.
    """

    def __init__(self, subsystems: Iterable[str], told: Callable[[str], None]) -> None:
        self.subsystems = frozenset(subsystems)
        self._told = told
        try:
            import pyudev  # noqa: PLC0415  4 MiB that only who listens pays

            self._monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
            for subsystem in self.subsystems:
                self._monitor.filter_by(subsystem)
            self._monitor.start()
            self._stop_reader, self._stop_writer = os.pipe2(os.O_CLOEXEC)
        except ImportError as error:  # libudev.so is not on this machine
            raise Failed("udev", str(error)) from error
        except OSError as error:
            raise from_os("udev", error) from error
        self._thread = threading.Thread(target=self._live, name="uevents", daemon=True)
        self._thread.start()

    def _live(self) -> None:
        poller = select.poll()
        poller.register(self._stop_reader, select.POLLIN)
        poller.register(self._monitor.fileno(), select.POLLIN)
        while True:
            if any(descriptor == self._stop_reader for descriptor, _ in poller.poll()):
                return
            try:
                device = self._monitor.poll(timeout=0)
            except OSError:  # ENOBUFS: the socket's buffer was full
                for subsystem in self.subsystems:
                    self._told(subsystem)
                continue
            if device is not None:
                self._told(str(device.subsystem))

    def close(self) -> None:
        """End the thread and close all descriptors."""
        os.write(self._stop_writer, b".")
        self._thread.join()
        os.close(self._stop_reader)
        os.close(self._stop_writer)
