"""`infalign serve`: MLflow's scoring server behind one address, replaced without a dropped request.

The supervisor holds the listening socket. When the alias moves it starts a server for the new
version on the same socket, waits until that one has answered, then lets the old one finish what it
has and rest, loaded: should the alias go back, it serves again at once. A version that does not
start changes nothing. Connections wait in the socket's queue while no
server accepts, so a crash delays requests and refuses none.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.children.processes import Tell, child_environment, redact
from flows.serving.server import READY, REST, SAID, SERVE, Job
from flows.tracking.tracker import default_uri
from infalign.engines.starting import STARTUP_SECONDS as ENGINE_SECONDS
from infalign.errors import InputError
from infalign.settings.params import Params, load_params
from infalign.settings.reading import meant

STARTUP_SECONDS = 300.0
WAKING_SECONDS = 5.0  # of a server that rests
TICK_SECONDS = 0.2
RESTART_SECONDS = 2.0  # between two starts of a server that keeps dying
_NOT_THERE = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"}


@dataclass
class Server:
    """A scoring server at work, and the version that it serves."""

    version: str
    child: subprocess.Popen[bytes]
    said: int  # descriptor on which it says that it is ready

    @property
    def lives(self) -> bool:
        """Whether its process is there."""
        return self.child.poll() is None

    def tell(self, word: str) -> None:
        """Let it rest, or serve again."""
        assert self.child.stdin is not None
        with contextlib.suppress(OSError):
            self.child.stdin.write(f"{word}\n".encode())
            self.child.stdin.flush()

    def serves_again(self) -> bool:
        """Whether, resting, it accepts again when it is told to."""
        if not self.lives:
            return False
        self.tell(SERVE)
        ready, _, _ = select.select([self.said], [], [], WAKING_SECONDS)
        return bool(ready) and os.read(self.said, SAID) == READY

    def retire(self) -> None:
        """Ask it to answer what it has, and to go."""
        with contextlib.suppress(ProcessLookupError):
            self.child.terminate()

    def close(self) -> None:
        """Forget a process that is gone."""
        with contextlib.suppress(OSError):
            os.close(self.said)
        if self.child.stdin is not None:
            with contextlib.suppress(OSError):
                self.child.stdin.close()


@dataclass
class Supervisor:
    """Keeps one server of the alias's version at work.

    Attributes:
        root: the project's folder.
        name: the registered model.
        alias: whose version is served.
        listener: the socket that all servers share.
        params: sections `serving` and `generation` are used.
        tell: called with each line for the user.
        log: the folder of the log of requests, if there is one.
    """

    root: Path
    name: str
    alias: str
    listener: socket.socket
    params: Params
    tell: Tell
    log: Path | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    reload: threading.Event = field(default_factory=threading.Event)
    _current: Server | None = None
    _former: Server | None = None  # rests
    _retired: list[Server] = field(default_factory=list)
    _failed: str = ""
    _silent: bool = False
    _next: float = 0.0
    _soonest: float = 0.0

    def run(self) -> None:
        """Serve until `stop` is set."""
        try:
            self._current = self._start(self._version())
            self._announce()
            while not self.stop.wait(TICK_SECONDS):
                if self._due():
                    self._step()
        finally:
            self._end()

    def _died(self) -> bool:
        return self._current is None or self._current.child.poll() is not None

    def _due(self) -> bool:
        """Whether it is time to look at the alias, at once where something has happened."""
        now = time.monotonic()
        happened = self._died() or self.reload.is_set()
        if now < (self._soonest if happened else self._next):
            return False
        self._next = now + self.params.serving.poll_seconds
        self._soonest = now + RESTART_SECONDS
        return True

    def _step(self) -> None:
        """Replace the server where it died, where the alias moved, or where it was asked for."""
        for one in [one for one in self._retired if not one.lives]:
            one.close()
            self._retired.remove(one)
        assert self._current is not None
        wanted = self._wanted(self._current.version)
        died = self._died()
        if self.reload.is_set():
            self._failed = ""
        moved = wanted not in (self._current.version, self._failed)
        if not (died or moved or self.reload.is_set()):
            return
        self.reload.clear()
        if died:
            self.tell(f"The server of version {self._current.version} died: it is started again.")
            wanted = self._current.version if wanted == self._failed else wanted
        if self._former and self._former.version == wanted and self._former.serves_again():
            fresh, self._former = self._former, None
        else:
            try:
                fresh = self._start(wanted)
            except InputError as error:
                self._failed = wanted
                self.tell(f"{error} Version {self._current.version} stays.")
                return
        self._put_aside(self._current, fresh.version)
        self._current = fresh
        self._announce()

    def _put_aside(self, old: Server, version: str) -> None:
        """Let the server that was replaced rest, or go where none is kept or it serves the same."""
        if old.lives and self.params.serving.keep_former and old.version != version:
            old.tell(REST)
            old, self._former = self._former, old  # type: ignore[assignment]
        if old is not None:
            old.retire()
            self._retired.append(old)

    def _announce(self) -> None:
        assert self._current is not None
        host, port = self.listener.getsockname()[:2]
        where = f"http://{f'[{host}]' if ':' in host else host}:{port}/invocations"
        self.tell(f"Serving {self.name} version {self._current.version} ({self.alias}) at {where}")

    def _wanted(self, now: str) -> str:
        """The alias's version; the present one while the registry does not answer."""
        try:
            version = self._version()
        except InputError as error:
            if not self._silent:
                self._silent = True
                self.tell(f"{error} Version {now} stays.")
            return now
        self._silent = False
        return version

    def _version(self) -> str:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        uri = default_uri(self.root)
        try:
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            return str(client.get_model_version_by_alias(self.name, self.alias).version)
        except MlflowException as error:
            if error.error_code in _NOT_THERE:
                raise InputError(
                    f"{self.name} has no version with the alias {self.alias!r} in {redact(uri)}: "
                    "register and promote one first."
                ) from None
            raise InputError(f"MLflow at {redact(uri)} does not answer.") from None

    def _start(self, version: str) -> Server:
        """Start a server of this version and wait until it accepts; or raise one sentence."""
        uri = default_uri(self.root)
        read, write = os.pipe()
        job = Job(
            f"models:/{self.name}/{version}",
            self.listener.fileno(),
            write,
            self.params.serving,
            None if self.log is None else str(self.log.resolve()),
            self.params.generation,
        )
        environment = child_environment(
            {
                "INFALIGN_SCORING": job.dump(),
                "MLFLOW_TRACKING_URI": uri,
                "MLFLOW_REGISTRY_URI": uri,
                "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
                "HF_HUB_OFFLINE": "1",
            }
        )
        child = subprocess.Popen(
            [sys.executable, "-m", "flows.serving.server"],
            cwd=self.root,
            env=environment,
            stdin=subprocess.PIPE,  # its end tells the child that this process is gone
            pass_fds=(self.listener.fileno(), write),
            start_new_session=True,
        )
        os.close(write)
        try:
            self._until_ready(child, read, version)
        except BaseException:
            child.kill()
            child.wait()
            os.close(read)
            raise
        return Server(version, child, read)

    def _until_ready(self, child: subprocess.Popen[bytes], read: int, version: str) -> None:
        engine = self.params.serving.engine != "builtin"
        seconds = STARTUP_SECONDS + (ENGINE_SECONDS if engine else 0.0)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.stop.is_set():
                raise KeyboardInterrupt
            if select.select([read], [], [], 0.1)[0]:
                said = os.read(read, SAID)
                if said == READY:
                    return
                raise InputError(
                    f"version {version} of {self.name} cannot be served: "
                    f"{said.decode(errors='replace') or 'see the lines above.'}"
                )
        raise InputError(f"version {version} of {self.name} was not ready within {seconds:.0f} s.")

    def _end(self) -> None:
        """Let every server finish, then leave none."""
        servers = [*self._retired, *filter(None, (self._former, self._current))]
        for server in servers:
            server.retire()
        deadline = time.monotonic() + self.params.serving.drain_seconds + 2
        for server in servers:
            try:
                server.child.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                server.child.kill()
                server.child.wait()
            server.close()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, or one sentence."""
    if not 0 <= port <= 65535:
        raise InputError(f"--port {port} is not a port: give 1 to 65535, or 0 for any free one.")
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=512
        )
    except OSError as error:
        raise InputError(
            f"{host}:{port} cannot be listened on ({error.strerror}): end what uses it, or give "
            "another --port or --host."
        ) from None


def pick_objective(params: Params, objective: str | None) -> str:
    """The objective to serve: the only one there is, or the one that was named."""
    names = params.run.objectives
    if objective is None and len(names) == 1:
        return names[0]
    if objective is None:
        raise InputError(f"--objective is missing: give one of {', '.join(names)}.")
    if objective not in params.objectives:
        known = ", ".join(sorted(params.objectives))
        near = meant(objective, names)
        raise InputError(f"--objective {objective!r} is not one of params.yaml's: {known}{near}.")
    return objective


def serve(
    root: Path,
    objective: str | None,
    alias: str,
    host: str,
    port: int,
    tell: Tell,
    log: Path | None = None,
) -> None:
    """Serve the alias's version until interrupted; SIGHUP restarts the server.

    Args:
        log: the folder into which requests and answers are written; None: they are not.
    """
    params = load_params(root / "params.yaml")
    hosts = [*params.serving.allowed_hosts, host]
    serving = params.serving.model_copy(update={"allowed_hosts": hosts})
    params = params.model_copy(update={"serving": serving})
    name = f"infalign-{pick_objective(params, objective)}"
    with listen(host, port) as listener:
        supervisor = Supervisor(root, name, alias, listener, params, tell, log)

        def ends(_number: int, _frame: Any) -> None:
            supervisor.stop.set()

        def reloads(_number: int, _frame: Any) -> None:
            supervisor.reload.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, ends)
        signal.signal(signal.SIGHUP, reloads)
        with contextlib.suppress(KeyboardInterrupt):
            supervisor.run()
