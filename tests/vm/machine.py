"""Machine: a throw-away virtual machine on this host's own root, with device-mapper, cgroup v2, PSI and NVMe.

Its root is the host's, shared read-only by virtiofs below a layer in memory: the guest has the host's Python, virtual
environment, tools and checkout at the same paths, and what it writes is gone with it. Disks /dev/vda, vdb, vdc and
/dev/nvme0n1 are empty, as is /dev/sda, on SATA (`modprobe ahci sd_mod`). `results` is the one directory that both can
write; the guest sees it as RESULTS.

Tried with QEMU 7.2 and its virtiofsd (Debian 12), without KVM.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.vm.boot.server import HELLO, PORT, Reply, Request
from tests.vm.errors import CommandFailed, GuestDied, GuestStuck, Unavailable
from tests.vm.kernel import Kernel

RESULTS = "/run/lab/results"

_BOOT = Path(__file__).parent / "boot"
_QEMU = "qemu-system-x86_64"
_VIRTIOFSD = "/usr/lib/qemu/virtiofsd"
_TOOLS = (_QEMU, _VIRTIOFSD, "apt-get", "depmod", "dmsetup", "dpkg-deb", "ip", "mount", "setpriv", "unshare")
_BOOT_SECONDS = 120.0
_GRACE_SECONDS = 10.0  # for an answer to travel, over the time that the guest itself gives a command
_STOP_SECONDS = 10.0
_CONSOLE_LINES = 60
_DISK_BYTES = 3 << 30
_NVME_BYTES = 1 << 30
_SATA_BYTES = 64 << 20
_SATA = "serial=sata0,model=INTEL SSDSC2KB480G8"  # a drive is read by its model


def check_host() -> None:
    """Raise Unavailable when this host cannot run the lab."""
    if platform.machine() != "x86_64":
        raise Unavailable(f"the lab's kernel is x86_64, this machine is {platform.machine()}")
    if os.geteuid() != 0:
        raise Unavailable("the lab needs root, to share the host's root read-only")
    absent = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if absent:
        raise Unavailable(f"the lab needs {', '.join(absent)}; see tests/vm/packages.txt")
    if subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode != 0:
        raise Unavailable("the lab needs the right to mount, which this container does not have")


def parse_mount_points(mountinfo: str) -> list[str]:
    r"""Return the mount points of a mountinfo(5) text.

    One line: `36 35 98:0 /mnt1 /mnt\0402 rw,noatime - ext3 /dev/root rw`, whose mount point is `/mnt 2`.
    """
    return [
        re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), line.split(" ")[4])
        for line in mountinfo.splitlines()
    ]


class Machine:
    """One machine, running between `start` and `stop`; also a context manager.

    `visible` names paths that the guest must see although they may lie on other file systems than the root.
    `forwards` maps TCP ports of the host's loopback to ports of the guest. Everything is ended by its own process id,
    and ends with the thread that called `start`, however that ends.
    """

    def __init__(
        self,
        kernel: Kernel,
        *,
        memory_mib: int = 2048,
        cpus: int = 2,
        visible: Iterable[Path] = (),
        forwards: Mapping[int, int] | None = None,
    ) -> None:
        self.boot_seconds = 0.0
        self._kernel = kernel
        self._memory_mib = memory_mib
        self._cpus = cpus
        self._visible = [*visible, kernel.root, _BOOT, Path(sys.prefix), Path(sys.base_prefix)]
        self._forwards = forwards or {}
        self._cleanup = ExitStack()
        self._ids = itertools.count(HELLO + 1)
        self._waiting: dict[int, Future[Reply]] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def results(self) -> Path:
        """Where the host sees the guest's RESULTS."""
        return self._directory / "results"

    def console(self) -> str:
        """Return the last lines that the guest's kernel and init wrote."""
        text = (self._directory / "console").read_text(errors="replace")
        return "\n".join(text.splitlines()[-_CONSOLE_LINES:])

    def start(self) -> None:
        """Boot, and return when the guest answers."""
        begun = time.monotonic()
        self._directory = Path(self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="ullage-lab-")))
        self.results.mkdir()
        try:
            with ExitStack() as handed_over:
                self._boot(handed_over)
            self._wait(self._hello, _BOOT_SECONDS, "the guest did not come up")
        except BaseException:
            self.stop()
            raise
        self.boot_seconds = time.monotonic() - begun

    def stop(self) -> None:
        """End the guest at once, as if by pulling the plug, and remove what is left of it."""
        self._cleanup.close()

    def submit(
        self,
        argv: Sequence[str],
        *,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
    ) -> Future[Reply]:
        """Start a command in the guest, which ends it after `timeout` seconds. The future fails when the guest dies."""
        request = Request(id=next(self._ids), argv=[*argv], env=dict(env or {}), cwd=cwd, timeout=timeout)
        future = self._expect(request["id"])
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise GuestDied("the guest is gone", self.console()) from error
        return future

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 60.0,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
    ) -> str:
        """Run a command in the guest and return its stdout; raise a GuestError when it fails or is not done in time."""
        shown = shlex.join(argv)
        future = self.submit(argv, timeout=timeout, env=env, cwd=cwd)
        reply = self._wait(future, timeout + _GRACE_SECONDS, f"no answer in {timeout:g} s: {shown}")
        if reply["code"] is None:
            raise GuestStuck(f"not done in {timeout:g} s: {shown}\n{reply['stderr']}", self.console())
        if reply["code"] != 0:
            raise CommandFailed(f"exit code {reply['code']}: {shown}\n{reply['stderr']}", self.console())
        return reply["stdout"]

    def _boot(self, handed_over: ExitStack) -> None:
        """Start the three processes. What the stack holds is theirs, and closed on our side afterwards."""
        root = self._directory / "root"
        root.mkdir()
        root_share = self._share(handed_over, root, "always", self._bind_read_only(root))
        results_share = self._share(handed_over, self.results, "auto", "")
        self._socket, rpc = socket.socketpair()
        self._cleanup.callback(self._socket.close)
        handed_over.enter_context(rpc)
        self._hello = self._expect(HELLO)
        reader = threading.Thread(target=self._read, daemon=True)
        reader.start()
        self._cleanup.callback(reader.join)  # it ends when QEMU, which is ended before, closes its side
        self._spawn(self._qemu(root_share, results_share, rpc), root_share, results_share, rpc)

    def _share(self, handed_over: ExitStack, directory: Path, cache: str, prepare: str) -> socket.socket:
        """Start a virtiofsd for a directory and return a connection to it."""
        listener = handed_over.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind("")  # an abstract address of the kernel's choice: a long temporary path would not fit
        listener.listen(1)
        connection = handed_over.enter_context(socket.socket(socket.AF_UNIX))
        connection.connect(listener.getsockname())
        options = f"source={directory},cache={cache},sandbox=chroot,log_level=err"
        virtiofsd = shlex.join([_VIRTIOFSD, f"--fd={listener.fileno()}", "-o", options, "--thread-pool-size=4"])
        script = f"{prepare}exec {virtiofsd}"
        self._spawn(["unshare", "--mount", "--propagation=private", "sh", "-ec", script], listener)
        return connection

    def _bind_read_only(self, target: Path) -> str:
        """Return the shell lines that bind the host's root, and the mounts below it that the guest needs."""
        real = [path.resolve() for path in self._visible]
        needed = {str(place) for path in real for place in (path, *path.parents)}
        mounts = {point for point in parse_mount_points(Path("/proc/self/mountinfo").read_text()) if point in needed}
        return "".join(
            shlex.join(["mount", "-o", "bind,ro", mount, f"{target}{mount}"]) + "\n" for mount in sorted(mounts | {"/"})
        )

    def _qemu(self, root: socket.socket, results: socket.socket, rpc: socket.socket) -> list[str]:
        command = [
            _QEMU,
            *("-accel", "tcg,thread=multi"),
            # cx16: Linux 6.12 panics on QEMU 7.2's emulation of cmpxchg16b; la57: page walks are dearer with it
            *("-cpu", "max,la57=off,cx16=off"),
            *("-smp", str(self._cpus), "-m", str(self._memory_mib), "-M", "q35"),
            *("-nodefaults", "-display", "none", "-no-reboot"),
            *("-object", f"memory-backend-memfd,id=memory,size={self._memory_mib}M,share=on"),
            *("-numa", "node,memdev=memory"),  # virtiofsd reads and writes the guest's memory
            *("-serial", f"file:{self._directory / 'console'}"),
            *("-kernel", str(self._kernel.image), "-append", self._command_line()),
            *("-device", "virtio-serial-pci"),
            *("-chardev", f"socket,id=rpc,fd={rpc.fileno()}", "-device", f"virtserialport,chardev=rpc,name={PORT}"),
        ]
        for tag, connection in (("root", root), ("results", results)):
            command += ["-chardev", f"socket,id={tag},fd={connection.fileno()}"]
            command += ["-device", f"vhost-user-fs-pci,queue-size=1024,chardev={tag},tag={tag}"]
        for name in ("vda", "vdb", "vdc"):
            command += [
                "-drive",
                self._disk(name, _DISK_BYTES),
                "-device",
                f"virtio-blk-pci,drive={name},serial={name}",
            ]
        command += ["-drive", self._disk("nvme0", _NVME_BYTES), "-device", "nvme,id=nvme0,drive=nvme0,serial=nvme0"]
        command += ["-drive", self._disk("sata0", _SATA_BYTES), "-device", f"ide-hd,drive=sata0,bus=ide.0,{_SATA}"]
        forwards = "".join(f",hostfwd=tcp:127.0.0.1:{host}-:{guest}" for host, guest in self._forwards.items())
        return [*command, "-nic", f"user,model=virtio-net-pci,restrict=on{forwards}"]

    def _command_line(self) -> str:
        return " ".join(
            [
                "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable no_timer_check",
                f'root=root rootfstype=virtiofs ro init="{_BOOT / "init"}"',
                f'LAB_KERNEL="{self._kernel.root}" LAB_PYTHON="{sys.executable}"',
            ]
        )

    def _disk(self, name: str, size: int) -> str:
        path = self._directory / f"{name}.img"
        path.touch()
        os.truncate(path, size)
        return f"file={path},if=none,id={name},format=raw,cache=unsafe,discard=unmap"

    def _spawn(self, command: list[str], *inherited: socket.socket) -> None:
        with (self._directory / "processes").open("ab") as log:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[each.fileno() for each in inherited],
            )
        self._cleanup.callback(_end, process)

    def _expect(self, request: int) -> Future[Reply]:
        future: Future[Reply] = Future()
        with self._lock:
            self._waiting[request] = future
        return future

    def _wait(self, future: Future[Reply], timeout: float, otherwise: str) -> Reply:
        try:
            return future.result(timeout)
        except TimeoutError as error:
            raise GuestStuck(otherwise, self.console()) from error

    def _read(self) -> None:
        """Hand each reply to the one who waits for it, until the guest is gone; then tell them all."""
        with self._socket.makefile("rb") as replies:
            for line in replies:
                reply: Reply = json.loads(line)
                with self._lock:
                    future = self._waiting.pop(reply["id"])
                future.set_result(reply)
        with self._lock:
            left = list(self._waiting.values())
        for future in left:
            said = (self._directory / "processes").read_text(errors="replace")
            future.set_exception(GuestDied(f"the guest died\n{said}".rstrip(), self.console()))


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
