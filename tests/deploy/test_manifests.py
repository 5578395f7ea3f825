"""Manifests and chart against the schemas of three Kubernetes versions, of the operator, and against each other."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

import collectors
from agent import __version__
from agent.config import load
from tests.bench.measure import free_port
from tests.deploy.podsecurity import violations
from tests.deploy.tools import CHART, KUBERNETES, ROOT, Objects, kustomized, one, pod_of, templated, tool
from tests.e2e.stack import Program, fetch, until

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("amd64")]
VERSIONS = ("1.25.0", "1.31.0", "1.37.0")
OPERATOR = {"PodMonitor", "PrometheusRule"}
# a kustomization, and the same as values of the chart
SAME = {
    "base": (),
    "overlays/minimal": ("profile=minimal",),
    "overlays/privileged": ("profile=privileged",),
    "overlays/cgroup-v1": ("cgroup=v1",),
    "overlays/docker": ("docker.socket=true",),
    "overlays/apparmor": ("appArmor=unconfined",),
    "overlays/operator": ("podMonitor.enabled=true", "prometheusRule.enabled=true"),
}
ONLY_HELM = ("extraHostPaths={/data,/srv}", "image.digest=sha256:" + 64 * "0", "docker.socket=true", "profile=default")
HELMS_LABELS = (
    "app.kubernetes.io/instance",
    "app.kubernetes.io/version",
    "app.kubernetes.io/managed-by",
    "helm.sh/chart",
)


def chart(*values: str) -> Objects:
    return templated(*(f"--set={value}" for value in values))


def every() -> dict[str, Objects]:
    made = {path: kustomized(path) for path in SAME}
    made |= {f"chart {values}": chart(*values) for values in (*SAME.values(), ONLY_HELM)}
    return made


@pytest.fixture(scope="module")
def rendered() -> dict[str, Objects]:
    return every()


def test_every_overlay_is_put_to_the_test() -> None:
    assert {f"overlays/{each.name}" for each in (KUBERNETES / "overlays").iterdir()} == set(SAME) - {"base"}
    used = {
        path
        for each in (KUBERNETES / "overlays").glob("*/*.yaml")
        for path in re.findall(r"components/(\S+)", each.read_text())
    }
    assert used == {each.name for each in (KUBERNETES / "components").iterdir()}


@pytest.mark.parametrize("version", VERSIONS)
def test_objects_are_valid(rendered: dict[str, Objects], version: str) -> None:
    for source, objects in rendered.items():
        if version == "1.25.0" and source in ("overlays/apparmor", f"chart {SAME['overlays/apparmor']}"):
            continue  # which says that it needs 1.30
        assert objects, source
        for each in objects:
            if each["kind"] not in OPERATOR:
                kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.parametrize("kind", sorted(OPERATOR))
def test_objects_of_the_operator_are_valid(rendered: dict[str, Objects], kind: str) -> None:
    schema = json.loads((Path(__file__).with_name("schemas") / f"{kind.lower()}.json").read_text())
    found = [each for objects in rendered.values() for each in objects if each["kind"] == kind]
    assert len(found) == 2
    for each in found:
        jsonschema.validate(each, schema)
    wrong = {**found[0], "spec": {**found[0]["spec"], "surplus": 1}}
    with pytest.raises(jsonschema.ValidationError, match="surplus"):
        jsonschema.validate(wrong, schema)


@pytest.mark.parametrize("path", SAME)
def test_chart_and_kustomization_agree(rendered: dict[str, Objects], path: str) -> None:
    assert alike(rendered[f"chart {SAME[path]}"]) == alike(rendered[path])


def alike(objects: Objects) -> dict[str, Any]:
    """Return objects by kind without what only one of the two has a use for."""
    text = json.dumps([each for each in objects if each["kind"] != "Namespace"])
    text = re.sub(r'"ullage-[0-9a-z]{10}"', '"ullage"', text)  # kustomize's suffix of a ConfigMap
    made = {}
    for each in json.loads(text):
        _strip(each)
        if each["kind"] == "ConfigMap":
            each["data"] = {name: yaml.safe_load(value) for name, value in each["data"].items()}
        if each["kind"] == "DaemonSet":
            template = each["spec"]["template"]
            template["metadata"].pop("annotations", None)
            template["spec"]["containers"][0].pop("imagePullPolicy", None)
            for name in ("volumes", "containers"):
                template["spec"][name].sort(key=lambda one: one["name"])
            template["spec"]["containers"][0]["volumeMounts"].sort(key=lambda one: one["mountPath"])
        made[each["kind"]] = each
    return made


def _strip(value: Any) -> None:
    if isinstance(value, dict):
        for name in HELMS_LABELS:
            value.pop(name, None)
        for each in value.values():
            _strip(each)
    elif isinstance(value, list):
        for each in value:
            _strip(each)


def test_the_pod_keeps_to_the_baseline_but_for_what_is_documented(rendered: dict[str, Objects]) -> None:
    def found(path: str) -> set[str]:
        template = one(rendered[path], "DaemonSet")["spec"]["template"]
        return set(violations(template["metadata"], template["spec"]))

    capabilities = {"capability DAC_READ_SEARCH", "capability SYS_ADMIN", "capability SYS_PTRACE"}
    mounts = {"hostPath cgroup", "hostPath lib", "hostPath log"}
    assert found("base") == {"hostPID", "hostPath state", *mounts, *capabilities}
    assert found("overlays/apparmor") == found("base") | {"AppArmor Unconfined"}
    assert found("overlays/minimal") == {"hostPID", *mounts}
    assert found("overlays/privileged") == {
        "hostPID",
        "hostPath state",
        "hostPath cgroup",
        "hostPath root",
        "privileged",
    }


def test_every_mount_of_the_host_but_the_state_is_read_only_and_follows(rendered: dict[str, Objects]) -> None:
    for source, objects in rendered.items():
        spec = pod_of(objects)
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        for mount in spec["containers"][0]["volumeMounts"]:
            if "hostPath" in volumes[mount["name"]] and mount["name"] != "state":
                assert mount["readOnly"], source
                is_socket = volumes[mount["name"]]["hostPath"]["type"] == "Socket"
                assert is_socket or mount["mountPropagation"] == "HostToContainer", source
        assert {mount["name"] for mount in spec["containers"][0]["volumeMounts"]} == set(volumes), source


def test_the_version_is_the_agent_s(rendered: dict[str, Objects]) -> None:
    image = pod_of(rendered["base"])["containers"][0]["image"]
    assert image == f"ghcr.io/ullage/ullage:{__version__}"
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["version"] == __version__


def test_the_chart_is_clean_and_refuses_what_its_schema_does_not_know() -> None:
    done = subprocess.run([tool("helm"), "lint", "--strict", str(CHART)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for wrong in (
        "profil=minimal",
        "profile=all",
        "appArmor=none",
        "extraHostPaths={data}",
        "image.digest=abc",
        "config.colectors.a=1",
    ):
        command = [tool("helm"), "template", str(CHART), f"--set={wrong}"]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode != 0, wrong
        assert "schema" in done.stderr


def test_the_agent_takes_the_configuration_that_the_chart_makes_of_values(tmp_path: Path) -> None:
    made = chart("extraHostPaths={/data}", "config.runtime.docker.root={/data/docker}")
    (tmp_path / "ullage.yml").write_text(one(made, "ConfigMap")["data"]["ullage.yml"])
    config = load(str(tmp_path / "ullage.yml"), collectors.ALL, {})
    assert config.runtimes.docker_roots == ("/data/docker",)


def test_every_value_is_documented_and_in_the_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    assert set(schema["properties"]) - {"global"} == set(values)
    for name, value in schema["properties"].items():
        assert value["description"].endswith("."), name


def test_prometheus_takes_the_plain_job_and_makes_these_labels(tmp_path: Path) -> None:
    config = yaml.safe_load((KUBERNETES / "prometheus.yml").read_text())
    del config["rule_files"]
    (job,) = config["scrape_configs"]
    # Debian's Prometheus is built without Kubernetes' discovery: the labels that it gives are written down here
    assert job.pop("kubernetes_sd_configs") == [{"role": "pod", "namespaces": {"names": ["ullage"]}}]
    found = {"pod_label_app_kubernetes_io_name": "ullage", "pod_name": "ullage-x7k2p", "namespace": "ullage"}
    found |= {"pod_node_name": "node-1", "pod_container_name": "agent", "pod_container_port_name": "metrics"}
    job["static_configs"] = [
        {
            "targets": [f"10.0.0.{number}:10940"],
            "labels": {f"__meta_kubernetes_{name}": value for name, value in {**found, **other}.items()},
        }
        for number, other in enumerate(
            ({}, {"pod_container_port_name": "http"}, {"pod_label_app_kubernetes_io_name": ""})
        )
    ]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/tsdb"]
    program = Program(
        "prometheus", tmp_path, [*command, f"--web.listen-address=127.0.0.1:{port}"], f"http://127.0.0.1:{port}/-/ready"
    )
    try:
        program.start()
        targets: list[dict[str, Any]] = []

        def has_targets() -> bool:
            answer = json.loads(fetch(f"http://127.0.0.1:{port}/api/v1/targets?state=active"))
            targets[:] = answer["data"]["activeTargets"]
            return bool(targets)

        until(has_targets, "a target")
        assert [each["labels"] for each in targets] == [{"job": "ullage", "instance": "node-1", "node": "node-1"}]
    finally:
        program.close()


def test_the_operator_s_and_the_plain_job_make_the_same_labels(rendered: dict[str, Objects]) -> None:
    (endpoint,) = one(rendered["overlays/operator"], "PodMonitor")["spec"]["podMetricsEndpoints"]
    (job,) = yaml.safe_load((KUBERNETES / "prometheus.yml").read_text())["scrape_configs"]
    assert endpoint["honorLabels"]
    assert job["honor_labels"]
    operators = {each["targetLabel"]: each["sourceLabels"] for each in endpoint["relabelings"] if "targetLabel" in each}
    plain = {each["target_label"]: each["source_labels"] for each in job["relabel_configs"] if "target_label" in each}
    assert operators == plain
    dropped = [each["regex"] for each in endpoint["relabelings"] if each.get("action") == "labeldrop"]
    # what the operator adds by itself to the targets of a PodMonitor
    assert dropped == ["namespace|pod|container|endpoint"]


def test_the_rules_are_the_shipped_ones(rendered: dict[str, Objects]) -> None:
    shipped = yaml.safe_load((ROOT / "deploy/rules/ullage.rules.yml").read_text())
    for source in ("overlays/operator", f"chart {SAME['overlays/operator']}"):
        assert one(rendered[source], "PrometheusRule")["spec"] == shipped


def test_the_chart_has_the_shipped_dashboards() -> None:
    maps = [each for each in templated("--set=dashboards.enabled=true") if each["kind"] == "ConfigMap"]
    shown = {name: content for each in maps for name, content in each["data"].items() if name.endswith(".json")}
    assert shown == {path.name: path.read_text() for path in (ROOT / "dashboards").glob("*.json")}
    labels = [each["metadata"]["labels"] for each in maps if next(iter(each["data"])) in shown]
    assert all(each["grafana_dashboard"] == "1" for each in labels)
