"""The guest's server: runs commands for the host. JSON, one object a line, on the virtio-serial port `rpc`.

Started without site-packages, so that the guest is there sooner: standard library only.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import BinaryIO, TypedDict

PORT = "rpc"
HELLO = 0


class Request(TypedDict):
    """A command to run. `timeout` is in seconds; `env` adds to the server's own."""

    id: int
    argv: list[str]
    env: dict[str, str]
    cwd: str
    timeout: float | None


class Reply(TypedDict):
    """What became of a request; `code` is None when it did not end in time. The first one, HELLO, is unasked for."""

    id: int
    code: int | None
    stdout: str
    stderr: str


def run(request: Request) -> Reply:
    """Run one command, and end its whole session when its time is over."""
    try:
        process = subprocess.Popen(
            request["argv"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | request["env"],
            cwd=request["cwd"],
            start_new_session=True,
        )
    except OSError as error:
        return Reply(id=request["id"], code=127, stdout="", stderr=str(error))
    code: int | None
    try:
        stdout, stderr = process.communicate(timeout=request["timeout"])
        code = process.returncode
    except subprocess.TimeoutExpired as error:
        os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr, code = error.stdout or b"", error.stderr or b"", None
    return Reply(
        id=request["id"], code=code, stdout=stdout.decode(errors="replace"), stderr=stderr.decode(errors="replace")
    )


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer requests, each in a thread of its own: one that hangs holds up no other."""
    lock = threading.Lock()

    def send(reply: Reply) -> None:
        with lock:
            replies.write(json.dumps(reply).encode() + b"\n")
            replies.flush()

    def answer(request: Request) -> None:
        send(run(request))

    send(Reply(id=HELLO, code=0, stdout="", stderr=""))
    for line in requests:
        threading.Thread(target=answer, args=(json.loads(line),), daemon=True).start()


def find_port() -> str:
    """Return the device of our port, as soon as it is there; without a udevd nothing links its name."""
    while True:
        for name in Path("/sys/class/virtio-ports").glob("*/name"):
            if name.read_text().strip() == PORT:
                return f"/dev/{name.parent.name}"
        time.sleep(0.01)


if __name__ == "__main__":
    device = os.open(find_port(), os.O_RDWR)
    with os.fdopen(device, "rb") as reader, os.fdopen(os.dup(device), "wb") as writer:
        serve(reader, writer)
