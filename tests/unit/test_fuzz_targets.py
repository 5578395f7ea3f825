"""What fuzzing starts from: nothing is left out, and what once was found stays fixed, also where there is no fuzzer."""

from __future__ import annotations

import inspect
import pkgutil
import random
from importlib import import_module
from pathlib import Path
from types import FunctionType, ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collectors import readers
from tests.fuzz import targets
from tests.fuzz.damage import DAMAGES
from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).resolve().parents[1] / "fuzz" / "corpus"
READERS = [module.name for module in pkgutil.iter_modules(readers.__path__)]
OTHERS = ["storagelint"]
SEEDS = sorted(path for path in CORPUS.glob("*/*") if path.is_file())


def offered(reader: ModuleType) -> set[str]:
    """Return the names of the functions that a reader offers."""
    functions = inspect.getmembers(reader, inspect.isfunction)
    return {name for name, each in functions if each.__module__ == reader.__name__ and not name.startswith("_")}


def called(function: FunctionType) -> set[str]:
    """Return the names that a function of the targets uses, and those that it calls there."""
    names = set(function.__code__.co_names)
    for constant in function.__code__.co_consts:
        if inspect.iscode(constant):
            names |= set(constant.co_names)
    ours = {name: getattr(targets, name, None) for name in names}
    return names.union(*(called(each) for each in ours.values() if inspect.isfunction(each)))


def test_every_reader_has_a_target_and_seeds_and_nothing_else_has() -> None:
    assert sorted(TARGETS) == sorted(READERS + OTHERS)
    assert sorted({path.parent.name for path in SEEDS}) == sorted(READERS + OTHERS)


@pytest.mark.parametrize("name", READERS)
def test_all_that_a_reader_offers_is_fuzzed(name: str) -> None:
    target = TARGETS[name]
    assert inspect.isfunction(target)
    assert offered(import_module(f"collectors.readers.{name}")) <= called(target)


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"{seed.parent.name}-{seed.name}")
def test_no_seed_breaks_its_reader(seed: Path) -> None:
    TARGETS[seed.parent.name](seed.read_bytes())


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=60)
@given(data=st.data())
def test_no_damage_to_what_a_kernel_gave_breaks_a_reader(name: str, data: st.DataObject) -> None:
    text = data.draw(st.sampled_from([seed for seed in SEEDS if seed.parent.name == name])).read_bytes()
    for damage in data.draw(st.lists(st.sampled_from(DAMAGES), min_size=1, max_size=4)):
        text = damage(text, random.Random(data.draw(st.integers(0, 2**32))))
    TARGETS[name](text)


def test_the_seeds_stay_small() -> None:
    assert len(SEEDS) < 150
    assert sum(path.stat().st_size for path in SEEDS) < 400_000
