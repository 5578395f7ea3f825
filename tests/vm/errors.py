"""What the lab raises.

LabError
├── Unavailable         this machine lacks what the lab needs, or Debian's mirror does
└── GuestError          the guest failed; carries the last lines of its console
    ├── GuestDied           it panicked, powered off or never came up
    ├── GuestStuck          it, or a command in it, did not answer in time
    └── CommandFailed       a command in it ended with a code other than 0
"""

from __future__ import annotations


class LabError(Exception):
    """The root of the tree above."""


class Unavailable(LabError):
    """The lab cannot be had here; the message says why in a few words."""


class GuestError(LabError):
    """The guest failed. `console` is what its kernel said last."""

    def __init__(self, message: str, console: str) -> None:
        super().__init__(message)
        self.console = console


class GuestDied(GuestError):
    """The guest is gone, or never came."""


class GuestStuck(GuestError):
    """The guest did not answer in time."""


class CommandFailed(GuestError):
    """A command failed in the guest."""
