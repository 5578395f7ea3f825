"""From the inodes of a real ext4 to a webhook receiver, through real Prometheus and Alertmanager."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.e2e.inodes import Inodes, config
from tests.e2e.stack import seen, stack, until

WARNING, CRITICAL = "UllageInodesWarning", "UllageInodesCritical"


@pytest.mark.e2e
@pytest.mark.root
@pytest.mark.slow
def test_one_notification_up_none_in_the_band_one_down(ext4: Path, tmp_path: Path) -> None:
    inodes = Inodes(ext4)
    with stack(tmp_path, config(ext4, "4s")) as running:
        receiver = running.receiver

        inodes.fill(0.70)
        seen(running, "inodes", 0.69, 0.71)
        running.evaluate(5)
        assert receiver.notifications == []

        inodes.fill(0.92)
        until(lambda: len(receiver.notifications) >= 2, "both tiers are notified")
        running.evaluate(5)
        assert sorted(receiver.notifications, key=lambda n: n[1]) == [
            (
                "firing",
                CRITICAL,
                receiver.notifications[0][2] | {"alertname": CRITICAL, "severity": "critical", "tier": "critical"},
            ),
            (
                "firing",
                WARNING,
                receiver.notifications[0][2] | {"alertname": WARNING, "severity": "warning", "tier": "warning"},
            ),
        ]
        labels = receiver.notifications[0][2]
        assert labels["mountpoint"] == str(ext4)
        assert labels["fstype"] == "ext4"
        assert labels["node"] == "node-1"

        for ratio in (0.86, 0.89) * 5:  # inside the band of the critical tier
            inodes.fill(ratio)
            seen(running, "inodes", ratio - 0.005, ratio + 0.005)
            running.evaluate(2)
        assert len(receiver.notifications) == 2

        running.agent.stop(signal.SIGKILL)
        running.agent.start()
        seen(running, "inodes", 0.88, 0.90)
        running.evaluate(8)
        assert len(receiver.notifications) == 2

        assert running.prometheus.stop() == 0
        running.prometheus.start()
        seen(running, "inodes", 0.88, 0.90)
        running.evaluate(8)
        assert len(receiver.notifications) == 2

        inodes.fill(0.50)
        until(lambda: len(receiver.notifications) >= 4, "both tiers are resolved")
        inodes.fill(0.78)  # in the band of the warning tier, from below
        seen(running, "inodes", 0.77, 0.79)
        running.evaluate(8)
        assert receiver.of(CRITICAL) == ["firing", "resolved"]
        assert receiver.of(WARNING) == ["firing", "resolved"]
        assert running.agent.stop() == 0
