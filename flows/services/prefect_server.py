"""The Prefect server that a run reports to: the user's own, or one for as long as the run lasts.

The temporary server keeps its database in `.infalign/prefect`, so that its runs can be looked at
later with `prefect server start`, and so that it can be started again if it dies before the run.
Call `prepare_environment` before anything imports Prefect.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flows.children.processes import QUIET, noted, redact
from flows.services.services import addresses
from infalign.errors import InputError

STARTUP_SECONDS = 180.0
# What a server of one run has no use for: they would compete with the stages for the processor.
_IDLE = ("SCHEDULER", "LATE_RUNS", "FOREMAN", "TRIGGERS", "PAUSE_EXPIRATIONS", "REPOSSESSOR")
_PORT_TAKEN = 3  # uvicorn's exit status when it could not start
_REVIVALS = 5  # of a temporary server in one run; one that ends more often is broken
# Prefect repeats a failed request 5 times, 62 s in all, twice at the end of a run: too long a wait
# for a server that is gone. The run itself waits for one that comes back (flows.runs.pipeline).
_CLIENT_RETRIES = 3  # 2 + 4 + 8 s


def prepare_environment(root: Path) -> None:
    """Prefect's settings for this process, where the user has not set their own.

    Servers of `infalign up` are used where they are up.
    """
    os.environ.update(QUIET)
    for name, address in addresses(root).items():
        os.environ.setdefault(name, address)
    os.environ.setdefault("PREFECT_HOME", str(root / ".infalign" / "prefect"))
    os.environ.setdefault(
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", str(int(STARTUP_SECONDS))
    )
    # Stages' lines are printed by the run itself; Prefect keeps them in its own log.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
    # Of an outage the run says one sentence; Prefect would print every event it cannot send.
    os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", str(_CLIENT_RETRIES))


@dataclass
class Server:
    """Where a run reports to. `wait` before the first use: a temporary one starts in between."""

    url: str
    root: Path
    child: subprocess.Popen[bytes] | None = None  # None: the user's own
    answered: bool = False

    def wait(self) -> None:
        """Until the server answers, or one sentence about why it does not."""
        if self.child is None:
            if not answers(self.url, timeout=10.0):
                raise InputError(
                    f"PREFECT_API_URL = {redact(self.url)} is not answered by a Prefect server (is "
                    "the port in use by something else?): start one there, or unset it."
                )
            self.answered = True
            return
        deadline = time.monotonic() + STARTUP_SECONDS
        log = _log(self.root)
        while not answers(self.url):
            status = self.child.poll()
            if status is not None:
                why = "its port was taken" if status == _PORT_TAKEN else f"status {status}"
                raise InputError(f"the temporary Prefect server ended ({why}): its log is {log}.")
            if time.monotonic() > deadline:
                raise InputError(
                    f"the temporary Prefect server did not answer within {STARTUP_SECONDS:.0f} s: "
                    f"its log is {log}."
                )
            time.sleep(0.1)
        self.answered = True

    def page(self, flow_run_id: str) -> str:
        """How to look at a run: an address, or the command that serves it and the address."""
        path = f"/runs/flow-run/{flow_run_id}"
        if self.child is None:
            return redact(self.url).rstrip("/").removesuffix("/api") + path
        home, program = os.environ["PREFECT_HOME"], str(Path(sys.executable).parent / "prefect")
        home, program = (
            os.path.relpath(name, self.root) if name.startswith(f"{self.root}/") else name
            for name in (home, program)
        )
        return f"PREFECT_HOME={home} {program} server start  →  http://127.0.0.1:4200{path}"


@contextlib.contextmanager
def prefect_server(root: Path) -> Iterator[Server]:
    """The server of PREFECT_API_URL, or else a temporary one that this variable then names."""
    if url := os.environ.get("PREFECT_API_URL"):
        yield Server(url, root)
        return
    port = _free_port(int(os.environ.get("INFALIGN_PREFECT_PORT", "0")))
    _log(root).unlink(missing_ok=True)
    server = Server(f"http://127.0.0.1:{port}/api", root, _start(root, port))
    ending = threading.Event()
    keeper = threading.Thread(target=_keep, args=(server, port, ending), name="prefect-server")
    keeper.start()
    try:
        os.environ["PREFECT_API_URL"] = server.url
        yield server
    finally:
        _drain()
        os.environ.pop("PREFECT_API_URL", None)
        ending.set()
        keeper.join()
        assert server.child is not None
        _stop(server.child)


def _keep(server: Server, port: int, ending: threading.Event) -> None:
    """Start the temporary server again, at its port and database, when it dies before the run.

    Stages need no server. What the run reports meanwhile Prefect's client sends when it is back.
    """
    revivals = 0
    while True:
        assert server.child is not None
        with noted(server.root, server.child.pid, group=False):
            while server.child.poll() is None:
                if ending.wait(1.0):
                    return
        # Where it could not start at all, `wait` says why.
        if not server.answered or revivals == _REVIVALS:
            return
        revivals += 1
        print(
            f"The temporary Prefect server ended (status {server.child.returncode}): it is started "
            "again, the run goes on.",
            flush=True,
        )
        server.child = _start(server.root, port)


def _drain() -> None:
    """Let Prefect send what it holds back: it would wait long for a server that ended."""
    if "prefect" in sys.modules:
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        for service in (EventsWorker, APILogWorker):
            with contextlib.suppress(TimeoutError):
                service.drain_all(timeout=10)


def _log(root: Path) -> Path:
    return root / ".infalign" / "prefect-server.log"


def _free_port(port: int) -> int:
    """The port asked for, or any free one for 0."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise InputError(
                f"port {port} is in use, the temporary Prefect server cannot have it: free it, set "
                "INFALIGN_PREFECT_PORT to another one, or unset it to take any free port."
            ) from None
        return int(probe.getsockname()[1])


def _start(root: Path, port: int) -> subprocess.Popen[bytes]:
    """The server's process, in a session of its own: Ctrl-C must not end it before the run."""
    package = importlib.util.find_spec("prefect")
    assert package is not None
    assert package.submodule_search_locations
    arguments = ["--app-dir", package.submodule_search_locations[0], "--factory"]
    arguments += ["prefect.server.api.server:create_app", "--host", "127.0.0.1"]
    arguments += ["--port", str(port), "--log-level", "error", "--lifespan", "on"]
    environment = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"}
    environment |= {
        "PREFECT_UI_ENABLED": "0",
        "PREFECT__SERVER_EPHEMERAL": "1",
        "PREFECT__SERVER_FINAL": "1",
        **{f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in _IDLE},
    }
    log = _log(root)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "uvicorn", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(timeout=5)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def answers(url: str, timeout: float = 2.0) -> bool:
    """Whether a Prefect API is there: its health route says `true`."""
    import httpx

    try:
        response = httpx.get(f"{url.rstrip('/')}/health", timeout=timeout, headers=_headers())
        return response.status_code == 200 and response.json() is True
    except (httpx.HTTPError, ValueError):
        return False


def _headers() -> dict[str, str]:
    key = os.environ.get("PREFECT_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}
