"""Whether a filesystem keeps the types of directory entries (d_type), which overlayfs needs.

Source: getdents64(2) on the directories that are there; nothing is written. A filesystem without them gives DT_UNKNOWN
for each entry.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from agent import dirents
from agent.errors import Unreachable, Vanished
from agent.host import Host
from collectors.readers.mountinfo import Mount, carrier, parse_visible

OURS = "proc/self/mountinfo"


@dataclass(slots=True)
class EntryTypes:
    """The look at directories; `read` gives the types of one's entries."""

    read: Callable[[str], Mapping[bytes, int]] = dirents.types
    _text: bytes = b""
    _own: Mapping[str, Mount] = field(default_factory=dict)

    def kept(self, host: Host, path: str, mount: Mount, top: Mapping[str, Mount]) -> bool | None:
        """Return whether the mount that carries a path keeps types, None where there is no entry to tell by.

        `top` has the host's visible mounts by their points. Raises HostErrors; Unreachable where our own view has not
        got the mount.
        """
        while path != "/" and carrier(top, path) == mount:
            if not self._reaches(host, path, mount.device):
                raise Unreachable(path)
            try:
                found = self.read(host.real(path))
            except Vanished:  # a driver that was used never, or whose files are elsewhere
                found = {}
            if found:
                return dirents.UNKNOWN not in found.values()
            path = posixpath.dirname(path)
        return None

    def _reaches(self, host: Host, path: str, device: str) -> bool:
        """Return whether a path of the host's leads us to that device: we may not have the mount in our view."""
        text = host.read(OURS)
        if text != self._text:
            self._text, self._own = text, {mount.mountpoint: mount for mount in parse_visible(text)}
        found = carrier(self._own, host.real(path))
        return found is not None and found.device == device
