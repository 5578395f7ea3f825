"""What can be judged of StorageClass, VolumeSnapshotClass and daemon.json before anybody applies them.

Source: the API reference of storage.k8s.io/v1 and snapshot.storage.k8s.io/v1; moby's daemon/graphdriver. `RULES` is
all that is judged, `OFFLINE` what no file tells.
"""

from __future__ import annotations

import difflib
import json
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from agent import manifests
from agent.errors import ConfigError
from agent.manifests import Node
from agent.plain import plain
from collectors.readers import storage_opts

Severity = Literal["info", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
EXIT: Mapping[Severity, int] = {"error": 2, "warning": 1, "info": 0}
COULD_NOT_JUDGE = 3
STORAGE_CLASS, SNAPSHOT_CLASS, DAEMON = "StorageClass", "VolumeSnapshotClass", "daemon.json"


@dataclass(frozen=True, slots=True)
class Rule:
    """What is judged. `text` may hold `{fields}`."""

    id: str
    severity: Severity
    text: str


NOT_JSON = Rule("not-json", "error", "{problem}: Docker takes JSON alone, without comments and trailing commas.")
DOUBLED = Rule("doubled-key", "error", "the key {key} stands twice: one of the two is without effect.")
UNKNOWN = Rule("unknown-field", "error", "{where} has no field {key}{hint}.")
TYPE = Rule("wrong-type", "error", "{key} is to be {expected}, and is {found}{hint}.")
VALUE = Rule("bad-value", "error", "{key} is {found}: it can be {expected}.")
MISSING = Rule("missing-field", "error", "{where} needs {key}.")
KIND = Rule("unknown-kind", "error", "the kind {kind} is not known (did you mean {near}?).")
API = Rule("api-version", "error", "{kind} is of {expected}, not of {found}{since}.")
TOPOLOGY_WAIT = Rule(
    "topology-without-wait",
    "warning",
    "{name} has allowedTopologies, but volumeBindingMode is {mode}: a volume is made in one of them before its pod has "
    "a node, and the pod may then fit nowhere. Set volumeBindingMode: WaitForFirstConsumer.",
)
LOCAL_WAIT = Rule(
    "local-without-wait",
    "warning",
    "{name} is of {provisioner}, whose volumes are on one node, but volumeBindingMode is {mode}: the volume takes a "
    "node before the pod has one. Set volumeBindingMode: WaitForFirstConsumer.",
)
TOPOLOGY_OLD = Rule(
    "topology-key-deprecated", "warning", "the topology key {key} is deprecated since Kubernetes 1.17: use {better}."
)
TOPOLOGY_TYPO = Rule(
    "topology-key-typo", "warning", "the topology key {key} is not a well-known one (did you mean {better}?)."
)
TOPOLOGY_OTHER = Rule(
    "topology-key-unknown",
    "info",
    "the topology key {key} is not a well-known one: the driver must report it (kubectl get csinode -o yaml).",
)
ENCRYPTION = Rule(
    "encryption-missing",
    "warning",
    "{name} promises encryption by its name, but no parameter asks the driver for it{hint}.",
)
SECRET = Rule(
    "encryption-secret-missing",
    "warning",
    "{name} asks Longhorn for encryption, but has no {missing}: volumes cannot be made, or not mounted.",
)
REPLICAS = Rule(
    "replicas-on-one-node",
    "warning",
    "{name} asks for {count} replicas ({key}), but {why}: the others are never placed, or protect from nothing.",
)
SNAPSHOT_DRIVER = Rule(
    "snapshot-class-unmatched",
    "warning",
    "{name} is of the driver {driver}, but no StorageClass given has it as provisioner ({provisioners}){hint}: it can "
    "snapshot none of their volumes.",
)
NO_SNAPSHOTS = Rule(
    "snapshot-class-absent", "info", "no VolumeSnapshotClass given is of the driver {provisioner} of {name}."
)
DEFAULTS = Rule("default-class-twice", "warning", "{name} is the default {kind}{of}, and so is {other}.")
GONE = Rule(
    "provisioner-removed",
    "error",
    "Kubernetes has removed the provisioner {provisioner} in {since}: {name} makes none.",
)
DELETES = Rule(
    "reclaim-deletes-database",
    "info",
    "{name} is for a database by its name, and reclaimPolicy is Delete{default}: with the claim goes the volume.",
)
EXPANSION = Rule(
    "expansion-not-allowed",
    "info",
    "{name} does not set allowVolumeExpansion: true: a volume that fills up cannot be given more.",
)
EMPTY = Rule("parameter-empty", "info", "the parameter {key} is empty, which drivers take as not given.")
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
RULES = (
    *(NOT_JSON, DOUBLED, UNKNOWN, TYPE, VALUE, MISSING, KIND, API),
    *(TOPOLOGY_WAIT, LOCAL_WAIT, TOPOLOGY_OLD, TOPOLOGY_TYPO, TOPOLOGY_OTHER, ENCRYPTION, SECRET, REPLICAS),
    *(SNAPSHOT_DRIVER, NO_SNAPSHOTS, DEFAULTS, GONE, DELETES, EXPANSION, EMPTY),
    *(DRIVER_REMOVED, DRIVER_UNKNOWN, DRIVER_COPIES, OPTION, OPTION_LOOSE),
)
OFFLINE: Mapping[str, str] = {
    STORAGE_CLASS: "whether the driver is installed and can expand, clone and snapshot (its own GetCapabilities say), "
    "what its parameters mean to it, its topology keys (CSINode), capacity (CSIStorageCapacity), quotas",
    SNAPSHOT_CLASS: "whether the driver can snapshot (CREATE_DELETE_SNAPSHOT); snapshots are crash-consistent at best",
    DAEMON: "whether the filesystem of the data-root suits the driver and its options: ullage doctor --advise tells it "
    "on the node",
}

# Shapes: a word for a scalar, a tuple of the values that it can be, [shape] a list, {"*": shape} a mapping of any keys.
_TEXTS = {"*": "text"}
_METADATA: Mapping[str, object] = {
    "name": "text",
    "generateName": "text",
    "namespace": "text",
    "labels": _TEXTS,
    "annotations": _TEXTS,
    **dict.fromkeys(("creationTimestamp", "deletionGracePeriodSeconds", "deletionTimestamp", "finalizers"), "any"),
    **dict.fromkeys(("generation", "managedFields", "ownerReferences", "resourceVersion", "selfLink", "uid"), "any"),
}
_TERM = {"matchLabelExpressions": [{"key": "text", "values": ["text"]}]}
_SHAPES: Mapping[str, Mapping[str, object]] = {
    STORAGE_CLASS: {
        "apiVersion": "text",
        "kind": "text",
        "metadata": _METADATA,
        "provisioner": "text",
        "parameters": _TEXTS,
        "reclaimPolicy": ("Delete", "Retain"),
        "mountOptions": ["text"],
        "allowVolumeExpansion": "boolean",
        "volumeBindingMode": ("Immediate", "WaitForFirstConsumer"),
        "allowedTopologies": [_TERM],
    },
    SNAPSHOT_CLASS: {
        "apiVersion": "text",
        "kind": "text",
        "metadata": _METADATA,
        "driver": "text",
        "parameters": _TEXTS,
        "deletionPolicy": ("Delete", "Retain"),
    },
}
_NEEDED = {STORAGE_CLASS: ("provisioner",), SNAPSHOT_CLASS: ("driver", "deletionPolicy")}
_APIS = {STORAGE_CLASS: "storage.k8s.io/v1", SNAPSHOT_CLASS: "snapshot.storage.k8s.io/v1"}
_OLD_APIS = {"storage.k8s.io/v1beta1": ", which Kubernetes has removed in 1.22"}
_DEFAULT_CLASS = {
    STORAGE_CLASS: "storageclass.kubernetes.io/is-default-class",
    SNAPSHOT_CLASS: "snapshot.storage.kubernetes.io/is-default-class",
}
_RENAMED = {"graph": "data-root", "storage-opt": "storage-opts"}
_DAEMON_STORAGE = ("storage-driver", "storage-opts", "data-root")
_DAEMON_KEYS = {
    *_DAEMON_STORAGE,
    *_RENAMED,
    *("exec-opts", "log-driver", "log-opts", "registry-mirrors", "insecure-registries", "live-restore", "userns-remap"),
    *("default-runtime", "runtimes", "containerd-namespace", "default-address-pools", "userland-proxy"),
}
_LOCAL = {
    *("kubernetes.io/no-provisioner", "rancher.io/local-path", "openebs.io/local", "local.csi.openebs.io"),
    *("zfs.csi.openebs.io", "device.csi.openebs.io", "topolvm.io", "topolvm.cybozu.com", "directpv-min-io"),
}
_GONE = {
    "kubernetes.io/scaleio": "1.22",
    "kubernetes.io/flocker": "1.25",
    "kubernetes.io/quobyte": "1.25",
    "kubernetes.io/storageos": "1.25",
    "kubernetes.io/glusterfs": "1.26",
    "kubernetes.io/rbd": "1.31",
}
_WELL_KNOWN = (
    *("topology.kubernetes.io/zone", "topology.kubernetes.io/region", "kubernetes.io/hostname"),
    *("kubernetes.io/os", "kubernetes.io/arch", "node.kubernetes.io/instance-type"),
)
_OLD_TOPOLOGY = {
    "failure-domain.beta.kubernetes.io/zone": "topology.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region": "topology.kubernetes.io/region",
    "beta.kubernetes.io/os": "kubernetes.io/os",
    "beta.kubernetes.io/arch": "kubernetes.io/arch",
    "beta.kubernetes.io/instance-type": "node.kubernetes.io/instance-type",
}
_LONGHORN = "driver.longhorn.io"
_SECRETS = tuple(f"csi.storage.k8s.io/{each}-secret-name" for each in ("node-stage", "node-publish"))
_DATABASES = {"postgres", "postgresql", "mysql", "mariadb", "mongo", "mongodb", "cassandra", "etcd", "database", "db"}
_REPLICA_KEYS = {"numberofreplicas", "replicas", "replicacount", "repl", "replicationfactor", "placementcount"}
_ENCRYPTS = re.compile(r"encrypt|crypt|luks|kms|secure", re.IGNORECASE)
_NO_WORDS = {"false", "no", "off", "none", "disabled", "0", ""}
_SINGLE = re.compile(r"(single|one)-?node")
_WORDS = {
    "text": "a text",
    "boolean": "true or false",
    "number": "a number",
    "mapping": "a mapping",
    "list": "a list",
    "nothing": "empty",
}
_LONGEST = 200  # characters of what a file says, in a message


class Message(NamedTuple):
    """What was judged, and where."""

    file: str
    line: int
    severity: Severity
    rule: str
    text: str


@dataclass(slots=True)
class Report:
    """All that there is to say of some files. `judged` and `passed_over` count what they held, by kind."""

    messages: list[Message] = field(default_factory=list)
    judged: Counter[str] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """Return 2 for errors, 1 for warnings; 3 if else something could not be judged, or nothing was."""
        worst = max((EXIT[each.severity] for each in self.messages), default=0)
        return worst or (COULD_NOT_JUDGE if self.unreadable or not self.judged else 0)

    def as_json(self) -> str:
        """Return the report for machines."""
        told = {
            "messages": [each._asdict() for each in self.messages],
            "judged": dict(self.judged),
            "not_judged": dict(self.passed_over),
            "could_not_judge": self.unreadable,
            "offline": {kind: OFFLINE[kind] for kind in self.judged},
        }
        return json.dumps(told, indent=1)


class _Object(NamedTuple):
    file: str
    node: Node
    kind: str

    @property
    def name(self) -> str:
        told = self.node.text_of("metadata", "name") or self.node.text_of("metadata", "generateName")
        return f"{self.kind} {_short(told)}" if told else f"this {self.kind}"

    @property
    def words(self) -> list[str]:
        return [each for each in re.split(r"[^a-z0-9]+", self.node.text_of("metadata", "name").lower()) if each]

    def say(self, rule: Rule, at: Node | int | None = None, **fields: object) -> Message:
        line = at if isinstance(at, int) else (at or self.node).line
        return Message(self.file, line, rule.severity, rule.id, rule.text.format(**fields))


def judge(files: Sequence[str], read: Callable[[str], str] = manifests.read) -> Report:
    """Judge some files together; one that cannot be read, or is no YAML and no JSON, is told in `unreadable`."""
    report, objects = Report(), list[_Object]()
    for file in files:
        text = ""
        try:
            text = read(file)
            found = [each for node in manifests.parse(file, text) for each in _objects(file, node)]
        except ConfigError as error:
            hint = "; a template is to be rendered first (helm template)" if "{{" in text else ""
            report.unreadable.append(f"{error}{hint}")
            continue
        if any(each.kind == DAEMON for each in found):
            report.messages += _not_json(file, text)
        objects += found
    for each in objects:
        judged = each.kind in OFFLINE
        (report.judged if judged else report.passed_over)[each.kind] += 1
        report.messages += _judge_one(each) if judged else _misspelt(each)
    report.messages += _judge_together(objects)
    order = {file: place for place, file in enumerate(dict.fromkeys(files))}
    report.messages.sort(key=lambda each: (order[each.file], each.line, SEVERITIES.index(each.severity)))
    return report


def _objects(file: str, node: Node) -> Iterator[_Object]:
    """Yield what is in a document; a List holds others."""
    kind, group = node.text_of("kind"), node.text_of("apiVersion").partition("/")[0]
    if kind.endswith("List") and (items := node.get("items")) is not None:
        for each in items.items:
            yield from _objects(file, each)
    elif kind in _SHAPES and group in ("", _APIS[kind].partition("/")[0]):
        yield _Object(file, node, kind)
    elif not kind and (posixpath.basename(file) == DAEMON or not _DAEMON_KEYS.isdisjoint(node.fields)):
        yield _Object(file, node, DAEMON)
    elif kind in OFFLINE:  # of another group
        yield _Object(file, node, f"{_short(group)} {kind}")
    else:
        yield _Object(file, node, _short(kind) or "something without a kind")


def _judge_one(each: _Object) -> Iterator[Message]:
    if each.kind == DAEMON:
        yield from _judge_daemon(each)
        return
    yield from _shaped(each, each.node, _SHAPES[each.kind], each.kind, each.node.line)
    for key in _NEEDED[each.kind]:
        if each.node.get(key) is None:
            yield each.say(MISSING, where=each.name, key=key)
    if each.node.get("metadata", "name") is None and each.node.get("metadata", "generateName") is None:
        yield each.say(MISSING, where=each.name, key="metadata.name")
    version = each.node.text_of("apiVersion")
    if version != _APIS[each.kind]:
        since, found = _OLD_APIS.get(version, ""), _short(version) or "none"
        at = each.node.get("apiVersion")
        yield each.say(API, at, kind=each.kind, expected=_APIS[each.kind], found=found, since=since)
    if each.kind == STORAGE_CLASS:
        for check in _CLASS_CHECKS:
            yield from check(each)


def _shaped(each: _Object, node: Node, shape: object, path: str, line: int) -> Iterator[Message]:
    """Find what does not have the shape that the API server, or kubectl for it, demands."""
    if shape == "any" or node.kind == "nothing":
        return
    expected = "mapping" if isinstance(shape, Mapping) else "list" if isinstance(shape, list) else "text"
    expected = shape if isinstance(shape, str) else expected
    if node.kind != expected:
        is_scalar = expected == "text" and node.kind in ("boolean", "number")
        hint = f': write "{_short(node.text)}"' if is_scalar else ""
        hint = f": write {node.text}" if expected == "boolean" and node.text in ("true", "false") else hint
        yield each.say(TYPE, line, key=path, expected=_WORDS[expected], found=_WORDS[node.kind], hint=hint)
    elif isinstance(shape, tuple):
        if node.text not in shape:
            yield each.say(VALUE, line, key=path, found=_short(node.text), expected=" or ".join(shape))
    elif isinstance(shape, list):
        for item in node.items:
            yield from _shaped(each, item, shape[0], path, item.line)
    elif isinstance(shape, Mapping):
        yield from (each.say(DOUBLED, at, key=_short(key)) for key, at in node.doubled)
        for key, below in node.fields.items():
            if (wanted := shape.get(key, shape.get("*"))) is not None:
                yield from _shaped(each, below, wanted, f"{path}.{_short(key)}", node.keys[key])
            else:
                yield each.say(UNKNOWN, node.keys[key], where=path, key=_short(key), hint=_hint(_nearest(key, shape)))


def _nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return the nearest of what is known: one that differs in case alone before others; empty if none is near."""
    lower = {each.lower(): each for each in known}
    return "".join(lower[each] for each in difflib.get_close_matches(word.lower(), lower, n=1, cutoff=cutoff))


def _hint(near: str) -> str:
    return f" (did you mean {near}?)" if near else ""


def _misspelt(each: _Object) -> Iterator[Message]:
    near = _nearest(each.kind, _SHAPES, 0.85)
    if near and each.node.text_of("apiVersion").startswith(_APIS[near].partition("/")[0] + "/"):
        yield each.say(KIND, each.node.get("kind"), kind=each.kind, near=near)


def _mode(each: _Object) -> str:
    """Return a class's binding mode if it is not the one that waits, as a message has it; else nothing."""
    mode = each.node.text_of("volumeBindingMode")
    return "" if mode == "WaitForFirstConsumer" else _short(mode) or "not set, which is Immediate"


def _topologies(each: _Object) -> list[Node]:
    """Return the expressions of all terms."""
    terms = each.node.get("allowedTopologies")
    found = [term.get("matchLabelExpressions") for term in (terms.items if terms is not None else ())]
    return [expression for expressions in found if expressions is not None for expression in expressions.items]


def _check_binding(each: _Object) -> Iterator[Message]:
    mode, at = _mode(each), each.node.get("volumeBindingMode") or each.node.get("allowedTopologies")
    provisioner = each.node.text_of("provisioner")
    if mode and _topologies(each):
        yield each.say(TOPOLOGY_WAIT, at, name=each.name, mode=mode)
    elif mode and provisioner in _LOCAL:
        yield each.say(LOCAL_WAIT, at, name=each.name, mode=mode, provisioner=provisioner)


def _check_topology_keys(each: _Object) -> Iterator[Message]:
    for expression in _topologies(each):
        at, key = expression.get("key"), expression.text_of("key")
        if not key or key in _WELL_KNOWN:
            continue
        near = _nearest(key, _WELL_KNOWN, 0.9)
        if key in _OLD_TOPOLOGY:
            yield each.say(TOPOLOGY_OLD, at, key=key, better=_OLD_TOPOLOGY[key])
        elif near:
            yield each.say(TOPOLOGY_TYPO, at, key=_short(key), better=near)
        else:
            yield each.say(TOPOLOGY_OTHER, at, key=_short(key))


def _check_encryption(each: _Object) -> Iterator[Message]:
    parameters = _parameters(each)
    asked = {key: node for key, node in parameters.items() if _ENCRYPTS.search(key) and "secret" not in key.lower()}
    is_given = any(node.text.lower() not in _NO_WORDS for node in asked.values())
    is_given = is_given or any(
        _ENCRYPTS.search(node.text) for key, node in parameters.items() if key not in asked and "secret" not in key
    )
    if _promises_encryption(each.words) and not is_given:
        hint = "".join(f" ({_short(key)} is {_short(node.text)!r})" for key, node in list(asked.items())[:1])
        yield each.say(ENCRYPTION, each.node.get("metadata", "name"), name=each.name, hint=hint)
    asks = parameters.get("encrypted")
    if each.node.text_of("provisioner") == _LONGHORN and asks is not None and asks.text == "true":
        missing = [key for key in _SECRETS if key not in parameters]
        if missing:
            yield each.say(SECRET, asks, name=each.name, missing=" and no ".join(missing))


def _promises_encryption(words: Sequence[str]) -> bool:
    return any(
        ("encrypt" in word or word in ("luks", "crypt", "crypto"))
        and not word.startswith(("un", "non", "de"))
        and (not place or words[place - 1] not in ("no", "non", "not", "un"))
        for place, word in enumerate(words)
    )


def _check_replicas(each: _Object) -> Iterator[Message]:
    parameters = _parameters(each)
    hosts = {
        value.text
        for expression in _topologies(each)
        if expression.text_of("key") == "kubernetes.io/hostname" and (values := expression.get("values")) is not None
        for value in values.items
    }
    if _SINGLE.search(each.node.text_of("metadata", "name").lower()):
        why = "its name says a single node"
    elif (locality := parameters.get("dataLocality")) is not None and locality.text == "strict-local":
        why = "dataLocality is strict-local, which takes one"
    elif len(hosts) == 1:
        why = "allowedTopologies names one node"
    elif each.node.text_of("provisioner") in _LOCAL:
        why = "its volumes are on one node"
    else:
        return
    for key, node in parameters.items():
        word = re.sub(r"[^a-z]", "", key.rpartition("/")[2].lower())
        if word in _REPLICA_KEYS and node.text.isdecimal() and int(node.text[:9]) > 1:
            yield each.say(REPLICAS, node, name=each.name, count=_short(node.text), key=_short(key), why=why)


def _check_class(each: _Object) -> Iterator[Message]:
    provisioner, policy = each.node.text_of("provisioner"), each.node.text_of("reclaimPolicy")
    if provisioner in _GONE:
        at = each.node.get("provisioner")
        yield each.say(GONE, at, provisioner=provisioner, since=_GONE[provisioner], name=each.name)
    if policy in ("", "Delete") and not _DATABASES.isdisjoint(each.words):
        default = "" if policy else ", by default"
        yield each.say(DELETES, each.node.get("reclaimPolicy"), name=each.name, default=default)
    if each.node.text_of("allowVolumeExpansion") != "true" and provisioner != "kubernetes.io/no-provisioner":
        yield each.say(EXPANSION, each.node.get("allowVolumeExpansion"), name=each.name)
    for key, node in _parameters(each).items():
        if not node.text:
            yield each.say(EMPTY, node, key=_short(key))


_CLASS_CHECKS: tuple[Callable[[_Object], Iterator[Message]], ...] = (
    _check_binding,
    _check_topology_keys,
    _check_encryption,
    _check_replicas,
    _check_class,
)


def _parameters(each: _Object) -> Mapping[str, Node]:
    found = each.node.get("parameters")
    return found.fields if found is not None else {}


def _judge_together(objects: Sequence[_Object]) -> Iterator[Message]:
    classes = [each for each in objects if each.kind == STORAGE_CLASS and each.node.text_of("provisioner")]
    snapshots = [each for each in objects if each.kind == SNAPSHOT_CLASS and each.node.text_of("driver")]
    provisioners = sorted({each.node.text_of("provisioner") for each in classes})
    drivers = {each.node.text_of("driver") for each in snapshots}
    for each in snapshots if classes else ():
        driver = each.node.text_of("driver")
        if driver not in provisioners:
            told, hint = ", ".join(map(_short, provisioners[:5])), _hint(_nearest(driver, provisioners))
            at = each.node.get("driver")
            yield each.say(SNAPSHOT_DRIVER, at, name=each.name, driver=_short(driver), provisioners=told, hint=hint)
    for each in classes if snapshots else ():
        provisioner = each.node.text_of("provisioner")
        if provisioner not in drivers and not provisioner.startswith("kubernetes.io/"):
            yield each.say(NO_SNAPSHOTS, each.node.get("provisioner"), provisioner=_short(provisioner), name=each.name)
    yield from _two_defaults(objects)


def _two_defaults(objects: Iterable[_Object]) -> Iterator[Message]:
    """Find a second default: of all storage classes, of the snapshot classes of one driver."""
    first: dict[tuple[str, str], _Object] = {}
    for each in objects:
        mark = each.node.get("metadata", "annotations", _DEFAULT_CLASS.get(each.kind, ""))
        if mark is None or mark.text != "true":
            continue
        driver = each.node.text_of("driver") if each.kind == SNAPSHOT_CLASS else ""
        other = first.setdefault((each.kind, driver), each)
        if other is not each:
            told = f"{other.name} ({other.file}:{other.node.line})"
            of = f" of {_short(driver)}" if driver else ""
            yield each.say(DEFAULTS, mark, name=each.name, kind=each.kind, of=of, other=told)


def _not_json(file: str, text: str) -> Iterator[Message]:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        problem = f"{error.msg} (column {error.colno})"
        yield Message(file, error.lineno, NOT_JSON.severity, NOT_JSON.id, NOT_JSON.text.format(problem=problem))


def _judge_daemon(each: _Object) -> Iterator[Message]:
    node = each.node
    yield from (each.say(DOUBLED, at, key=_short(key)) for key, at in node.doubled)
    for key, at in node.keys.items():
        near = _RENAMED.get(key, "") or _nearest(key, _DAEMON_STORAGE, 0.8)
        if near and near != key:
            yield each.say(UNKNOWN, at, where=DAEMON, key=_short(key), hint=_hint(near))
    shapes: tuple[tuple[str, object], ...] = (
        ("storage-driver", "text"),
        ("storage-opts", ["text"]),
        ("data-root", "text"),
    )
    for key, shape in shapes:
        if (below := node.get(key)) is not None:
            yield from _shaped(each, below, shape, key, node.keys[key])
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
            yield each.say(OPTION, item, option=_short(refused.name), problem=refused.problem)


def _judge_driver(each: _Object, driver: str, line: int) -> Iterator[Message]:
    if driver in storage_opts.REMOVED_IN:
        yield each.say(DRIVER_REMOVED, line, driver=driver, version=storage_opts.REMOVED_IN[driver])
    elif driver not in storage_opts.DRIVERS:
        yield each.say(DRIVER_UNKNOWN, line, driver=_short(driver), hint=_hint(_nearest(driver, storage_opts.DRIVERS)))
    elif driver == "vfs":
        yield each.say(DRIVER_COPIES, line)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


def show(report: Report) -> Iterator[str]:
    """Yield the report's lines, harmless to a terminal: messages as compilers write them, then what is not judged."""
    for each in report.messages:
        yield plain(f"{each.file}:{each.line}: {each.severity}: {each.rule}: {each.text}")
    for problem in report.unreadable:
        yield plain(f"could not be judged: {problem}")
    if report.messages or report.unreadable:
        yield ""
    yield f"judged: {_counted(report.judged)}"
    if report.passed_over:
        yield f"not judged: {_counted(report.passed_over)}"
    for kind in report.judged:
        yield f"no file tells, of a {kind}: {OFFLINE[kind]}"
    if report.judged[SNAPSHOT_CLASS] and not report.judged[STORAGE_CLASS]:
        yield "no StorageClass was given: whether drivers match is not judged"
    severities = Counter(each.severity for each in report.messages)
    told = [f"{severities[each]} {each}{'s' * (severities[each] != 1)}" for each in SEVERITIES if severities[each]]
    yield f"found: {', '.join(told) or 'nothing'}"


def _counted(kinds: Mapping[str, int]) -> str:
    told = sorted(kinds.items(), key=lambda each: (-each[1], each[0]))
    shown = [f"{count} {plain(kind)}" for kind, count in told[:20]]
    return ", ".join(shown) + (", and others" if len(told) > len(shown) else "") if told else "nothing"
