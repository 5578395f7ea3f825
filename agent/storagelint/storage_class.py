"""What is judged of a StorageClass by itself (storage.k8s.io/v1), and of what drivers make of its parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from agent.manifests import Node
from agent.storagelint.kubernetes import TEXTS, Kind
from agent.storagelint.objects import Message, Object, Rule, nearest, short

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
RULES = (
    *(TOPOLOGY_WAIT, LOCAL_WAIT, TOPOLOGY_OLD, TOPOLOGY_TYPO, TOPOLOGY_OTHER, ENCRYPTION, SECRET, REPLICAS),
    *(GONE, DELETES, EXPANSION, EMPTY),
)
OFFLINE = (
    "whether the driver is installed and can expand, clone and snapshot (its own GetCapabilities say), "
    "what its parameters mean to it, its topology keys (CSINode), capacity (CSIStorageCapacity), quotas"
)
STORAGE_CLASS = Kind(
    "StorageClass",
    "storage.k8s.io/v1",
    {
        "provisioner": "text",
        "parameters": TEXTS,
        "reclaimPolicy": ("Delete", "Retain"),
        "mountOptions": ["text"],
        "allowVolumeExpansion": "boolean",
        "volumeBindingMode": ("Immediate", "WaitForFirstConsumer"),
        "allowedTopologies": [{"matchLabelExpressions": [{"key": "text", "values": ["text"]}]}],
    },
    needed=("provisioner",),
    default="storageclass.kubernetes.io/is-default-class",
)

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


def judge(each: Object) -> Iterator[Message]:
    """Judge one class."""
    yield from STORAGE_CLASS.judge(each)
    for check in _CHECKS:
        yield from check(each)


def _mode(each: Object) -> str:
    """Return a class's binding mode if it is not the one that waits, as a message has it; else nothing."""
    mode = each.node.text_of("volumeBindingMode")
    return "" if mode == "WaitForFirstConsumer" else short(mode) or "not set, which is Immediate"


def _topologies(each: Object) -> list[Node]:
    """Return the expressions of all terms."""
    terms = each.node.get("allowedTopologies")
    found = [term.get("matchLabelExpressions") for term in (terms.items if terms is not None else ())]
    return [expression for expressions in found if expressions is not None for expression in expressions.items]


def _check_binding(each: Object) -> Iterator[Message]:
    mode, at = _mode(each), each.node.get("volumeBindingMode") or each.node.get("allowedTopologies")
    provisioner = each.node.text_of("provisioner")
    if mode and _topologies(each):
        yield each.say(TOPOLOGY_WAIT, at, mode=mode)
    elif mode and provisioner in _LOCAL:
        yield each.say(LOCAL_WAIT, at, mode=mode, provisioner=provisioner)


def _check_topology_keys(each: Object) -> Iterator[Message]:
    for expression in _topologies(each):
        at, key = expression.get("key"), expression.text_of("key")
        if not key or key in _WELL_KNOWN:
            continue
        near = nearest(key, _WELL_KNOWN, 0.9)
        if key in _OLD_TOPOLOGY:
            yield each.say(TOPOLOGY_OLD, at, key=key, better=_OLD_TOPOLOGY[key])
        elif near:
            yield each.say(TOPOLOGY_TYPO, at, key=short(key), better=near)
        else:
            yield each.say(TOPOLOGY_OTHER, at, key=short(key))


def _check_encryption(each: Object) -> Iterator[Message]:
    parameters = _parameters(each)
    asked = {key: node for key, node in parameters.items() if _ENCRYPTS.search(key) and "secret" not in key.lower()}
    is_given = any(node.text.lower() not in _NO_WORDS for node in asked.values())
    is_given = is_given or any(
        _ENCRYPTS.search(node.text) for key, node in parameters.items() if key not in asked and "secret" not in key
    )
    if _promises_encryption(each.words) and not is_given:
        hint = "".join(f" ({short(key)} is {short(node.text)!r})" for key, node in list(asked.items())[:1])
        yield each.say(ENCRYPTION, each.node.get("metadata", "name"), hint=hint)
    asks = parameters.get("encrypted")
    if each.node.text_of("provisioner") == _LONGHORN and asks is not None and asks.text == "true":
        missing = [key for key in _SECRETS if key not in parameters]
        if missing:
            yield each.say(SECRET, asks, missing=" and no ".join(missing))


def _promises_encryption(words: Sequence[str]) -> bool:
    return any(
        ("encrypt" in word or word in ("luks", "crypt", "crypto"))
        and not word.startswith(("un", "non", "de"))
        and (not place or words[place - 1] not in ("no", "non", "not", "un"))
        for place, word in enumerate(words)
    )


def _check_replicas(each: Object) -> Iterator[Message]:
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
            yield each.say(REPLICAS, node, count=short(node.text), key=short(key), why=why)


def _check_class(each: Object) -> Iterator[Message]:
    provisioner, policy = each.node.text_of("provisioner"), each.node.text_of("reclaimPolicy")
    if provisioner in _GONE:
        at = each.node.get("provisioner")
        yield each.say(GONE, at, provisioner=provisioner, since=_GONE[provisioner])
    if policy in ("", "Delete") and not _DATABASES.isdisjoint(each.words):
        default = "" if policy else ", by default"
        yield each.say(DELETES, each.node.get("reclaimPolicy"), default=default)
    if each.node.text_of("allowVolumeExpansion") != "true" and provisioner != "kubernetes.io/no-provisioner":
        yield each.say(EXPANSION, each.node.get("allowVolumeExpansion"))
    for key, node in _parameters(each).items():
        if not node.text:
            yield each.say(EMPTY, node, key=short(key))


def _parameters(each: Object) -> Mapping[str, Node]:
    found = each.node.get("parameters")
    return found.fields if found is not None else {}


_CHECKS: tuple[Callable[[Object], Iterator[Message]], ...] = (
    _check_binding,
    _check_topology_keys,
    _check_encryption,
    _check_replicas,
    _check_class,
)
