"""The Prefect server that a run reports to: the user's own, or one for as long as the run lasts.

The temporary server keeps its database in `.infalign/prefect`, so that its runs can be looked at
later with `infalign up`, and so that it can be started again if it dies before the run.
Call `prepare_environment` before anything imports Prefect.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from flows.children.processes import QUIET, end_tree, noted, redact
from flows.services.prefect_app import (
    AUTH,
    api_url,
    authorization,
    client_environment,
    project_key,
    server_command,
    server_environment,
)
from flows.services.services import address_of, addresses
from infalign.errors import InputError

STARTUP_SECONDS = 180.0
# What a server of one run has no use for: they would compete with the stages for the processor.
_IDLE = ("SCHEDULER", "LATE_RUNS", "FOREMAN", "TRIGGERS", "PAUSE_EXPIRATIONS", "REPOSSESSOR")
_PORT_TAKEN = 3  # uvicorn's exit status when it could not start
_REVIVALS = 5  # of a temporary server in one run; one that ends more often is broken
# Prefect repeats a failed request 5 times, 62 s in all, twice at the end of a run: too long a wait
# for a server that is gone. The run itself waits for one that comes back (flows.runs.pipeline).
_CLIENT_RETRIES = 3  # 2 + 4 + 8 s
_DRAIN_SECONDS = 10.0


def prepare_environment(root: Path) -> None:
    """Prefect's settings for this process, where the user has not set their own.

    Servers of `infalign up` are used where they are up.
    """
    os.environ.update(QUIET)
    own = addresses(root)
    for name, address in own.items():
        os.environ.setdefault(name, address)
    if "PREFECT_API_URL" in own and os.environ["PREFECT_API_URL"] == own["PREFECT_API_URL"]:
        os.environ[AUTH] = project_key(root)
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

    @property
    def temporary(self) -> bool:
        """Whether it lives as long as the run."""
        return self.child is not None

    def wait(self) -> None:
        """Until the server answers, or one sentence about why it does not."""
        if self.child is None:
            check_server(self.url)
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
        """The address of a run; after a temporary server, that of `infalign up`."""
        own = (
            address_of("prefect")
            if self.temporary
            else redact(self.url).rstrip("/").removesuffix("/api")
        )
        return f"{own}/runs/flow-run/{flow_run_id}"


@contextlib.contextmanager
def prefect_server(root: Path) -> Iterator[Server]:
    """The server of PREFECT_API_URL, or else a temporary one, which the environment then names."""
    if url := os.environ.get("PREFECT_API_URL"):
        try:
            yield Server(url, root)
        finally:
            if not answers(url):
                _drain()
        return
    port = _free_port(int(os.environ.get("INFALIGN_PREFECT_PORT", "0")))
    _log(root).unlink(missing_ok=True)
    server = Server(api_url(port), root, _start(root, port))
    ending = threading.Event()
    keeper = threading.Thread(target=_keep, args=(server, port, ending), name="prefect-server")
    keeper.start()
    own = client_environment(root, port)
    before = {name: os.environ[name] for name in own if name in os.environ}
    try:
        os.environ.update(own)
        yield server
    finally:
        _drain()
        for name in own:
            os.environ.pop(name, None)
        os.environ.update(before)
        ending.set()
        keeper.join()
        assert server.child is not None
        end_tree(server.child.pid, grace_seconds=5.0)
        server.child.wait()


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
    """Let Prefect send what it holds back to a server that ends, or has ended; the rest is dropped.

    At the end of the process it would try again and again, for minutes.
    """
    if "prefect" not in sys.modules:
        return
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    kinds: tuple[Any, ...] = (EventsWorker, APILogWorker)
    at_work = [(one._loop, one._task) for kind in kinds for one in list(kind._instances.values())]
    for kind in kinds:
        with contextlib.suppress(TimeoutError):
            kind.drain_all(timeout=_DRAIN_SECONDS)
    for loop, task in at_work:
        if loop is not None and task is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and they with it
                loop.call_soon_threadsafe(task.cancel)


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
    environment = {
        **os.environ,
        **server_environment(root, port),
        "PREFECT_UI_ENABLED": "0",
        "PREFECT__SERVER_EPHEMERAL": "1",
        **{f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in _IDLE},
    }
    log = _log(root)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as stream:
        return subprocess.Popen(
            server_command(port),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def check_server(url: str) -> None:
    """Raise one sentence where no Prefect server answers, or where it does not let us in."""
    if not answers(url, timeout=10.0):
        raise InputError(
            f"PREFECT_API_URL = {redact(url)} is not answered by a Prefect server (is the port in "
            "use by something else?): start one there, or unset it."
        )
    with contextlib.suppress(httpx.HTTPError):
        if _ask(url, "admin/version", timeout=10.0).status_code in (401, 403):
            raise InputError(
                f"PREFECT_API_URL = {redact(url)} asks for another key: set {AUTH} to the key of "
                "that server; if it is one of `infalign up`, do `infalign down` and `up` again."
            )


def answers(url: str, timeout: float = 2.0) -> bool:
    """Whether a Prefect API is there: its health route says `true`."""
    try:
        response = _ask(url, "health", timeout)
        return response.status_code == 200 and response.json() is True
    except (httpx.HTTPError, ValueError):
        return False


def _ask(url: str, path: str, timeout: float) -> httpx.Response:
    auth, key = os.environ.get(AUTH), os.environ.get("PREFECT_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    headers = authorization(auth) if auth else headers
    return httpx.get(f"{url.rstrip('/')}/{path}", timeout=timeout, headers=headers)
