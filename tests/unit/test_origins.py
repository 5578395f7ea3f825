"""Forms of other machines than ours: each collector is tried on three kernels and two distributions, or says why."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec
import pytest

import collectors

TREES = Path(__file__).resolve().parents[1] / "trees"
KERNELS, DISTRIBUTIONS = 3, 2
FEWER = {  # collectors with fewer, and the reason
    "layers": "what it reads is a runtime's: Docker, containerd and containers/storage, not a kernel's",
    "volumes": "what it reads is Docker's, and the table of mounts, which `filesystem` has from others",
}


class Origin(msgspec.Struct, forbid_unknown_fields=True):
    """Whose forms a tree has."""

    kernel: str
    distribution: str
    how: Literal["recorded", "described"]
    runtime: str = ""


ORIGINS = msgspec.yaml.decode((TREES / "origins.yml").read_bytes(), type=dict[str, dict[str, Origin]])


def test_every_origin_is_of_a_tree() -> None:
    named = {f"{collector}/{case}" for collector, cases in ORIGINS.items() for case in cases}
    assert {each for each in named if not (TREES / each / "why.md").exists()} == set()


@pytest.mark.parametrize("collector", [each.name for each in collectors.ALL])
def test_a_collector_is_tried_on_forms_of_several_kernels_and_distributions(collector: str) -> None:
    origins = ORIGINS.get(collector, {}).values()
    kernels, distributions = {each.kernel for each in origins}, {each.distribution for each in origins}
    has_enough = len(kernels) >= KERNELS and len(distributions) >= DISTRIBUTIONS
    assert has_enough != (collector in FEWER), (sorted(kernels), sorted(distributions))
