"""Every exception that Ullage raises on purpose.

UllageError
├── ConfigError         what a person gave us is wrong; names the file, the key, the value, what was expected
├── StartError          the agent cannot start: a port in use, a state directory that cannot be made
├── ContractError       a collector did what its declaration does not allow; a bug of ours
├── Unsupported         a run found that this node has nothing for its collector; says so in a few words
└── HostError           the kernel or a runtime refused one target; has `path` and `reason`
    ├── Vanished            it is gone: ENOENT, ENOTDIR, ESRCH, ENODEV, ENXIO
    ├── Denied              we may not: EPERM, EACCES
    ├── Malformed           it answered something that its documentation does not allow
    ├── Unreachable         it exists, but our mount namespace does not show it
    ├── Stuck               it did not answer within its deadline
    └── Failed              any other error of the operating system (EIO, ...)
"""

from __future__ import annotations

import errno

_VANISHED = {errno.ENOENT, errno.ENOTDIR, errno.ESRCH, errno.ENODEV, errno.ENXIO}
_DENIED = {errno.EPERM, errno.EACCES}


class UllageError(Exception):
    """The root of the tree above."""


class ConfigError(UllageError):
    """A person's input is wrong. The message names file, key, value and what was expected."""


class StartError(UllageError):
    """The agent cannot start, and the configuration is not the reason."""


class ContractError(UllageError):
    """A collector broke its own declaration."""


class Unsupported(UllageError):
    """A run found that this node has nothing for its collector: no error, see `Collector.needs`."""


class HostError(UllageError):
    """One target refused. `reason` is a label value of `ullage_collector_errors_total`."""

    reason = "failed"

    def __init__(self, path: str, detail: str = "") -> None:
        super().__init__(f"{path}: {detail or self.reason}")
        self.path = path
        self.detail = detail or self.reason


class Vanished(HostError):
    """The target is gone."""

    reason = "vanished"


class Denied(HostError):
    """A permission or capability is missing."""

    reason = "permission"


class Malformed(HostError):
    """The target's content is not what its documentation says."""

    reason = "malformed"


class Unreachable(HostError):
    """The target exists on the host, but not in our view of it."""

    reason = "unreachable"


class Stuck(HostError):
    """The target did not answer within its deadline."""

    reason = "stuck"


class Failed(HostError):
    """The operating system gave another error."""

    reason = "failed"


def from_os(path: str, error: OSError) -> HostError:
    """Return the typed error for an OSError met at `path`; raise it `from` the original."""
    detail = error.strerror or str(error)
    if error.errno in _VANISHED:
        return Vanished(path, detail)
    if error.errno in _DENIED:
        return Denied(path, detail)
    return Failed(path, detail)
