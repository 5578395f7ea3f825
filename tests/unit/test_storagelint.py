"""What `ullage lint-storage` says: each rule by a file that breaks it, and nothing of one that breaks none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from agent.storagelint import RULES, Report, judge, show
from tests.unit.test_cli import ullage

GOOD_CLASS = """
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata:
  name: fast-encrypted
  annotations: {storageclass.kubernetes.io/is-default-class: "true"}
provisioner: ebs.csi.aws.com
parameters: {type: gp3, encrypted: "true"}
reclaimPolicy: Retain
allowVolumeExpansion: true
volumeBindingMode: WaitForFirstConsumer
mountOptions: [noatime]
allowedTopologies:
- matchLabelExpressions:
  - {key: topology.kubernetes.io/zone, values: [eu-west-1a, eu-west-1b]}
"""
GOOD_SNAPSHOTS = """
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotClass
metadata: {name: ebs}
driver: ebs.csi.aws.com
deletionPolicy: Retain
"""
GOOD_DAEMON = '{"storage-driver": "overlay2", "storage-opts": ["overlay2.size=10G"], "data-root": "/data"}'


def lint(*texts: str, **named: str) -> Report:
    files = {f"{place}.yaml": text for place, text in enumerate(texts)} | named
    return judge(list(files), files.__getitem__)


def told(report: Report) -> list[tuple[int, str]]:
    return [(each.line, each.rule) for each in report.messages]


def storage_class(**fields: object) -> str:
    """Return a class, as JSON in one line, that breaks no rule but by the fields that are given."""
    good: dict[str, object] = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "plain"},
        "provisioner": "ebs.csi.aws.com",
        "allowVolumeExpansion": True,
        "volumeBindingMode": "WaitForFirstConsumer",
    }
    return json.dumps({key: value for key, value in (good | fields).items() if value is not None})


def topology(key: str, *values: str) -> list[object]:
    return [{"matchLabelExpressions": [{"key": key, "values": list(values)}]}]


def test_nothing_is_said_of_what_breaks_no_rule() -> None:
    report = lint(GOOD_CLASS + "---" + GOOD_SNAPSHOTS, GOOD_DAEMON, storage_class())
    assert report.messages == []
    assert report.exit_code == 0
    assert report.judged == {"StorageClass": 2, "VolumeSnapshotClass": 1, "daemon.json": 1}


LONGHORN = {"provisioner": "driver.longhorn.io"}
BROKEN: list[tuple[str, str]] = [
    ("doubled-key", storage_class().replace('{"apiVersion"', '{"provisioner": "x", "apiVersion"')),
    ("unknown-field", storage_class(volumeBindMode="Immediate")),
    ("unknown-field", storage_class(metadata={"name": "x", "lables": {}})),
    (
        "unknown-field",
        storage_class(
            allowedTopologies=[{"matchLabelExpressions": [{"key": "kubernetes.io/os", "operator": "In", "values": []}]}]
        ),
    ),
    ("wrong-type", storage_class(parameters={"encrypted": True})),
    ("wrong-type", storage_class(allowVolumeExpansion="true")),
    ("wrong-type", storage_class(mountOptions="noatime")),
    ("wrong-type", storage_class(parameters=["type"])),
    ("bad-value", storage_class(reclaimPolicy="Recycle")),
    ("bad-value", GOOD_SNAPSHOTS.replace("Retain", "Keep")),
    ("missing-field", storage_class(provisioner=None)),
    ("missing-field", storage_class(metadata={})),
    ("missing-field", GOOD_SNAPSHOTS.replace("deletionPolicy: Retain", "")),
    ("unknown-kind", storage_class(kind="StorageClas")),
    ("unknown-kind", storage_class(kind="storageclass")),
    ("api-version", storage_class(apiVersion="storage.k8s.io/v1beta1")),
    ("api-version", GOOD_SNAPSHOTS.replace("io/v1", "io/v1beta1")),
    (
        "topology-without-wait",
        storage_class(volumeBindingMode=None, allowedTopologies=topology("topology.kubernetes.io/zone", "a")),
    ),
    ("local-without-wait", storage_class(volumeBindingMode=None, provisioner="kubernetes.io/no-provisioner")),
    ("local-without-wait", storage_class(volumeBindingMode="Immediate", provisioner="topolvm.io")),
    (
        "topology-key-deprecated",
        storage_class(allowedTopologies=topology("failure-domain.beta.kubernetes.io/zone", "a")),
    ),
    ("topology-key-typo", storage_class(allowedTopologies=topology("topology.kubernetes.io/zones", "a"))),
    ("topology-key-unknown", storage_class(allowedTopologies=topology("topology.ebs.csi.aws.com/zone", "a"))),
    ("encryption-missing", storage_class(metadata={"name": "encrypted-nvme-sc"})),
    ("encryption-missing", storage_class(metadata={"name": "luks"}, parameters={"encrypted": "false"})),
    (
        "encryption-secret-missing",
        storage_class(**LONGHORN, parameters={"encrypted": "true", "csi.storage.k8s.io/node-stage-secret-name": "x"}),
    ),
    ("replicas-on-one-node", storage_class(metadata={"name": "single-node"}, parameters={"numberOfReplicas": "3"})),
    (
        "replicas-on-one-node",
        storage_class(**LONGHORN, parameters={"numberOfReplicas": "2", "dataLocality": "strict-local"}),
    ),
    (
        "replicas-on-one-node",
        storage_class(parameters={"repl": "2"}, allowedTopologies=topology("kubernetes.io/hostname", "one")),
    ),
    (
        "replicas-on-one-node",
        storage_class(provisioner="rancher.io/local-path", parameters={"example.org/replica-count": "2"}),
    ),
    ("snapshot-class-unmatched", storage_class() + "\n---" + GOOD_SNAPSHOTS.replace("ebs.csi", "efs.csi")),
    ("default-class-twice", GOOD_CLASS + "---" + GOOD_CLASS.replace("fast", "slow")),
    ("provisioner-removed", storage_class(provisioner="kubernetes.io/glusterfs")),
    ("reclaim-deletes-database", storage_class(metadata={"name": "postgres-fast"})),
    ("expansion-not-allowed", storage_class(allowVolumeExpansion=None)),
    ("expansion-not-allowed", storage_class(allowVolumeExpansion=False)),
    ("parameter-empty", storage_class(parameters={"fromBackup": ""})),
    ("not-json", '{"storage-driver": "overlay2",}'),
    ("doubled-key", '{"storage-driver": "overlay2", "data-root": "/a", "data-root": "/b"}'),
    ("unknown-field", '{"storage-driver": "overlay2", "storage-opt": []}'),
    ("unknown-field", '{"storage-driver": "overlay2", "graph": "/data"}'),
    ("wrong-type", '{"storage-driver": "overlay2", "storage-opts": "overlay2.size=1G"}'),
    ("driver-removed", '{"storage-driver": "aufs"}'),
    ("driver-removed", '{"storage-driver": "devicemapper", "storage-opts": ["dm.basesize=10G"]}'),
    ("driver-unknown", '{"storage-driver": "overlay3"}'),
    ("driver-copies", '{"storage-driver": "vfs"}'),
    ("option-refused", '{"storage-driver": "overlay2", "storage-opts": ["overlay2.min_space=10G"]}'),
    ("option-refused", '{"storage-driver": "overlay2", "storage-opts": ["overlay2.override_kernel_check=true"]}'),
    ("options-without-driver", '{"storage-opts": ["overlay2.size=10G"]}'),
]


@pytest.mark.parametrize(("rule", "text"), BROKEN)
def test_what_breaks_one_rule_is_told_by_that_rule(rule: str, text: str) -> None:
    found = [name for _, name in told(lint(text))]
    assert rule in found
    assert set(found) <= {rule, "snapshot-class-absent"}


def test_each_rule_is_tried() -> None:
    alone = {"snapshot-class-absent"}  # see below
    assert {rule for rule, _ in BROKEN} | alone == {rule.id for rule in RULES}


@pytest.mark.parametrize(
    "text",
    [
        storage_class(metadata={"name": "unencrypted"}),
        storage_class(metadata={"name": "not-encrypted"}),
        storage_class(metadata={"name": "encrypted"}, parameters={"diskEncryptionSetID": "/subscriptions/x"}),
        storage_class(metadata={"name": "encrypted"}, parameters={"disk-encryption-kms-key": "projects/x"}),
        storage_class(metadata={"name": "encrypted"}, parameters={"type": "LUKS"}),
        storage_class(metadata={"name": "single-node"}, parameters={"numberOfReplicas": "1"}),
        storage_class(parameters={"numberOfReplicas": "3"}),
        storage_class(allowedTopologies=topology("kubernetes.io/hostname", "one", "two"), parameters={"repl": "2"}),
        storage_class(mountOptions=None, parameters=None, reclaimPolicy=None),
        storage_class(metadata={"name": "x", "uid": "y", "managedFields": [{"fieldsV1": {"f:a": {}}}]}),
        '{"storage-driver": "devicemapper", "features": {"containerd-snapshotter": true}}',
        '{"log-driver": "json-file"}',
        '{\n\t"storage-driver":\t"overlay2"\n}',
        "a: &a {allowVolumeExpansion: true}\n---\n" + storage_class(),
    ],
)
def test_what_only_looks_like_it_is_not_told(text: str) -> None:
    assert told(lint(text)) == []


def test_the_line_is_that_of_what_is_wrong_in_each_document_and_list() -> None:
    text = (
        GOOD_CLASS
        + "---\nkind: List\nitems:\n- apiVersion: storage.k8s.io/v1\n  kind: StorageClass\n"
        + (
            "  metadata:\n    name: listed\n  provisioner: ebs.csi.aws.com\n  allowVolumeExpansion: true\n"
            "  parameters:\n    type: gp3\n    iops: 3000\n"
        )
    )
    assert told(lint(text)) == [(27, "wrong-type")]


def test_files_are_judged_together() -> None:
    assert told(lint(storage_class(), GOOD_SNAPSHOTS)) == []
    other = GOOD_SNAPSHOTS.replace("ebs.csi.aws.com", "efs.csi.aws.com")
    report = lint(storage_class(), other)
    assert [(each.file, each.rule) for each in report.messages] == [
        ("0.yaml", "snapshot-class-absent"),
        ("1.yaml", "snapshot-class-unmatched"),
    ]
    assert "did you mean ebs.csi.aws.com?" in report.messages[1].text
    assert told(lint(other)) == []
    assert "whether drivers match is not judged" in "\n".join(show(lint(other)))


def test_merged_keys_are_the_object_s_own() -> None:
    text = "base: &base {provisioner: ebs.csi.aws.com, allowVolumeExpansion: true}\n---\n"
    with_merge = storage_class(provisioner=None, allowVolumeExpansion=None)
    assert told(lint("- &base {provisioner: x.example.org, allowVolumeExpansion: true}\n- 1\n" + "---\n" + text)) == []
    document = f"kind: List\nbase: &base {{provisioner: x.org, allowVolumeExpansion: true}}\nitems:\n- {with_merge}"
    assert told(lint(document.replace('{"apiVersion"', '{<<: *base, "apiVersion"'))) == []


def test_what_is_of_another_kind_is_counted_and_not_judged() -> None:
    report = lint("kind: Deployment\nspec: {}\n---\nkind: StorageClass\napiVersion: example.org/v1\n", storage_class())
    assert report.messages == []
    assert report.passed_over == {"Deployment": 1, "example.org StorageClass": 1}
    assert "not judged: 1 Deployment, 1 example.org StorageClass" in list(show(report))


ALIASES = "\n".join(
    f"{name}: &{name} [{','.join(['*' + before if before else 'x'] * 9)}]"
    for before, name in zip(("", *"abcdef"), "abcdefg", strict=True)
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (ALIASES, "aliases"),
        ("a: &a [*a]", "nested too deeply"),
        ("[" * 20_000, "nested too deeply"),
        ("a0: &a0 x\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 3000)), "aliases"),
        ("{{ if .Values.x }}", "helm template"),
        ("a: [", "is not valid YAML"),
        ("a: *nowhere", "is not valid YAML"),
        ("\x01", "is not valid YAML"),
    ],
)
def test_a_hostile_file_is_refused_and_the_others_are_judged(text: str, problem: str) -> None:
    report = lint(text, storage_class())
    assert report.exit_code == 3
    (refused,) = report.unreadable
    assert refused.startswith("0.yaml: ")
    assert problem in refused
    assert report.judged == {"StorageClass": 1}
    assert lint(text, storage_class(reclaimPolicy="x")).exit_code == 2


def test_what_a_file_says_does_nothing_to_a_terminal() -> None:
    evil = "\x1b[2J\u202e\n" + "x" * 800
    report = lint(storage_class(parameters={evil: 1}, metadata={"name": evil}, reclaimPolicy=evil, **{evil: 1}))
    assert len(report.messages) >= 3
    assert all(line.isprintable() and len(line) < 2000 for line in show(report))


def write(directory: Path, files: Mapping[str, bytes]) -> list[str]:
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return [str(directory / name) for name in files]


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({"a.yaml": GOOD_CLASS.encode(), "daemon.json": GOOD_DAEMON.encode()}, 0),
        ({"a.yaml": storage_class(metadata={"name": "encrypted"}).encode()}, 1),
        ({"a.yaml": storage_class(reclaimPolicy="x").encode()}, 2),
        ({"a.yaml": storage_class().encode(), "b.yaml": b"\xff\xfe\xff"}, 3),
        ({"a.yaml": b"kind: Deployment"}, 3),
        ({"large.yaml": b" " * (5 << 20)}, 3),
        ({"daemon.json": b""}, 3),
    ],
)
def test_the_exit_code_is_that_of_the_worst(tmp_path: Path, files: Mapping[str, bytes], code: int) -> None:
    answer = ullage("lint-storage", *write(tmp_path, files))
    assert (answer.returncode, answer.stderr) == (code, "")
    assert answer.stdout


def test_machines_have_the_same(tmp_path: Path) -> None:
    paths = write(tmp_path, {"a.yaml": storage_class(reclaimPolicy="x").encode()})
    answer = ullage("lint-storage", "--json", *paths, str(tmp_path / "absent.yaml"))
    document = json.loads(answer.stdout)
    assert [(each["file"], each["line"], each["rule"]) for each in document["messages"]] == [(paths[0], 1, "bad-value")]
    assert document["judged"] == {"StorageClass": 1}
    assert document["could_not_judge"] == [f"{tmp_path}/absent.yaml: cannot be read: No such file or directory"]
    assert list(document["offline"]) == ["StorageClass"]
    assert answer.returncode == 2
