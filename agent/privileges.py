"""What collectors want to be allowed: capabilities and devices, what is lost without, and how each is given.

Source: CapEff of /proc/self/status (man 5 proc_pid_status), a mask in hexadecimal digits; linux/capability.h.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from agent.errors import HostError
from agent.host import Host

STATUS = "proc/self/status"
_EFFECTIVE = re.compile(rb"^CapEff:\s*([0-9a-f]{1,16})$", re.MULTILINE)
# the bits that each is one of: what also allows it
_BITS = {
    "DAC_OVERRIDE": (1,),
    "DAC_READ_SEARCH": (2, 1),
    "SYS_RAWIO": (17,),
    "SYS_CHROOT": (18,),
    "SYS_PTRACE": (19,),
    "SYS_ADMIN": (21,),
    "SYSLOG": (34, 21),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """What a collector wants. Without it, it goes on without what `lost` says.

    `capabilities` are named without CAP_. `device` is a shell pattern of the host's paths, and `there` one of what only
    those nodes have on which it matters; empty: it matters on all. `reasons` are those with which the collector says
    that it can tell nothing without; where it has none, what is refused is counted as `permission`. Raises ValueError
    for a capability that is not known here.
    """

    lost: str
    capabilities: tuple[str, ...] = ()
    device: str = ""
    there: str = ""
    reasons: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse capabilities whose bits are not known."""
        if unknown := set(self.capabilities) - set(_BITS):
            message = f"unknown capabilities: {', '.join(sorted(unknown))}"
            raise ValueError(message)


@dataclass(frozen=True, slots=True)
class Lack:
    """A want that is not met: the capabilities and the device that are not there."""

    want: Want
    capabilities: tuple[str, ...]
    device: str


def lacks(host: Host, wants: Iterable[Want]) -> list[Lack]:
    """Return what is wanted and not there. Nothing is said of capabilities where the kernel does not tell them."""
    effective = _effective(host)
    found = []
    for want in wants:
        if want.there and not host.glob(want.there):
            continue
        capabilities = tuple(name for name in want.capabilities if not any(effective >> bit & 1 for bit in _BITS[name]))
        device = want.device if want.device and not host.glob(want.device) else ""
        if capabilities or device:
            found.append(Lack(want, capabilities, device))
    return found


def _effective(host: Host) -> int:
    try:
        match = _EFFECTIVE.search(host.read(STATUS))
    except HostError:
        match = None
    return int(match[1], 16) if match is not None else -1  # all of them


def grants(capabilities: Sequence[str], devices: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield how these are given: where, and the lines to write there. Devices are missing in containers alone."""
    words = [f"--cap-add {name}" for name in capabilities]
    words += [f"--device {device}" if "*" not in device else f"and --device for each {device}" for device in devices]
    yield "Docker", [" ".join(words)]
    if devices:
        yield "Kubernetes", ["the component privileged; in the Helm chart, profile: privileged"]
    else:
        yield "Kubernetes", [f"securityContext: {{capabilities: {{add: [{', '.join(capabilities)}]}}}}"]
    if capabilities:
        names = " ".join(f"CAP_{name}" for name in capabilities)
        lines = ["[Service]", f"CapabilityBoundingSet={names}", f"AmbientCapabilities={names}"]
        yield "systemd, by systemctl edit ullage, and a restart of it", lines
