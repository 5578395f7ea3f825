"""What is judged of a daemon.json: Docker's storage, by what moby's daemon/graphdriver takes."""

from __future__ import annotations

import json
from collections.abc import Iterator

from agent.manifests import Node
from agent.storagelint.objects import UNKNOWN, Message, Object, Rule, hint_of, nearest, say, short
from collectors.readers import storage_opts

NOT_JSON = Rule("not-json", "error", "{problem}: Docker takes JSON alone, without comments and trailing commas.")
DRIVER_REMOVED = Rule(
    "driver-removed",
    "error",
    "the storage driver {driver} is gone since Docker {version}.0, which does not start with it. Save what you need "
    "(docker save), then set overlay2.",
)
DRIVER_UNKNOWN = Rule("driver-unknown", "error", "Docker has no storage driver {driver}{hint}.")
DRIVER_COPIES = Rule(
    "driver-copies", "warning", "the storage driver vfs copies all of an image for each layer and each container."
)
OPTION = Rule("option-refused", "error", "storage-opts has {option}: {problem}. Docker does not start with it.")
OPTION_LOOSE = Rule(
    "options-without-driver",
    "info",
    "storage-opts is set, but storage-driver is not: a new installation since Docker 29 uses containerd's store.",
)
RULES = (NOT_JSON, DRIVER_REMOVED, DRIVER_UNKNOWN, DRIVER_COPIES, OPTION, OPTION_LOOSE)
OFFLINE = (
    "whether the filesystem of the data-root suits the driver and its options: ullage doctor --advise tells it "
    "on the node"
)
DAEMON = "daemon.json"

_SHAPES = {"storage-driver": "text", "storage-opts": ["text"], "data-root": "text"}
_RENAMED = {"graph": "data-root", "storage-opt": "storage-opts"}
_KEYS = {
    *_SHAPES,
    *_RENAMED,
    *("exec-opts", "log-driver", "log-opts", "registry-mirrors", "insecure-registries", "live-restore", "userns-remap"),
    *("default-runtime", "runtimes", "containerd-namespace", "default-address-pools", "userland-proxy"),
}


def is_one(node: Node) -> bool:
    """Return whether a file of any name has keys of a daemon.json."""
    return not _KEYS.isdisjoint(node.fields)


def not_json(file: str, text: str) -> Iterator[Message]:
    """Find what YAML takes, and Docker does not."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        yield say(file, error.lineno, NOT_JSON, problem=f"{error.msg} (column {error.colno})")


def judge(each: Object) -> Iterator[Message]:
    """Judge one file."""
    node = each.node
    yield from each.doubled(node)
    for key, at in node.keys.items():
        near = _RENAMED.get(key, "") or nearest(key, _SHAPES, 0.8)
        if near and near != key:
            yield each.say(UNKNOWN, at, where=DAEMON, key=short(key), hint=hint_of(near))
    for key, shape in _SHAPES.items():
        if (below := node.get(key)) is not None:
            yield from each.shaped(below, shape, key, node.keys[key])
    driver, options = node.text_of("storage-driver"), node.get("storage-opts")
    is_containerd = node.text_of("features", "containerd-snapshotter") == "true"
    if driver and not is_containerd:
        yield from _judge_driver(each, driver, node.keys["storage-driver"])
    if options is None or is_containerd:
        return
    if not driver and options.items:
        yield each.say(OPTION_LOOSE, options)
    for item in options.items:
        for refused in storage_opts.refused([item.text], driver, None):
            yield each.say(OPTION, item, option=short(refused.name), problem=refused.problem)


def _judge_driver(each: Object, driver: str, line: int) -> Iterator[Message]:
    if driver in storage_opts.REMOVED_IN:
        yield each.say(DRIVER_REMOVED, line, driver=driver, version=storage_opts.REMOVED_IN[driver])
    elif driver not in storage_opts.DRIVERS:
        yield each.say(DRIVER_UNKNOWN, line, driver=short(driver), hint=hint_of(nearest(driver, storage_opts.DRIVERS)))
    elif driver == "vfs":
        yield each.say(DRIVER_COPIES, line)
