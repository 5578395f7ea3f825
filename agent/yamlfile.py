"""YAML files that people write: read strictly, and every error names file, key, value and what was expected."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import yaml

from agent.errors import ConfigError

T = TypeVar("T")

# msgspec's messages: "Expected `float`, got `str` - at `$.raise`"; "[...]" stands for some key of a mapping
_MESSAGE = re.compile(r"^(?P<what>.*?)(?: - at (?:key in )?`\$\.?(?P<path>.*?)(?:\[\.\.\.\].*)?`)?$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<key>.*)`", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>.*)`", re.DOTALL)
_WORDS = {
    "float": "a number",
    "int": "a whole number",
    "str": "a text",
    "bool": "true or false",
    "array": "a list",
    "object": "a mapping",
}


def read(file: str) -> Any:
    """Return what a file holds, None if it is empty; raises ConfigError."""
    with explained(file), open(file, "rb") as stream:
        return yaml.load(stream, Loader=_Loader)  # noqa: S506  a SafeLoader that also refuses doubled keys


@contextmanager
def explained(file: str) -> Iterator[None]:
    """Turn what may befall the reader of a YAML file into a ConfigError that names it."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: is not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"{file}: is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: is not UTF-8: {error}") from error


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice: YAML forbids it, and PyYAML would take the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                line = key.start_mark.line + 1
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} twice, again in line {line}")
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


@dataclass(frozen=True, slots=True)
class At:
    """A place in a file, for error messages."""

    file: str
    key: str = ""

    def below(self, key: str) -> At:
        """Return the place of a key in the mapping here."""
        return At(self.file, f"{self.key}.{key}" if self.key else key)

    def place(self, key: str = "") -> str:
        """Return file and key as a message begins."""
        path = self.below(key).key if key else self.key
        return ": ".join(part for part in (self.file, path) if part)

    def error(self, value: Any, expected: str) -> ConfigError:
        """Return the error of a value here."""
        return ConfigError(f"{self.place()}: {_shown(value)}: expected {expected}")

    def mapping(self, data: Any) -> dict[str, Any]:
        """Return a mapping with string keys; an empty section is an empty mapping."""
        if data is None:
            return {}
        if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
            raise self.error(data, "a mapping of keys to values")
        return data

    def known(self, keys: Iterable[str], allowed: Iterable[str]) -> None:
        """Refuse a key that is not allowed, with the nearest that is."""
        allowed = sorted(allowed)
        for key in keys:
            if key not in allowed:
                near = difflib.get_close_matches(key, allowed, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"expected one of: {', '.join(allowed)}"
                raise ConfigError(f"{self.place(key)}: unknown key; {hint}")

    def convert(self, data: Any, kind: type[T]) -> T:
        """Return `data` as the flat struct `kind`, or raise a ConfigError that names what is wrong."""
        try:
            return msgspec.convert(data, kind, dec_hook=_decode)
        except msgspec.ValidationError as error:
            raise self._explained(error, data, kind) from error

    def _explained(self, error: msgspec.ValidationError, data: Any, kind: type) -> ConfigError:
        match = _MESSAGE.match(str(error))
        assert match is not None
        what, path = match["what"], (match["path"] or "")
        at = self.below(path) if path else self
        if unknown := _UNKNOWN.match(what):
            at.known([unknown["key"]], kind.__struct_encode_fields__)  # type: ignore[attr-defined]  # all are Structs
        return at.error(_follow(data, path), _expected(what))


def _decode(kind: type, value: Any) -> Any:
    parse: Callable[[object], Any] = kind.parse  # type: ignore[attr-defined]  # as Seconds and Size of agent.units have
    return parse(value)


def _expected(what: str) -> str:
    """Return msgspec's complaint in the words of a person who writes YAML."""
    if missing := _MISSING.match(what):
        return f"the key {missing['key']!r}"
    what = what.removeprefix("Expected ").replace("`", "").replace(" | null", "")
    wanted, comma, got = what.partition(", got ")
    return _WORDS.get(wanted, wanted) + (comma + _WORDS.get(got, got) if comma else "")


def _follow(data: Any, path: str) -> Any:
    for name, position in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        try:
            data = data[int(position)] if position else data[name]
        except (KeyError, IndexError, TypeError):
            return data
    return data


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."  # noqa: PLR2004
