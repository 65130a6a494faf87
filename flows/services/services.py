"""`infalign up` and `infalign down`: a Prefect server, an MLflow server and a process worker.

All on loopback. Each service leads a process group of its own and is written down in
`.infalign/services/` with its start time, so that `down` ends exactly those processes, never one
that was given the same number later. Databases are SQLite files of the project, or PostgreSQL.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from flows.children.processes import (
    Tell,
    born,
    child_environment,
    end_leftovers,
    end_tree,
    is_same,
    redact,
)
from flows.services.database import Database
from flows.services.mlflow_pages import first_page
from flows.services.mlflow_store import make, making
from flows.services.prefect_app import (
    HOST,
    api_url,
    client_environment,
    key_path,
    open_api,
    server_command,
    server_environment,
)
from infalign.errors import InputError
from infalign.files.workspace import write_json

POOL = "infalign"  # the work pool of prefect.yaml
PORTS = {"prefect": 4200, "mlflow": 5000}
VARIABLES = {"prefect": "PREFECT_PORT", "mlflow": "MLFLOW_PORT"}
ORDER = ("prefect", "mlflow", "worker")
STARTUP_SECONDS = 300.0
HEARTBEAT_SECONDS = 30  # the shortest that Prefect takes
WORKER_POLL_SECONDS = 5


@dataclass(frozen=True)
class Note:
    """A service at work: enough to find it again, and to know it from a namesake."""

    name: str
    pid: int
    started: str | float
    port: int | None
    database: str

    @property
    def alive(self) -> bool:
        """Whether it is this very process that runs under the number."""
        try:
            running = psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE
            return running and is_same(self.pid, self.started)
        except psutil.NoSuchProcess:
            return False


def folder(root: Path) -> Path:
    """Where notes and logs of the services are."""
    return root / ".infalign" / "services"


def running(root: Path) -> dict[str, Note]:
    """The services that are at work, by name."""
    notes = {}
    for path in folder(root).glob("*.json"):
        with contextlib.suppress(ValueError, TypeError, OSError):
            note = Note(**json.loads(path.read_text(encoding="utf-8")))
            if note.alive:
                notes[note.name] = note
    return notes


def addresses(root: Path) -> dict[str, str]:
    """PREFECT_API_URL and MLFLOW_TRACKING_URI of the servers that are up."""
    notes = running(root)
    found = {}
    if "prefect" in notes:
        found["PREFECT_API_URL"] = api_url(notes["prefect"].port or 0)
    if "mlflow" in notes:
        found["MLFLOW_TRACKING_URI"] = f"http://{HOST}:{notes['mlflow'].port}"
    return found


def address_of(service: str) -> str:
    """Where `infalign up` would put a service that is not up."""
    return f"http://{HOST}:{os.environ.get(VARIABLES[service]) or PORTS[service]}"


def up(root: Path, ports: Mapping[str, int | None], database_url: str, tell: Tell) -> None:
    """Start what is not running. Nothing starts before ports and database were looked at.

    Args:
        root: the project's folder.
        ports: of `prefect` and `mlflow`; None: the one it runs on, or else the usual one.
        database_url: postgresql://…, or empty for SQLite files in the project.
        tell: called with each line for the user.
    """
    database = Database(database_url) if database_url else None
    begun = time.monotonic()
    with _held(root):
        notes = running(root)
        _check_same(notes, ports, database)
        chosen = {
            name: notes[name].port or usual if name in notes else ports.get(name) or usual
            for name, usual in PORTS.items()
        }
        missing = [name for name in ORDER if name not in notes]
        if not missing:
            tell("Already up.")
        elif "worker" in notes:  # it talks to a server that is gone
            end_service(root, notes.pop("worker"))
            missing.append("worker")
        for name in missing:
            if name in chosen:
                check_port(name, chosen[name])
        if database is not None and missing:
            with making(database.mlflow_url):  # as another project may at this moment
                database.prepare()
        _start_all(root, missing, chosen, database)
        tell(f"Prefect  http://{HOST}:{chosen['prefect']}")
        mlflow = f"http://{HOST}:{chosen['mlflow']}"
        tell(f"MLflow   {first_page(mlflow)}")
        tell(f"Key      in {key_path(root).relative_to(root)}, for Prefect's page")
        tell(f"Worker   pool {POOL}")
        if missing:
            tell(f"Up in {time.monotonic() - begun:.0f} s; `infalign down` ends them.")


def down(root: Path, tell: Tell) -> None:
    """End the services of this project, the worker first, and what its runs left behind."""
    with _held(root):
        notes = running(root)
        for name in reversed(ORDER):
            if name in notes:
                end_service(root, notes[name])
                tell(f"{name} ended.")
            (folder(root) / f"{name}.json").unlink(missing_ok=True)
        if not notes:
            tell("Nothing was up.")
    _end_orphans(root)


def _end_orphans(root: Path) -> None:
    """Stages of a run that died with the worker; those of a living run are its own."""
    from flows.children.locks import run_lock

    with contextlib.suppress(InputError), run_lock(root):
        end_leftovers(root)


def end_service(root: Path, note: Note) -> None:
    """End a service with all its descendants, and forget it."""
    if note.alive:
        end_tree(note.pid)
    (folder(root) / f"{note.name}.json").unlink(missing_ok=True)


@contextlib.contextmanager
def _held(root: Path) -> Iterator[None]:
    """One `up` or `down` at a time."""
    folder(root).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder(root) / "lock", timeout=STARTUP_SECONDS):
            yield
    except Timeout:
        raise InputError(f"another `infalign up` or `down` is at work in {root}: end it.") from None


def _check_same(
    notes: Mapping[str, Note], ports: Mapping[str, int | None], database: Database | None
) -> None:
    """Raise where services run with other settings than those asked for."""
    for name, port in ports.items():
        if name in notes and port not in (None, notes[name].port):
            raise InputError(
                f"{VARIABLES[name]} = {port}, but {name} is up on port {notes[name].port}: run "
                "`infalign down` first, or leave the port out."
            )
    servers = [notes[name] for name in ("prefect", "mlflow") if name in notes]
    asked = database.label if database else None
    for note in servers:
        if asked is not None and note.database != asked:
            raise InputError(
                f"DB = {asked}, but {note.name} is up on {note.database}: run `infalign down` "
                "first."
            )


def check_port(name: str, port: int) -> None:
    """Raise one sentence where a port cannot be had."""
    if not 1 <= port <= 65535:
        raise InputError(f"{VARIABLES[name]} = {port} is not a port: give 1 to 65535.")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise InputError(
                f"port {port} is not free for {name} ({error.strerror}): end what uses it, or set "
                f"{VARIABLES[name]} to another port."
            ) from None


def _start_all(
    root: Path, missing: list[str], ports: Mapping[str, int], database: Database | None
) -> None:
    """Start and wait; if one does not come up, none of those that were started stays."""
    started: dict[str, Note] = {}
    uri = _mlflow_uri(root, database)
    try:
        with making(uri) if "mlflow" in missing else contextlib.nullcontext():
            if "mlflow" in missing:
                make(uri)
            for name in missing:
                if name != "worker":
                    started[name] = _start(root, name, ports, database)
            for name in started:
                _wait(root, started[name], partial(answers, name, ports[name]))
        if "worker" in missing:
            begun = time.time()
            started["worker"] = _start(root, "worker", ports, database)
            _wait(root, started["worker"], partial(worker_online, root, ports["prefect"], begun))
    except BaseException:
        for note in reversed(list(started.values())):
            end_service(root, note)
        raise


def _start(root: Path, name: str, ports: Mapping[str, int], database: Database | None) -> Note:
    """Start one service and write it down."""
    log = folder(root) / f"{name}.log"
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
        child = subprocess.Popen(
            command(name, root, ports),
            cwd=root,
            env=environment(name, root, ports, database),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    label = database.label if database else "SQLite"
    note = Note(name, child.pid, born(child.pid), ports.get(name), label)
    write_json(folder(root) / f"{name}.json", asdict(note))
    return note


def command(name: str, root: Path, ports: Mapping[str, int]) -> list[str]:
    """The command line of a service; secrets are never on it."""
    if name == "prefect":
        return server_command(ports["prefect"])
    if name == "mlflow":
        options = ["--host", HOST, "--port", str(ports[name]), "--workers", "1"]
        place = os.environ.get("MLFLOW_ARTIFACTS_DESTINATION") or (root / "mlartifacts").as_uri()
        store = ["--artifacts-destination", place, "--serve-artifacts"]
        return [sys.executable, "-m", "mlflow", "server", *options, *store]
    options = ["--pool", POOL, "--type", "process", "--name", "process"]
    start = [sys.executable, "-m", "prefect", "worker", "start"]
    return [*start, *options, "--install-policy", "never"]


def environment(
    name: str, root: Path, ports: Mapping[str, int], database: Database | None
) -> dict[str, str]:
    """All of a service's environment."""
    if name == "prefect":
        own = server_environment(root, ports["prefect"])
        if database is not None:
            own["PREFECT_API_DATABASE_CONNECTION_URL"] = database.prefect_url
    elif name == "mlflow":
        own = {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_BACKEND_STORE_URI": _mlflow_uri(root, database),
        }
    else:
        own = client_environment(root, ports["prefect"]) | {
            "PREFECT_HOME": str(root / ".infalign" / "prefect"),
            "MLFLOW_TRACKING_URI": f"http://{HOST}:{ports['mlflow']}",
            "INFALIGN_ROOT": str(root),  # where prefect.yaml's deployments work
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
            "PREFECT_WORKER_QUERY_SECONDS": str(WORKER_POLL_SECONDS),
        }
    inherited = child_environment(own)
    if name == "mlflow":  # it serves a store, and must not ask another server
        inherited.pop("MLFLOW_TRACKING_URI", None)
        inherited.pop("MLFLOW_REGISTRY_URI", None)
    return inherited


def _mlflow_uri(root: Path, database: Database | None) -> str:
    """Where MLflow's server keeps its tables."""
    return database.mlflow_url if database else f"sqlite:///{root / 'mlflow.db'}"


def _wait(root: Path, note: Note, ready: Callable[[], bool]) -> None:
    """Until a service answers, or one sentence about why it does not."""
    deadline = time.monotonic() + STARTUP_SECONDS
    log = folder(root) / f"{note.name}.log"
    while not ready():
        if not note.alive:
            raise InputError(f"{note.name} ended while it started{_last(log)}: its log is {log}.")
        if time.monotonic() > deadline:
            raise InputError(
                f"{note.name} did not answer within {STARTUP_SECONDS:.0f} s: its log is {log}."
            )
        time.sleep(0.2)


def _last(log: Path) -> str:
    """The last words of a log, as a parenthesis."""
    lines = [x for x in log.read_text(errors="replace").splitlines() if x.strip()]
    return f" ({redact(lines[-1].strip())[:200]})" if lines else ""


def answers(name: str, port: int) -> bool:
    """Whether a server is there and well."""
    import httpx

    path = "/api/health" if name == "prefect" else "/health"
    try:
        return httpx.get(f"http://{HOST}:{port}{path}", timeout=2.0).status_code == 200
    except httpx.HTTPError:
        return False


def worker_online(root: Path, port: int, since: float) -> bool:
    """Whether the worker has reported to the server after `since` (seconds of the epoch)."""
    from datetime import datetime

    import httpx

    try:
        with open_api(root, port) as client:
            response = client.post(f"/work_pools/{POOL}/workers/filter", json={})
        workers = response.json() if response.status_code == 200 else []
    except (httpx.HTTPError, ValueError):
        return False
    beats = [worker["last_heartbeat_time"] for worker in workers]
    return any(beat and datetime.fromisoformat(beat).timestamp() >= since - 1 for beat in beats)
