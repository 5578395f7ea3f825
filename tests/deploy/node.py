"""A node of its own for tests of deployments: one process tree with its own mounts, processes and usual directories.

Its root is shared, as systemd makes it, and /run, /var/lib and /var/log are its own. Killing its process 1 ends all of
it, mounts and loop devices included: nothing is left on the machine but cgroups, which are removed then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

WAIT = 120.0  # seconds until a test gives up

# nothing goes to the machine nor comes from it; what other tests have mounted on it is not this node's
_SETUP = """
set -e
sed -n -E 's,^([^ ]+ ){{4}}([^ ]+) .* - (fuse[^ ]* |[^ ]+ /dev/loop).*,\\2,p' /proc/self/mountinfo | sort -r |
    while read -r mount; do umount -l "$(printf '%b' "$mount")"; done
mount -t tmpfs -o mode=755,size=512m tmpfs /run
mkdir -p {base}/lib {base}/log {base}/upper {base}/work
mount -t overlay -o lowerdir=/var/lib,upperdir={base}/upper,workdir={base}/work overlay /var/lib
for name in {own}; do
    mkdir -p {base}/$name /var/lib/$name
    mount --bind {base}/$name /var/lib/$name
done
mount --bind {base}/log /var/log
mkdir -p /var/log/pods /var/log/containers
{more}
mount --make-rshared /
touch {base}/ready
trap : TERM HUP INT
while :; do sleep 3600 & wait $!; done
"""


# a process joins the node's cgroup in every hierarchy; cpusets of v1 begin empty
_JOIN = """
set -e
for hierarchy in /sys/fs/cgroup/*/; do
    own=${{hierarchy}}{cgroup}
    mkdir -p $own
    for name in cpus mems; do
        [ ! -e $own/cpuset.$name ] || cat ${{hierarchy}}cpuset.$name > $own/cpuset.$name
    done
    echo $$ > $own/cgroup.procs
done
exec "$@"
"""


class Node:
    """The node. `directory` keeps its files; those named `own` below /var/lib are no overlay, as runtimes want.

    `namespaces` are further ones, as options of unshare(1); with a cgroup namespace all of it runs in one cgroup.
    `setup` is a script that is run in it first.
    """

    def __init__(
        self,
        directory: Path,
        own: tuple[str, ...] = ("docker", "ullage"),
        namespaces: tuple[str, ...] = (),
        setup: str = "",
    ) -> None:
        self.directory = directory
        self._services: list[subprocess.Popen[bytes]] = []
        self._namespaces = ("--mount", "--pid", *namespaces)
        self.cgroup = f"ullage-node-{os.getpid()}"
        self._join: list[str] = []
        if "--cgroup" in namespaces:
            self._join = ["sh", "-c", _JOIN.format(cgroup=self.cgroup), "join"]
        script = _SETUP.format(base=directory, own=" ".join(own), more=setup)
        command = ["unshare", *self._namespaces, "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]
        with open(directory / "node.log", "wb") as log:
            self._process = subprocess.Popen(
                [*self._join, *command, "sh", "-c", script], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        end = time.monotonic() + WAIT
        while not (directory / "ready").exists():
            said = (directory / "node.log").read_text()
            assert self._process.poll() is None, said
            assert time.monotonic() < end, said
            time.sleep(0.02)
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        self.pid = int(children.split()[0])

    def command(self, *command: str) -> list[str]:
        """Return a command as it is run inside."""
        return [*self._join, "nsenter", "--target", str(self.pid), *self._namespaces, "--wd=/", *command]

    def try_to(self, *command: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        """Run a command inside."""
        return subprocess.run(self.command(*command), check=False, capture_output=True, input=stdin, timeout=600)

    def run(self, *command: str, stdin: bytes | None = None) -> str:
        """Run a command inside that must succeed; return what it prints."""
        done = self.try_to(*command, stdin=stdin)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.decode()}{done.stdout.decode()[-2000:]}"
        return done.stdout.decode().strip()

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a service inside, with its log beside those of the others."""
        with open(self.directory / f"{name}.log", "ab") as log:
            service = subprocess.Popen(self.command(*command), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._services.append(service)
        return service

    def mounted(self, kind: str, mount: str, size: int, *flags: str, options: str = "defaults") -> None:
        """Make a filesystem of so many MiB and mount it inside; it ends with the node."""
        image = self.directory / f"{mount.strip('/').replace('/', '-')}.img"
        with open(image, "wb") as file:
            file.truncate(size << 20)
        self.run(f"mkfs.{kind}", "-q", *flags, str(image))
        self.run("mkdir", "-p", mount)
        self.run("mount", "-o", f"loop,{options}", str(image), mount)

    def close(self) -> None:
        """End everything inside."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        for process in (self._process, *self._services):
            process.kill()
            process.wait()
        end = time.monotonic() + WAIT
        while left := [each for each in Path("/sys/fs/cgroup").glob(f"*/{self.cgroup}") if each.is_dir()]:
            for cgroup in left:
                for directory, _, _ in os.walk(cgroup, topdown=False):
                    with contextlib.suppress(OSError):  # the last tasks leave a moment after process 1
                        os.rmdir(directory)
            assert time.monotonic() < end, f"cgroups are left: {left}"
            time.sleep(0.02)


@contextlib.contextmanager
def node(directory: Path) -> Iterator[Node]:
    """Have a node for the time of a block."""
    made = Node(directory)
    try:
        yield made
    finally:
        made.close()
