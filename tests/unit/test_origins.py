"""Forms of other machines than ours: each collector is tried on three kernels and two distributions."""

from __future__ import annotations

import pytest

import collectors
from tests.trees.origins import ORIGINS, TREES

KERNELS, DISTRIBUTIONS = 3, 2


def test_every_origin_is_of_a_tree() -> None:
    named = {f"{collector}/{case}" for collector, cases in ORIGINS.items() for case in cases}
    assert {each for each in named if not (TREES / each / "why.md").exists()} == set()


@pytest.mark.parametrize("collector", [each.name for each in collectors.ALL])
def test_a_collector_is_tried_on_forms_of_several_kernels_and_distributions(collector: str) -> None:
    origins = ORIGINS.get(collector, {}).values()
    kernels, distributions = {each.kernel for each in origins}, {each.distribution for each in origins}
    assert len(kernels) >= KERNELS
    assert len(distributions) >= DISTRIBUTIONS
