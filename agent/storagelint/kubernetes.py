"""What holds for each kind of object that Kubernetes' API server takes: shape, version, what it needs, one default."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from agent.storagelint.objects import Message, Object, Rule, nearest, short

MISSING = Rule("missing-field", "error", "{name} needs {key}.")
KIND = Rule("unknown-kind", "error", "the kind {kind} is not known (did you mean {near}?).")
API = Rule("api-version", "error", "{kind} is of {expected}, not of {found}{since}.")
DEFAULTS = Rule("default-class-twice", "warning", "{name} is the default {kind}{of}, and so is {other}.")
RULES = (MISSING, KIND, API, DEFAULTS)

TEXTS = {"*": "text"}
_METADATA: Mapping[str, object] = {
    "name": "text",
    "generateName": "text",
    "namespace": "text",
    "labels": TEXTS,
    "annotations": TEXTS,
    **dict.fromkeys(("creationTimestamp", "deletionGracePeriodSeconds", "deletionTimestamp", "finalizers"), "any"),
    **dict.fromkeys(("generation", "managedFields", "ownerReferences", "resourceVersion", "selfLink", "uid"), "any"),
}
_OLD_APIS = {"storage.k8s.io/v1beta1": ", which Kubernetes has removed in 1.22"}


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object. `shape` is that of its own fields; `default` the annotation of the one that is taken unasked.

    There is one default for each value of the field `default_by`, or for all where that is empty.
    """

    name: str
    api: str
    shape: Mapping[str, object]
    needed: tuple[str, ...]
    default: str
    default_by: str = ""

    @property
    def group(self) -> str:
        """The group of its API."""
        return self.api.partition("/")[0]

    def judge(self, each: Object) -> Iterator[Message]:
        """Judge what every kind has."""
        whole = {"apiVersion": "text", "kind": "text", "metadata": _METADATA, **self.shape}
        yield from each.shaped(each.node, whole, self.name, each.node.line)
        for key in self.needed:
            if each.node.get(key) is None:
                yield each.say(MISSING, key=key)
        if each.node.get("metadata", "name") is None and each.node.get("metadata", "generateName") is None:
            yield each.say(MISSING, key="metadata.name")
        version = each.node.text_of("apiVersion")
        if version != self.api:
            at, since = each.node.get("apiVersion"), _OLD_APIS.get(version, "")
            yield each.say(API, at, kind=self.name, expected=self.api, found=short(version) or "none", since=since)

    def two_defaults(self, objects: Iterable[Object]) -> Iterator[Message]:
        """Find a second default among the objects of this kind."""
        first: dict[str, Object] = {}
        for each in objects:
            mark = each.node.get("metadata", "annotations", self.default)
            if mark is None or mark.text != "true":
                continue
            by = each.node.text_of(self.default_by) if self.default_by else ""
            other = first.setdefault(by, each)
            if other is not each:
                told = f"{other.name} ({other.file}:{other.node.line})"
                yield each.say(DEFAULTS, mark, kind=self.name, of=f" of {short(by)}" if by else "", other=told)


def misspelt(each: Object, kinds: Mapping[str, Kind]) -> Iterator[Message]:
    """Find a kind of one of these kinds' groups that is nearly theirs."""
    near = nearest(each.kind, kinds, 0.85)
    if near and each.node.text_of("apiVersion").startswith(kinds[near].group + "/"):
        yield each.say(KIND, each.node.get("kind"), kind=each.kind, near=near)
