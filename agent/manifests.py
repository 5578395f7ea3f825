"""Manifests that people write, YAML or JSON, with the line of everything in them.

A file may be hostile: it is bounded in bytes, nodes and depth, so that aliases multiply nothing for long, and nothing
in it is ever turned into an object.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import yaml

from agent.errors import ConfigError
from agent.yamlfile import explained

LIMIT = 4 << 20  # bytes of a file: an object in a cluster has 1.5 MiB at most
NODES_MOST = 20_000  # with what aliases repeat
Kind = Literal["mapping", "list", "text", "boolean", "number", "nothing"]

_KINDS: dict[str, Kind] = {"bool": "boolean", "int": "number", "float": "number", "null": "nothing"}
_TAG, _MERGE = "tag:yaml.org,2002:", "tag:yaml.org,2002:merge"


@dataclass(frozen=True, slots=True)
class Node:
    """A value. `text` is a scalar as it is written; `keys` are the lines of a mapping's keys, `doubled` those again."""

    line: int
    kind: Kind
    text: str = ""
    items: list[Node] = field(default_factory=list)
    fields: dict[str, Node] = field(default_factory=dict)
    keys: dict[str, int] = field(default_factory=dict)
    doubled: list[tuple[str, int]] = field(default_factory=list)

    def get(self, *names: str) -> Node | None:
        """Return what is below these names; None where it is absent, or null."""
        found: Node | None = self
        for name in names:
            found = found.fields.get(name) if found is not None else None
        return found if found is not None and found.kind != "nothing" else None

    def text_of(self, *names: str) -> str:
        """Return the text below these names, as it is written; empty where there is none."""
        found = self.get(*names)
        return found.text if found is not None else ""


def read(file: str) -> str:
    """Return the text of a file; raises ConfigError."""
    with explained(file):
        with open(file, "rb") as stream:
            raw = stream.read(LIMIT + 1)
        if len(raw) > LIMIT:
            raise ConfigError(f"{file}: is larger than {LIMIT >> 20} MiB")
        return raw.decode("utf-8-sig")


def parse(file: str, text: str) -> list[Node]:
    """Return the documents of a file; raises ConfigError, which names it."""
    with explained(file):
        nodes = yaml.compose_all(_without_tabs(text), Loader=yaml.SafeLoader)
        walk = _Walk(file)
        return [walk.node(node) for node in nodes if node is not None]


def _without_tabs(text: str) -> str:
    """Return JSON as YAML takes it: indented by tabs, as Docker's often is, it is none."""
    if not text.lstrip().startswith(("{", "[")) or "\t" not in text:
        return text
    try:
        json.loads(text)
    except ValueError:
        return text
    return text.replace("\t", " ")  # none is in a string, where JSON has \t for it


@dataclass(slots=True)
class _Walk:
    file: str
    left: int = NODES_MOST

    def node(self, node: yaml.Node) -> Node:
        self.left -= 1
        line = node.start_mark.line + 1
        if self.left < 0:
            raise ConfigError(f"{self.file}: line {line}: more than {NODES_MOST} values, with what aliases repeat")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, line)
        if isinstance(node, yaml.SequenceNode):
            return Node(line, "list", items=[self.node(each) for each in node.value])
        return Node(line, _KINDS.get(node.tag.removeprefix(_TAG), "text"), str(node.value))

    def _mapping(self, node: yaml.MappingNode, line: int) -> Node:
        found, merged = Node(line, "mapping"), []
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"{self.file}: line {key.start_mark.line + 1}: a key is no text")
            if key.tag == _MERGE:
                merged += list(self._merged(value))
                continue
            at = key.start_mark.line + 1
            if key.value in found.fields:
                found.doubled.append((key.value, at))
            found.fields[key.value], found.keys[key.value] = self.node(value), at
        for other in merged:
            for name, below in other.fields.items():
                found.fields.setdefault(name, below)
                found.keys.setdefault(name, line)
        return found

    def _merged(self, value: yaml.Node) -> Iterator[Node]:
        node = self.node(value)
        yield from node.items if node.kind == "list" else [node]
