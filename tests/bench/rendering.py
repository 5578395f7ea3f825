"""Rendering 20,000 samples, against prometheus_client's custom collector."""

from __future__ import annotations

import random
from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import generate_latest

from agent.exposition import Renderer, make_page
from agent.metric import Family, Metric
from tests.bench.measure import Result, own_cpu, rounds, spent

METRICS = tuple(Metric(f"ullage_m{n}_bytes", "Help.", ("namespace", "pod", "container", "id")) for n in range(10))
LABELSETS = tuple((f"namespace-{n % 40}", f"pod-{n}-x7k2p", "main", f"{n:012x}") for n in range(2000))
REPEATS = 20


class Theirs:
    """A custom collector as prometheus_client's documentation shows it."""

    def __init__(self, families: list[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for metric, labelsets, values in self._families:
            family = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
            for labels, value in zip(labelsets, values, strict=True):
                family.add_metric(labels, value)
            yield family


def families() -> list[Family]:
    """Return 20,000 samples with the same labels and other values at each call: nothing can be kept but labels."""
    return [Family(metric, LABELSETS, [random.randrange(1 << 36) for _ in LABELSETS]) for metric in METRICS]


def run() -> Iterator[Result]:
    renderer = Renderer()
    fresh = [families() for _ in range(REPEATS)]

    def ours() -> float:
        return spent(lambda: [make_page(renderer, each, 0.0, 1.0) for each in fresh], own_cpu) / REPEATS

    def theirs() -> float:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(Theirs(fresh[0]))
        return spent(lambda: generate_latest(registry), own_cpu)

    values, detail = rounds(ours, theirs)
    yield Result("rendering 20,000 samples, against prometheus_client", values, 1 / 50, detail=detail)
