"""MLflow: a parent run per pipeline run, a child per stage instance, live metrics, evidence.

One thread talks to MLflow, in the order of a journal on disk; nobody waits for it. When the
server does not answer, the user is told once and the entries wait: for the server, for the end of
the run, or for the next run. Runs are named by explicit ids, never by MLflow's active run.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.children.processes import QUIET, Tell, redact
from flows.services.mlflow_pages import VIEW, experiment_name
from flows.services.mlflow_store import Unusable, check, make, making
from flows.services.services import address_of, addresses
from flows.tracking.applying import PARENT, apply
from flows.tracking.followers import Followers, Row
from flows.tracking.journal import Journal
from flows.tracking.views import ABOUT

if TYPE_CHECKING:
    from mlflow import MlflowClient

RESEND_SECONDS = 2.0
CLOSE_SECONDS = 30.0
MADE = "infalign.evidence"  # the tag of the run that made a result: the digest of its entry
_CLIENT_ERRORS = {
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "PERMISSION_DENIED",
}


def default_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI, the server of `infalign up`, or the project's own SQLite database."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    return given or addresses(root).get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}"


def connect(root: Path, uri: str, of: str = "") -> tuple[MlflowClient, str]:
    """A client and the id of the experiment; what is not there is made once, under a lock.

    Args:
        of: what the experiment's name ends with: the registry's runs have one of their own.

    Raises:
        Unusable: for a database of the project's that only its owner can mend.
    """
    os.environ.update(QUIET)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    name = experiment_name(of)
    place = (root / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None
    with making(uri):
        make(uri)
        try:
            client = MlflowClient(tracking_uri=uri)
            experiment = client.get_experiment_by_name(name)
        except Exception as error:
            check(uri, error)
            raise
        if experiment is None:
            return client, _experiment(client, name, place, ABOUT[of])
        for key, text in ABOUT[of].items():
            if experiment.tags.get(key) != text:
                client.set_experiment_tag(experiment.experiment_id, key, text)
        return client, str(experiment.experiment_id)


def _experiment(client: MlflowClient, name: str, place: str | None, tags: dict[str, str]) -> str:
    """The id of a new experiment, or of the one that another machine made meanwhile."""
    try:
        return str(client.create_experiment(name, artifact_location=place, tags=tags))
    except Exception as error:
        made = client.get_experiment_by_name(name)
        if getattr(error, "error_code", None) != "RESOURCE_ALREADY_EXISTS" or made is None:
            raise
        return str(made.experiment_id)


class Tracker:
    """What a pipeline run tells MLflow. Every method returns at once.

    Args:
        root: the project's folder.
        name: of the pipeline run, unique in the project.
        tell: called with the one sentence that an outage is worth.
        uri: of the tracking server.
    """

    def __init__(self, root: Path, name: str, tell: Tell, uri: str | None = None) -> None:
        self.root, self.uri = root, uri or default_uri(root)
        self._tell = tell
        self._folder = root / ".infalign" / "tracking"
        self._older = [Journal(path) for path in sorted(self._folder.glob("*.jsonl"))]
        self._journal = Journal(self._folder / f"{name}.jsonl")
        self._followers = Followers(root)
        self._client: MlflowClient | None = None
        self._experiment = ""
        self._begun: dict[str, int] = {}
        self._waiting: dict[str, dict[str, Any]] = {}  # runs that begin with the first word
        self._known: set[str] = set()
        self._lock = threading.Lock()
        self._questions: list[tuple[str, Future[str | None]]] = []
        self._wake, self._closing = threading.Event(), threading.Event()
        self._give_up = float("inf")
        self._told = False
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    # What the flow says.

    def begin(self, key: str, name: str, tags: Mapping[str, str], late: bool = False) -> None:
        """Begin a run; every key but PARENT is a child of PARENT.

        Args:
            late: only with the first word about it: of what is not made again there is no run.
        """
        self._begun.setdefault(key, int(time.time() * 1000))  # a retry goes on with its run
        with self._lock:
            entry = {"name": name, "tags": dict(tags), "time": self._begun[key]}
            if late and key not in self._known:
                self._waiting[key] = entry
                return
            self._known.add(key)
            self._write("begin", key, **entry)

    def has(self, key: str) -> bool:
        """Whether there is a run of this key."""
        return key in self._known

    def follow(self, key: str, named: Callable[[str], str | None]) -> None:
        """Log the instance's live history.

        Args:
            named: what a number of the history is called in MLflow; None: it is left out.
        """

        def send(rows: list[Row]) -> None:
            chosen = [(name, v, step) for n, v, step in rows if (name := named(n)) is not None]
            if chosen:
                self.metrics(key, chosen)

        self._followers.follow(key, send)

    def finish(self, key: str, outputs: list[Path]) -> None:
        """Log the rest of the history, from its finished files."""
        self._followers.finish(key, outputs)

    def metrics(self, key: str, rows: Iterable[Row]) -> None:
        """Log metrics; the time is the run's start and the step, so that repeats are one."""
        start = self._begun[key]
        self._add("metrics", key, rows=[[n, v, s, start + s] for n, v, s in rows])

    def sampled(self, key: str, numbers: Mapping[str, float], step: int) -> None:
        """Log what was measured now, of the machine."""
        now = int(time.time() * 1000)
        self._add("metrics", key, rows=[[n, v, step, now] for n, v in numbers.items()])

    def params(self, key: str, params: Mapping[str, object]) -> None:
        """Log parameters."""
        self._add("params", key, params={k: str(v) for k, v in params.items()})

    def tags(self, key: str, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self._add("tags", key, tags=dict(tags))

    def inputs(self, key: str, datasets: list[dict[str, str]]) -> None:
        """Log datasets: name, digest (DVC's hash) and source of each."""
        self._add("inputs", key, datasets=datasets)

    def artifact(self, key: str, path: Path, folder: str = "") -> None:
        """Log a file or a folder."""
        self._add("artifact", key, path=str(path), folder=folder)

    def end(self, key: str, status: str) -> None:
        """End a run: FINISHED, FAILED or KILLED. One that never began has no end."""
        if key not in self._begun:
            return
        self._followers.leave(key)
        if status == "FINISHED" and not self.has(key):  # there was nothing to say of it
            self._waiting.pop(key, None)
            return
        self._add("end", key, status=status, time=int(time.time() * 1000))

    def maker(self, digest: str) -> Future[str | None]:
        """The id of the run whose evidence carries this digest, if there is one."""
        future: Future[str | None] = Future()
        self._questions.append((digest, future))
        self._wake.set()
        return future

    def run_id(self, key: str) -> str | None:
        """MLflow's id of a run, once it has one."""
        return self._journal.run_ids.get(key)

    def begun(self, seconds: float) -> str | None:
        """The parent's id, waited for as long as MLflow answers."""
        deadline = time.monotonic() + seconds
        while self.run_id(PARENT) is None and not self._told and time.monotonic() < deadline:
            time.sleep(0.1)
        return self.run_id(PARENT)

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Wait until all is logged; what cannot be is kept for the next run."""
        self._followers.close()
        self._give_up = time.monotonic() + seconds
        self._closing.set()
        self._wake.set()
        self._thread.join(seconds + 30)
        waiting = sum(journal.waiting() for journal in [*self._older, self._journal])
        if waiting:
            self._tell(
                f"MLflow did not answer: {waiting} entries are kept in {self._folder} and logged "
                "by the next run."
            )

    def page(self) -> str:
        """The address of the run; it answers while `served_by` is at work."""
        return f"{self._run_page()}{VIEW}"

    def artifacts_page(self, path: str) -> str:
        """The address of one of the run's files."""
        return f"{self._run_page()}/artifacts/{path}{VIEW}"

    def _run_page(self) -> str:
        served = self.uri.startswith("http")
        server = redact(self.uri).rstrip("/") if served else address_of("mlflow")
        return f"{server}/#/experiments/{self._experiment}/runs/{self.run_id(PARENT)}"

    def served_by(self) -> str:
        """The command that serves the page; none for a server that is up."""
        if self.uri.startswith("http"):
            return ""
        if self.uri == f"sqlite:///{self.root / 'mlflow.db'}":
            return "infalign up"
        return f"mlflow ui --backend-store-uri {redact(self.uri)}"

    def _add(self, op: str, key: str, **content: Any) -> None:
        with self._lock:
            waiting = self._waiting.pop(key, None)
            if waiting is not None:
                self._known.add(key)
                self._write("begin", key, **waiting)
            self._write(op, key, **content)

    def _write(self, op: str, key: str, **content: Any) -> None:
        self._journal.append({"op": op, "key": key, **content})
        self._wake.set()

    # What the thread does.

    def _work(self) -> None:
        for journal in self._older:
            for key in journal.unfinished():
                now = int(time.time() * 1000)
                journal.append({"op": "end", "key": key, "status": "KILLED", "time": now})
        for journal in [*self._older, self._journal]:
            last = journal is self._journal
            while not (journal.pending() is None and (not last or self._closing.is_set())):
                self._answer()
                if journal.pending() is None:
                    self._wake.wait(RESEND_SECONDS)
                    self._wake.clear()
                elif not self._apply_next(journal) and time.monotonic() > self._give_up:
                    self._refuse()
                    return
            journal.remove()
        self._refuse()

    def _refuse(self) -> None:
        while self._questions:
            future = self._questions.pop()[1]
            if future.set_running_or_notify_cancel():
                future.set_result(None)

    def _answer(self) -> None:
        while self._questions:
            digest, future = self._questions.pop(0)
            if not future.set_running_or_notify_cancel():
                continue  # who asked has stopped waiting
            try:
                client = self._connected()
                query = f"tags.`{MADE}` = '{digest}'"
                found = client.search_runs([self._experiment], query, max_results=1)
                future.set_result(found[0].info.run_id if found else None)
            except Exception as error:
                future.set_result(None)
                self._outage(error)

    def _connected(self) -> MlflowClient:
        if self._client is None:
            self._client, self._experiment = connect(self.root, self.uri)
        return self._client

    def _apply_next(self, journal: Journal) -> bool:
        """Apply one entry; False if MLflow does not answer (after a pause)."""
        entry = journal.pending()
        assert entry is not None
        try:
            apply(self._connected(), self._experiment, journal, entry)
        except Exception as error:
            if not self._refused(error):
                journal.doubtful = True
                self._outage(error)
                time.sleep(min(RESEND_SECONDS, max(self._give_up - time.monotonic(), 0.05)))
                return False
            self._tell(
                redact(f"MLflow refused an entry ({entry['op']} of {entry['key']}): {error}")
            )
        if self._told:
            self._told = False
            self._tell("MLflow answers again: what was missed is being logged.")
        journal.advance()
        return True

    def _refused(self, error: Exception) -> bool:
        """Whether the entry is at fault, not the server: it would never be accepted."""
        if isinstance(error, FileNotFoundError | KeyError):
            return True
        return getattr(error, "error_code", None) in _CLIENT_ERRORS

    def _outage(self, error: Exception) -> None:
        if not self._told:
            self._told = True
            if isinstance(error, Unusable):
                self._tell(f"{error} The run goes on; what it has to log is kept until then.")
                return
            reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
            self._tell(
                redact(
                    f"MLflow at {self.uri} does not answer ({reason}). The run goes on; what is "
                    "missed is logged when it is back."
                )
            )
