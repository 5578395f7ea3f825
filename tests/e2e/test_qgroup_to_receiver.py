"""From a qgroup of a real btrfs to a webhook receiver: three tiers up and down, through Prometheus and Alertmanager."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.qgroups import Subvolume, enable
from tests.e2e.stack import seen, stack, until

CONFIG = """
collectors:
  qgroup: {interval: 1s}
watermarks:
  qgroup_referenced:
    tiers: {warning: {for: 1s}, high: {for: 1s}, critical: {for: 1s}}
rules: {keep_firing_for: 4s}
"""
ALERTS = {tier: f"UllageQgroupReferenced{tier}" for tier in ("Warning", "High", "Critical")}


@pytest.mark.e2e
@pytest.mark.root
@pytest.mark.slow
def test_one_notification_of_each_tier_up_none_in_a_band_one_of_each_down(btrfs: Path, tmp_path: Path) -> None:
    enable(btrfs)
    subvolume = Subvolume(btrfs, "limited")
    with stack(tmp_path, CONFIG) as running:
        receiver = running.receiver

        def told(tier: str) -> list[str]:
            return receiver.of(ALERTS[tier])

        def wait(tier: str, *statuses: str) -> None:
            until(lambda: told(tier) == list(statuses), f"{tier} is {statuses[-1]}")

        def fill(*percents: int) -> None:
            for percent in percents:
                subvolume.fill(percent)
                # metadata adds a little; no level is nearer than a whole percent
                seen(running, "qgroup_referenced", percent / 100, percent / 100 + 0.009)
                running.evaluate(3)

        fill(84)
        assert receiver.notifications == []
        up = ((86, ("Warning",)), (93, ("Warning", "High")), (98, ("Warning", "High", "Critical")))
        for percent, tiers in up:
            fill(percent)
            wait(tiers[-1], "firing")
            fill(percent - 4, percent, percent - 4, percent)  # inside the band of that tier, and over no other's edge
            assert {tier: told(tier) for tier in ALERTS} == {
                tier: ["firing"] if tier in tiers else [] for tier in ALERTS
            }
        (labels,) = (labels for _, name, labels in receiver.notifications if name == ALERTS["Critical"])
        assert (labels["severity"], labels["tier"], labels["path"]) == ("critical", "critical", "/limited")
        assert labels["node"] == "node-1"

        down = ((92, ("Critical",)), (86, ("Critical", "High")), (79, ("Critical", "High", "Warning")))
        for percent, tiers in down:
            fill(percent)
            wait(tiers[-1], "firing", "resolved")
            fill(percent + 4, percent, percent + 4, percent)  # from below, the band raises nothing
            assert {tier: told(tier) for tier in ALERTS} == {
                tier: ["firing", "resolved"] if tier in tiers else ["firing"] for tier in ALERTS
            }
        assert running.agent.stop() == 0
