"""What is judged: one object of a file; and what is said of it, with the line.

A shape is a word for a scalar, a tuple of the values that it can be, [shape] for a list, {"*": shape} for a mapping of
any keys.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from agent.manifests import Node

Severity = Literal["info", "warning", "error"]
LONGEST = 200  # characters of what a file says, in a message
_WORDS = {
    "text": "a text",
    "boolean": "true or false",
    "number": "a number",
    "mapping": "a mapping",
    "list": "a list",
    "nothing": "empty",
}


@dataclass(frozen=True, slots=True)
class Rule:
    """What is judged. `text` may hold `{fields}`."""

    id: str
    severity: Severity
    text: str


DOUBLED = Rule("doubled-key", "error", "the key {key} stands twice: one of the two is without effect.")
UNKNOWN = Rule("unknown-field", "error", "{where} has no field {key}{hint}.")
TYPE = Rule("wrong-type", "error", "{key} is to be {expected}, and is {found}{hint}.")
VALUE = Rule("bad-value", "error", "{key} is {found}: it can be {expected}.")
RULES = (DOUBLED, UNKNOWN, TYPE, VALUE)


class Message(NamedTuple):
    """What was judged, and where."""

    file: str
    line: int
    severity: Severity
    rule: str
    text: str


def say(file: str, line: int, rule: Rule, **fields: object) -> Message:
    """Return a rule's message with its fields filled in."""
    return Message(file, line, rule.severity, rule.id, rule.text.format(**fields))


class Object(NamedTuple):
    """One of a file's objects. `kind` is that of its manifest, or `daemon.json`."""

    file: str
    node: Node
    kind: str

    @property
    def name(self) -> str:
        """How a message calls it."""
        told = self.node.text_of("metadata", "name") or self.node.text_of("metadata", "generateName")
        return f"{self.kind} {short(told)}" if told else f"this {self.kind}"

    @property
    def words(self) -> list[str]:
        """The words of its name, in small letters."""
        return [each for each in re.split(r"[^a-z0-9]+", self.node.text_of("metadata", "name").lower()) if each]

    def say(self, rule: Rule, at: Node | int | None = None, **fields: object) -> Message:
        """Return a rule's message at a value's line, or at its own; `{name}` is its name."""
        line = at if isinstance(at, int) else (at or self.node).line
        return say(self.file, line, rule, **{"name": self.name, **fields})

    def doubled(self, node: Node) -> Iterator[Message]:
        """Yield what to say of the keys that a mapping has twice."""
        return (self.say(DOUBLED, at, key=short(key)) for key, at in node.doubled)

    def shaped(self, node: Node, shape: object, path: str, line: int) -> Iterator[Message]:
        """Find what does not have the shape that its reader demands."""
        if shape == "any" or node.kind == "nothing":
            return
        expected = "mapping" if isinstance(shape, Mapping) else "list" if isinstance(shape, list) else "text"
        expected = shape if isinstance(shape, str) else expected
        if node.kind != expected:
            is_scalar = expected == "text" and node.kind in ("boolean", "number")
            hint = f': write "{short(node.text)}"' if is_scalar else ""
            hint = f": write {node.text}" if expected == "boolean" and node.text in ("true", "false") else hint
            yield self.say(TYPE, line, key=path, expected=_WORDS[expected], found=_WORDS[node.kind], hint=hint)
        elif isinstance(shape, tuple):
            if node.text not in shape:
                yield self.say(VALUE, line, key=path, found=short(node.text), expected=" or ".join(shape))
        elif isinstance(shape, list):
            for item in node.items:
                yield from self.shaped(item, shape[0], path, item.line)
        elif isinstance(shape, Mapping):
            yield from self.doubled(node)
            for key, below in node.fields.items():
                at = node.keys[key]
                if (wanted := shape.get(key, shape.get("*"))) is not None:
                    yield from self.shaped(below, wanted, f"{path}.{short(key)}", at)
                else:
                    yield self.say(UNKNOWN, at, where=path, key=short(key), hint=hint_of(nearest(key, shape)))


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return the nearest of what is known: one that differs in case alone before others; empty if none is near."""
    lower = {each.lower(): each for each in known}
    return "".join(lower[each] for each in difflib.get_close_matches(word.lower(), lower, n=1, cutoff=cutoff))


def hint_of(near: str) -> str:
    """Return the question for what may be meant; empty if nothing is near."""
    return f" (did you mean {near}?)" if near else ""


def short(text: str) -> str:
    """Return what a file says, as long as a message may have it."""
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."
