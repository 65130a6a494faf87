"""Which version is the champion: an append-only history in MLflow, and the aliases that follow it.

MLflow can move an alias, but neither compare before it does nor remember. Its parameters can be
written once only: the history of a registered model is the parameters of one run, `000001`,
`000002`, …, each a move as JSON. Whoever writes the next number first has made the move, wherever
the others are; everyone else reads it and decides again. The run's id is a tag of the registered
model from its creation on.

The aliases are set from the history, and again until both agree: a process that is killed, or
overtaken, in between leaves a former champion in place, which the next command mends. A reader of
`models:/NAME@champion` always finds one.
"""

from __future__ import annotations

import json
import re
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import FileLock

from flows.children.processes import redact, user
from infalign.errors import InputError

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous_champion", "challenger"
JOURNAL = "infalign.journal"  # the registered model's tag: the run that holds its history
LONGEST_REASON = 500
LONGEST_ENTRY = 6000  # characters of an MLflow parameter
PATIENCE_SECONDS = 30.0
# A busy SQLite; a row that someone else wrote, or took away, between MLflow's look and its own act.
_IN_THE_WAY = re.compile(r"database is locked|unique constraint|\d+ were matched", re.IGNORECASE)
T = TypeVar("T")


class Overtaken(RuntimeError):
    """Someone else moved the champion first: decide again."""


@dataclass(frozen=True)
class Move:
    """One entry of a history.

    Attributes:
        move: `promote` or `rollback`.
        source, to: version before and after; no version before the first.
        who, when, why: a user at a machine, UTC, their words.
        gate: the gate's result in short; empty where none was asked.
        forced: whether it was made against the gate.
        id: makes two moves that are alike different.
    """

    move: str
    source: str | None
    to: str
    who: str
    when: str
    why: str
    gate: dict[str, Any] = field(default_factory=dict)
    forced: bool = False
    id: str = ""


def patiently(call: Callable[[], T], seconds: float = PATIENCE_SECONDS) -> T:
    """Call again while someone else is in the way; only for what may be done twice."""
    from mlflow.exceptions import MlflowException

    deadline = time.monotonic() + seconds
    while True:
        try:
            return call()
        except MlflowException as error:
            unavailable = error.error_code == "TEMPORARILY_UNAVAILABLE"
            if not (unavailable or _IN_THE_WAY.search(str(error))):
                raise
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def whoami() -> str:
    """The user and the machine."""
    return f"{user()}@{socket.gethostname()}"


def reigning(history: list[Move]) -> list[str]:
    """The champions that a rollback can return to, the present one last."""
    stack: list[str] = []
    for move in history:
        if move.source != (stack[-1] if stack else None):
            raise InputError(
                f"the history of moves is broken at the move to version {move.to}: it does not "
                "begin at the champion of that time."
            )
        stack = stack[:-1] if move.move == "rollback" else [*stack, move.to]
    return stack


def was_rolled_back(history: list[Move], version: str) -> bool:
    """Whether the last thing that happened to a version was to be taken back."""
    for move in reversed(history):
        if move.to == version:
            return False
        if move.source == version and move.move == "rollback":
            return True
    return False


@dataclass(frozen=True)
class Champions:
    """The champions of one registered model.

    Args:
        client: of MLflow.
        name: the registered model's.
        experiment: in which a new history's run is kept.
        locks: a folder; processes that share it wait for each other instead of trying again.
    """

    client: MlflowClient
    name: str
    experiment: str
    locks: Path

    # What is.

    def exists(self) -> bool:
        """Whether the model has been registered."""
        return self._model() is not None

    def ensure(self) -> None:
        """Create the registered model with its history, once, whoever is first."""
        from mlflow.exceptions import MlflowException

        if self.exists():
            self._journal()
            return
        tags = {"infalign.model": self.name}
        run = self.client.create_run(self.experiment, tags=tags, run_name=f"history {self.name}")
        try:
            patiently(
                lambda: self.client.create_registered_model(
                    self.name, tags={JOURNAL: run.info.run_id}
                )
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        self.client.set_terminated(run.info.run_id)  # parameters are still taken
        if self._journal() != run.info.run_id:
            self.client.delete_run(run.info.run_id)

    def history(self) -> list[Move]:
        """Every move, the oldest first."""
        if not self.exists():
            return []
        params = patiently(lambda: self.client.get_run(self._journal())).data.params
        entries = {key: value for key, value in params.items() if key.isdigit()}
        if sorted(entries) != [_key(place) for place in range(len(entries))]:
            raise InputError(f"the history of {self.name} has gaps: {sorted(entries)[-3:]}.")
        return [Move(**json.loads(entries[key])) for key in sorted(entries)]

    def champion(self) -> str | None:
        """The champion's version, by the history."""
        stack = reigning(self.history())
        return stack[-1] if stack else None

    def aliases(self) -> dict[str, str]:
        """The aliases as a reader finds them."""
        model = self._model()
        return {k: str(v) for k, v in model.aliases.items()} if model is not None else {}

    # What is done.

    def promote(
        self,
        version: str,
        expected: str | None,
        why: str,
        gate: dict[str, Any],
        forced: bool = False,
    ) -> Move | None:
        """Make a version the champion; None if it is. Overtaken if `expected` is not any more."""

        def decide(history: list[Move]) -> Move | None:
            stack = reigning(history)
            champion = stack[-1] if stack else None
            if champion == version:
                return None
            if champion != expected:
                raise Overtaken(f"{self.name}: version {champion} became the champion meanwhile.")
            return self._entry("promote", champion, version, why, gate, forced)

        return self._move(decide)

    def rollback(self, why: str) -> Move:
        """Return to the champion before this one, or complete a rollback that was cut short."""

        def decide(history: list[Move]) -> Move | None:
            stack = reigning(history)
            if history and history[-1].move == "rollback" and not self._agree(stack):
                return None  # made, but the aliases did not follow: it is this one
            if len(stack) < 2:
                raise InputError(
                    f"{self.name} has no earlier champion to return to: promote a version with "
                    "`infalign promote --version V --force --reason TEXT`."
                )
            return self._entry("rollback", stack[-1], stack[-2], why, {}, False)

        return self._move(decide) or self.history()[-1]

    def challenge(self, version: str) -> None:
        """Call a version the challenger, unless it is the champion."""
        if version not in (self.champion(), self.aliases().get(CHALLENGER)):
            self._set(CHALLENGER, version)

    def settle(self) -> bool:
        """Make the aliases say what the history says; whether that was needed."""
        moved = False
        while self.exists() and not self._agree(stack := reigning(self.history())):
            self._point(stack)
            moved = True
        return moved

    def _move(self, decide: Callable[[list[Move]], Move | None]) -> Move | None:
        """Decide on the present history until the move is the next one in it."""
        self.locks.mkdir(parents=True, exist_ok=True)
        with FileLock(self.locks / f"{self.name}.lock"):
            while True:
                history = self.history()
                move = decide(history)
                if move is None or self._append(len(history), move):
                    self.settle()
                    return move

    def _append(self, place: int, move: Move) -> bool:
        """Write the move at its place, unless another one is there: the one act that decides."""
        from mlflow.exceptions import MlflowException

        text = json.dumps(asdict(move), sort_keys=True, ensure_ascii=False)
        if len(text) > LONGEST_ENTRY:
            raise InputError(f"the move to version {move.to} is too long to be recorded.")
        run_id = self._journal()
        try:
            patiently(lambda: self.client.log_param(run_id, _key(place), text))
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            run = self.client.get_run(run_id)
            if run.info.lifecycle_stage != "active":
                raise InputError(
                    f"the run {run_id}, which holds the history of {self.name}, was deleted in "
                    "MLflow: restore it there."
                ) from None
            if _key(place) not in run.data.params:
                raise
            return bool(run.data.params[_key(place)] == text)
        return True

    def _entry(
        self,
        move: str,
        source: str | None,
        to: str,
        why: str,
        gate: dict[str, Any],
        forced: bool,
    ) -> Move:
        when = datetime.now(UTC).isoformat(timespec="seconds")
        why = redact(why)[:LONGEST_REASON]
        return Move(move, source, to, redact(whoami()), when, why, gate, forced, uuid.uuid4().hex)

    # Aliases.

    def _wanted(self, stack: list[str]) -> dict[str, str]:
        """The aliases that the history asks for."""
        return dict(zip((CHAMPION, PREVIOUS), reversed(stack[-2:]), strict=False))

    def _agree(self, stack: list[str]) -> bool:
        found, wanted = self.aliases(), self._wanted(stack)
        if any(found.get(name) != wanted.get(name) for name in (CHAMPION, PREVIOUS)):
            return False
        return found.get(CHALLENGER) is None or found.get(CHALLENGER) != wanted.get(CHAMPION)

    def _point(self, stack: list[str]) -> None:
        """Set the aliases; at no moment is a champion its own predecessor, or nobody champion."""
        found, wanted = self.aliases(), self._wanted(stack)
        if PREVIOUS in found and found[PREVIOUS] != wanted.get(PREVIOUS):
            self._delete(PREVIOUS)
        for name in (CHAMPION, PREVIOUS):
            if name in wanted and found.get(name) != wanted[name]:
                self._set(name, wanted[name])
        if CHAMPION in wanted and found.get(CHALLENGER) == wanted[CHAMPION]:
            self._delete(CHALLENGER)

    def _set(self, alias: str, version: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            patiently(lambda: self.client.set_registered_model_alias(self.name, alias, version))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise InputError(
                f"version {version} of {self.name} should be the {alias}, but it was deleted: "
                "promote another one with --version V --force --reason TEXT."
            ) from None

    def _delete(self, alias: str) -> None:
        patiently(lambda: self.client.delete_registered_model_alias(self.name, alias))

    def _model(self) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            return patiently(lambda: self.client.get_registered_model(self.name))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    def _journal(self) -> str:
        run_id = self._model().tags.get(JOURNAL)
        if run_id is None:
            raise InputError(
                f"the registered model {self.name} has no history of moves (tag {JOURNAL}): it was "
                "not made by infalign. Rename or delete it."
            )
        return str(run_id)


def _key(place: int) -> str:
    return f"{place + 1:06d}"
