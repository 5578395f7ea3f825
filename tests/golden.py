"""Writes what each tree gives into its `expected.prom`; the diff is the review. `make golden` runs it."""

from __future__ import annotations

import collectors
from agent import log
from tests.trees.tree import host_of
from tests.unit.test_contract import page, run_once, trees, workplace


def main() -> None:
    log.configure("error")
    for collector in collectors.ALL:
        for tree in trees(collector):
            with workplace() as place:
                (tree / "expected.prom").write_text(page(run_once(collector, host_of(tree, place))))


if __name__ == "__main__":
    main()
