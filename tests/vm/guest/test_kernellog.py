"""What the kernel of the guest says of thin pools, and of a whole cgroup that it kills, in the collector's series."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.cgroups import MIB, cgroup
from tests.real.kernellog import Agent
from tests.vm.guest.pools import pool, run, write

CONTAINER = "c7" * 32
GROW = "sleep 1000 & x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done"


@pytest.fixture
def agent() -> Iterator[Agent]:
    made = Agent()
    yield made
    made.running.close()


def number_of(name: str) -> str:
    """Return what the kernel calls a mapped device."""
    return f"dm-{run('dmsetup', 'info', '--columns', '--noheadings', '--options', 'minor', name)}"


def test_a_thin_pool_that_has_no_space_left(agent: Agent) -> None:
    with pool("told", data_mib=64) as made, contextlib.ExitStack() as stack:
        device = number_of(made.name)
        timeout = Path("/sys/module/dm_thin_pool/parameters/no_space_timeout")
        stack.callback(timeout.write_text, timeout.read_text())
        timeout.write_text("3")
        assert write(made.thin, 0, 80 * MIB)
        agent.until("dm_thin", "low_data", device)
        agent.until("dm_thin", "mode_out_of_data_space", device)
        assert not {found.finding.id for found in agent.runner.outcome.findings if found.target == device}


def test_a_thin_pool_whose_metadata_fails(agent: Agent) -> None:
    with pool("told", data_mib=64) as made, contextlib.ExitStack() as stack:
        device = number_of(made.name)
        write(made.thin, 0, 8 * MIB)
        made.swap_metadata("0 4096 error")
        stack.callback(made.swap_metadata, "0 4096 linear /dev/vdb 0")
        assert write(made.thin, 10 * MIB, 14 * MIB)
        agent.until("dm_thin", "metadata_error", device)
        agent.until("dm_thin", "mode_fail", device)


def test_a_job_that_drops_caches_is_found_where_its_remedy_looks(agent: Agent) -> None:
    job = Path("/etc/cron.d/cleaner")
    job.write_text("0 * * * * root echo 1 > /proc/sys/vm/drop_caches\n")
    run("sh", "-c", "printf cleaner > /proc/self/comm; echo 1 > /proc/sys/vm/drop_caches")
    agent.until("memory", "drop_caches", "")
    remedy = agent.found("drop-caches-process", "cleaner").remedy
    look = remedy.partition("remove it: ")[2].partition(". Bound")[0]

    def seen() -> str:
        """Return what is found, but not in what this host has much of."""
        script = f"mount -t tmpfs none /opt; mount -t tmpfs none /usr/local; {look}"
        return subprocess.run(
            ["unshare", "--mount", "sh", "-c", script], check=False, capture_output=True, text=True
        ).stdout

    assert f"{job}:0 * * * * root echo 1" in seen()
    job.unlink()
    assert str(job) not in seen()


def test_all_processes_of_a_container_with_oom_group_are_its_own(agent: Agent) -> None:
    with cgroup(Path("/sys/fs/cgroup/ullage-test/docker") / CONTAINER) as made:
        (made.path / "memory.max").write_text(str(16 * MIB))
        (made.path / "memory.oom.group").write_text("1")
        with contextlib.suppress(Exception):  # the shell is killed, and what waits for it too
            made.run(GROW)
        agent.until("memory", "cgroup_oom_kill", "")
        killed = agent.read("ullage_container_oom_kills_total")["", "", "", CONTAINER[:12]]
        assert killed == agent.risen("memory", "cgroup_oom_kill", "")
        assert killed >= 2
