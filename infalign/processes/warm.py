"""Stages that need not import torch and transformers anew: forks of one process that has.

Importing takes 5 to 7 s, a third of a short stage. `infalign run` starts one process of this
module, as soon as it knows of work, which imports at once. Where its address is in the environment,
`python -m infalign STAGE` has the stage run by a fork of it, with its own arguments, folder,
environment and output, and waits. The two end together: a stage that is killed takes its fork
along, and where a fork dies without a word, its stage ends as if killed. What cannot be had so (no
such process, other threads, code that was edited since) runs where it was asked for.

On Linux and without GPUs only: CUDA does not survive a fork, nor does much on macOS.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from infalign.files.stages import STAGES

ADDRESS = "INFALIGN_WARM"  # environment variable: a Unix socket's path
READY = b"\x01"  # everything is imported: the request may follow
HERE = b"\x02"  # what a fork says first; its exit code follows
LARGEST = 2**20  # bytes of a request


def is_possible() -> bool:
    """Whether stages of this machine may be forks."""
    return sys.platform == "linux" and not Path("/dev/nvidiactl").exists()


def run_there(word: str, arguments: Sequence[str]) -> int | None:
    """Have a stage run by a fork of the process whose address is given; its exit code.

    None where that cannot be: nothing has been done. Where the fork dies, so does this process.

    Args:
        word: of the stage.
        arguments: the whole command line behind `python -m infalign`.
    """
    address = os.environ.get(ADDRESS)
    if not address or STAGES[word].light:
        return None
    request = {
        "arguments": list(arguments),
        "folder": os.getcwd(),
        "environment": {k: v for k, v in os.environ.items() if k != ADDRESS},
    }
    with socket.socket(socket.AF_UNIX) as line:
        try:
            line.connect(address)
            if line.recv(1) != READY:
                return None
            socket.send_fds(line, [b"\n"], [0, 1, 2])
            line.sendall(json.dumps(request).encode() + b"\n")
            if line.recv(1) != HERE:
                return None
        except OSError:
            return None
        code = line.recv(1)
    if not code:
        os.kill(os.getpid(), signal.SIGKILL)
    return code[0]


def serve(address: str) -> None:
    """Import, then fork for each stage that asks, until standard input ends."""
    from infalign.processes.one_stage import PARAMS, apply_threads, import_stage

    apply_threads(PARAMS)
    state = _state()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()  # whoever asks meanwhile waits
        for stage in STAGES.values():
            if not stage.compares:
                import_stage(stage.word)
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            line, _ = listener.accept()
            with line:
                signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forks leave no zombies
                with contextlib.suppress(OSError, ValueError):  # who asked is gone
                    line.sendall(READY)
                    _answer(line, listener, state)


def _state() -> list[Any]:
    """What is read once, at import: the number of threads and the code."""
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    return [os.environ.get("OMP_NUM_THREADS"), [(f, f.stat().st_mtime_ns) for f in files]]


def _answer(line: socket.socket, listener: socket.socket, state: list[Any]) -> None:
    """Read one request and fork."""
    _, descriptors, _, _ = socket.recv_fds(line, 1, 3)
    try:
        with line.makefile("rb") as stream:
            request = json.loads(stream.readline(LARGEST))
        if len(descriptors) == 3 and os.fork() == 0:
            try:
                listener.close()
                _work(line, descriptors, request, state)
            finally:
                os._exit(1)  # before HERE: the stage runs where it was asked for
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _work(
    line: socket.socket, descriptors: Sequence[int], request: dict[str, Any], state: list[Any]
) -> NoReturn:
    """Be the stage that asked: the fork's whole life."""
    from infalign.processes.one_stage import PARAMS, apply_threads, main

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    faulthandler.enable()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    apply_threads(PARAMS)
    if _state() != state:
        os._exit(1)
    line.sendall(HERE)
    threading.Thread(target=_end_with, args=(line,), daemon=True).start()
    code = 1
    try:
        code = main(request["arguments"])
    except BaseException:
        with contextlib.suppress(OSError):
            traceback.print_exc()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        line.sendall(bytes([code & 0xFF]))
    os._exit(code & 0xFF)


def _end_with(line: socket.socket) -> None:
    """End this process with the one that asked for it."""
    with contextlib.suppress(OSError):
        line.recv(1)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    serve(sys.argv[1])
