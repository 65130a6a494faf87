"""A server of vLLM on this machine, from an environment of its own (`make engine`).

vLLM and this program want other versions of the same libraries, so that it is only ever a process
beside this one. It ends with the context, and with the process that started it, however that ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from infalign.engines.asking import Failed, fetch
from infalign.errors import InputError
from infalign.settings.servers import Generation

HOST = "127.0.0.1"
STARTUP_SECONDS = 1800.0  # large models load slowly
GRACE_SECONDS = 20.0  # between SIGTERM and SIGKILL
POLL_SECONDS = 0.5
LEAST_HEAD = 32  # of vLLM's attention on a CPU
AGAIN = 3  # times that a server is started again, of those that did not last
LASTING_SECONDS = 600.0
LOGS = Path(".infalign") / "engines"
# vLLM's CPU build: memory of keys and values in GiB, and threads where the machine puts them.
CPU_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
# Where a prompt is read in parts, the CPU build sets a seeded request's stream of random numbers
# back, which torch's CPU generator cannot, and dies ("CPU Generator does not use offset").
CPU_OPTIONS = ("--enforce-eager", "--no-enable-chunked-prefill")
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
}
# What is about this program's Python and processes; without byte code every start compiles vLLM.
_OWN = (
    *("PYTHONPATH", "PYTHONDONTWRITEBYTECODE"),
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"),
)


@dataclass(frozen=True)
class Start:
    """What is started.

    Attributes:
        folder: a Hugging Face folder.
        name: by which the model is asked for.
        exact: in float32, as the own passes are; else bfloat16.
        device: `cpu` or `cuda`.
        lora_rank: of adapters that it takes while it runs; None: it takes none.
        port: 0: any free one.
    """

    settings: Generation
    folder: Path
    name: str
    exact: bool
    device: str
    lora_rank: int | None = None
    port: int = 0


def command(start: Start, port: int) -> list[str]:
    """The command line of a server."""
    python = Path(start.settings.python)
    if not python.exists():
        raise InputError(
            f"generation.python = {str(python)!r} does not exist: run `make engine`, which makes "
            "an environment with vLLM, or set generation.urls to servers that run elsewhere."
        )
    if any(python.absolute().parents[1].glob("lib/python*/site-packages/vllm_cpu-*")):
        _check_heads(start.folder)
    line = [str(python.absolute()), "-m", "vllm.entrypoints.openai.api_server"]
    line += ["--model", str(start.folder.absolute()), "--served-model-name", start.name]
    line += ["--host", HOST, "--port", str(port), "--generation-config", "vllm"]
    line += ["--dtype", "float32" if start.exact else "bfloat16", "--max-model-len", "auto"]
    if start.device == "cpu":
        line += CPU_OPTIONS
    if start.lora_rank is not None:
        line += ["--enable-lora", "--max-lora-rank", str(_rank(start.lora_rank))]
    return [*line, *start.settings.options]


def _check_heads(folder: Path) -> None:
    """Raise for a model that vLLM's CPU build would die of at the first request."""
    size = LEAST_HEAD
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        size = told.get("head_dim") or told["hidden_size"] // told["num_attention_heads"]
    if size < LEAST_HEAD:
        raise InputError(
            f"{folder}: its attention has heads of size {size}, and vLLM on a CPU needs "
            f"{LEAST_HEAD} at least: set model.tiny.heads to 2 where the model is `tiny`, or "
            "generation.engine to builtin."
        )


def _rank(rank: int) -> int:
    """The smallest bound of ranks that vLLM knows and that holds a rank."""
    known = (1, 8, 16, 32, 64, 128, 256, 320, 512)
    fitting = [bound for bound in known if bound >= rank]
    if not fitting:
        raise InputError(
            f"align.lora_rank = {rank}, but vLLM takes adapters up to rank {known[-1]}: lower it, "
            "or set generation.engine to builtin."
        )
    return fitting[0]


def environment(start: Start) -> dict[str, str]:
    """All of a server's environment: this one's without what belongs to this program's Python."""
    inherited = {name: value for name, value in os.environ.items() if name not in _OWN}
    own = CPU_ENVIRONMENT if start.device == "cpu" else {}
    return {**ENVIRONMENT, **own, **inherited}


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def log_path(name: str) -> Path:
    """Where a server writes what it has to say, below the project's folder."""
    return LOGS / f"{name.replace('/', '-')}.log"


def spawn(start: Start, port: int, *, detached: bool) -> subprocess.Popen[bytes]:
    """Start a server and do not wait for it.

    Args:
        detached: whether it outlives this process.
    """
    line, log = command(start, port), log_path(start.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as stream:
        return subprocess.Popen(
            line,
            env=environment(start),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=None if detached else _end_with_parent,
        )


def _end_with_parent() -> None:
    """Ask the kernel to end this process when its parent is gone (Linux)."""
    if sys.platform == "linux":
        import ctypes

        set_death_signal = 1
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGTERM)


def wait_until_up(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Until a server answers; one sentence where it ends before, or never does."""
    deadline = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(Failed):
            fetch(f"{url}/v1/models", None, timeout_seconds=5.0)
            return
        if process.poll() is not None:
            raise InputError(f"the server of vLLM ended while it started: its log is {log}.")
        time.sleep(POLL_SECONDS)
    raise InputError(f"the server of vLLM did not answer within {STARTUP_SECONDS:g} s: see {log}.")


@contextlib.contextmanager
def started(start: Start) -> Iterator[str]:
    """A server while the context lasts: its address. One that dies is started again there."""
    port = start.port or free_port()
    url, log = f"http://{HOST}:{port}", log_path(start.name)
    process = spawn(start, port, detached=False)
    over, alive = threading.Event(), [process]

    def keep() -> None:
        tries = AGAIN
        while tries:
            born = time.monotonic()
            while alive[0].poll() is None:
                if over.wait(POLL_SECONDS):
                    return
            tries = AGAIN if time.monotonic() - born > LASTING_SECONDS else tries - 1
            print(f"vLLM for {start.name} ended ({log}): it is started again", flush=True)
            alive[0] = spawn(start, port, detached=False)
        over.wait()

    keeper = threading.Thread(target=keep, name="keeper", daemon=True)
    try:
        print(f"starting vLLM for {start.name}: {log}", flush=True)
        wait_until_up(process, url, log)
        keeper.start()
        yield url
    finally:
        over.set()
        if keeper.ident is not None:
            keeper.join()
        end(alive[0])


def end(process: subprocess.Popen[bytes]) -> None:
    """End a server with all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
