"""Alerts of a real filesystem, and of an agent that is killed, through the example for Alertmanager."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.inodes import Inodes, config
from tests.e2e.stack import Receiver, Stack, seen, stack, until
from tests.generate import ROOT

EXAMPLE = ROOT / "deploy" / "alertmanager" / "alertmanager.yml"
WARNING, CRITICAL = "UllageInodesWarning", "UllageInodesCritical"
DOWN, ABSENT = "UllageTargetDown", "UllageAbsent"


@pytest.fixture
def pager() -> Iterator[Receiver]:
    with closing(Receiver()) as made:
        yield made


@pytest.fixture
def team() -> Iterator[Receiver]:
    with closing(Receiver()) as made:
        yield made


def example(pager: Receiver, team: Receiver) -> str:
    """Return the example with our receivers, and in a hurry."""
    text = EXAMPLE.read_text()
    for name, receiver in (("pager", pager), ("team", team)):
        url = f"http://{name}.example.org/alerts"
        assert url in text
        text = text.replace(url, receiver.url)
    text = re.sub(r"group_wait: \w+", "group_wait: 1s", text)
    return re.sub(r"group_interval: \w+", "group_interval: 1s", text)


def is_firing(running: Stack, alert: str) -> bool:
    return running.query(f'ALERTS{{alertname="{alert}", alertstate="firing"}}') != []


@pytest.mark.e2e
@pytest.mark.root
@pytest.mark.slow
def test_who_is_told_of_what_and_what_is_not_worth_a_word(
    ext4: Path, tmp_path: Path, pager: Receiver, team: Receiver
) -> None:
    inodes = Inodes(ext4)
    with stack(tmp_path, config(ext4, "8s"), example(pager, team), is_hurried=True) as running:
        # critical inhibits the warning of the same target, which fires as well
        inodes.fill(0.92)
        until(lambda: pager.of(CRITICAL) == ["firing"], "the pager is told")
        assert is_firing(running, WARNING)
        running.evaluate(5)
        assert team.of(WARNING) == []

        # below critical the team is told of the warning
        inodes.fill(0.82)
        until(lambda: pager.of(CRITICAL) == ["firing", "resolved"], "the pager is told that it is over")
        until(lambda: team.of(WARNING) == ["firing"], "the team is told")
        inodes.fill(0.92)
        until(lambda: len(pager.of(CRITICAL)) == 3, "the pager is told again")

        # an agent that is down inhibits what it told last, its end too; and that there is none, that one is down
        running.agent.stop(signal.SIGKILL)
        until(lambda: pager.of(ABSENT) == ["firing"], "the pager is told that there is no agent")
        until(lambda: is_firing(running, DOWN) and not is_firing(running, CRITICAL), "what nobody sees fires no more")
        running.evaluate(5)
        assert pager.of(CRITICAL) == ["firing", "resolved", "firing"]

        running.agent.start()
        seen(running, "inodes", 0.91, 0.93)
        until(lambda: pager.of(ABSENT) == ["firing", "resolved"], "the pager is told that it is back")
        assert is_firing(running, CRITICAL)
        assert team.of(DOWN) == []
