"""What a request to `/invocations` asks, checked before the model sees it.

MLflow takes prompts as `inputs`, `instances`, `dataframe_split` or `dataframe_records`, and turns
numbers and nulls among them into text; beside these there are `messages`, as chat templates take
them: a dialogue, or a list of dialogues. Here every form becomes one list of texts, a dialogue its
canonical JSON, or the request is refused: what was checked is what the model gets.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from infalign.data.framing import asked, text_fault
from infalign.settings.params import Serving
from infalign.theory.procedures import parse_procedure

FORMATS = ("inputs", "instances", "dataframe_split", "dataframe_records", "messages")
EXPECTED = 'send {"inputs": ["a question"]}'
EXPECTED_MESSAGES = 'send {"messages": [{"role": "user", "content": "a question"}]}'


class Refused(Exception):
    """A request that is answered with a status and one sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True)
class Reader:
    """Reads requests for one model.

    Attributes:
        limits: section `serving` of params.yaml.
        params: names that the model's signature knows, each with its type: string, long, double.
        column: the name that the model's signature gives to prompts, if any.
    """

    limits: Serving
    params: Mapping[str, str]
    column: str | None = None

    def read(self, content_type: str, body: bytes) -> bytes:
        """The request in the plainest of MLflow's forms; or Refused."""
        if content_type != "application/json":
            raise Refused(415, "the content type must be application/json.")
        try:
            tree = json.loads(body, parse_constant=no_number)
        except (ValueError, RecursionError):  # a number of thousands of digits among them
            raise Refused(400, f"the request is not JSON: {EXPECTED}.") from None
        given = [name for name in FORMATS if isinstance(tree, dict) and name in tree]
        if len(given) != 1 or set(tree) - {*FORMATS, "params"}:
            names = ", ".join(FORMATS)
            raise Refused(
                400,
                f"the request must have exactly one of {names}, and may have params: {EXPECTED}.",
            )
        form, value = given[0], tree[given[0]]
        prompts = self._dialogues(value) if form == "messages" else self._prompts(form, value)
        params = {} if tree.get("params") is None else tree["params"]
        if not isinstance(params, dict):
            raise Refused(400, "params must be a mapping of names to values.")
        params = {name: value for name, value in params.items() if value is not None}
        self.check_params(params)
        return json.dumps({"inputs": prompts, "params": params}).encode()

    def check_params(self, params: Mapping[str, Any]) -> None:
        """Refuse what is none of the model's parameters, or out of bounds."""
        for name, value in params.items():
            self._check_param(name, value)

    def _prompts(self, form: str, value: Any) -> list[str]:
        rows = self._rows(form, value)
        self._check_number(rows)
        prompts = [self._cell(number, row) for number, row in enumerate(rows)]
        for number, prompt in enumerate(prompts):
            if fault := text_fault(prompt):
                raise Refused(400, f"prompt {number} {fault}: {EXPECTED}.")
        return prompts

    def _dialogues(self, value: Any) -> list[str]:
        if not isinstance(value, list):
            raise Refused(400, f"messages must be a list: {EXPECTED_MESSAGES}.")
        dialogues = value if not value or isinstance(value[0], list) else [value]
        self._check_number(dialogues)
        texts = []
        for number, dialogue in enumerate(dialogues):
            if not isinstance(dialogue, list):
                raise Refused(400, f"prompt {number} is no list of messages: {EXPECTED_MESSAGES}.")
            try:
                texts.append(asked(dialogue).text)
            except ValueError as error:
                raise Refused(400, f"prompt {number} {error}: {EXPECTED_MESSAGES}.") from None
        return texts

    def _check_number(self, prompts: list[Any]) -> None:
        if not 1 <= len(prompts) <= self.limits.prompts:
            raise Refused(400, f"{len(prompts)} prompts: send 1 to {self.limits.prompts} at once.")

    def _rows(self, form: str, value: Any) -> list[Any]:
        if form == "dataframe_split":
            if not isinstance(value, dict) or not isinstance(value.get("data"), list):
                raise Refused(400, f"dataframe_split must have 'data', a list of rows: {EXPECTED}.")
            if value.get("columns") is not None:
                self._check_columns(value["columns"])
            return list(value["data"])
        if form != "dataframe_records" and isinstance(value, dict):
            self._check_columns(list(value))
            value = next(iter(value.values()))
        if form != "dataframe_records" and isinstance(value, str):
            return [value]
        if not isinstance(value, list):
            raise Refused(400, f"{form} must be a list of prompts: {EXPECTED}.")
        return value

    def _cell(self, number: int, row: Any) -> Any:
        """The prompt of a row: the row itself, the one entry of a list, or of a mapping."""
        if isinstance(row, list | dict) and len(row) != 1:
            raise Refused(400, f"prompt {number} has {len(row)} columns, not one: {EXPECTED}.")
        if isinstance(row, dict):
            self._check_columns(list(row))
            return next(iter(row.values()))
        return row[0] if isinstance(row, list) else row

    def _check_columns(self, columns: Any) -> None:
        if not isinstance(columns, list) or len(columns) != 1:
            raise Refused(400, f"prompts must stand in one column: {EXPECTED}.")
        if self.column is not None and columns[0] != self.column:
            raise Refused(400, f"the column of prompts must be named {self.column!r}: {EXPECTED}.")

    def _check_param(self, name: str, value: Any) -> None:
        if name not in self.params:
            known = ", ".join(sorted(self.params)) or "none"
            raise Refused(400, f"params: {name[:40]!r} is not one of the model's: {known}.")
        bounds = {"n": self.limits.n, "max_new_tokens": self.limits.new_tokens}
        if name in bounds:
            _check_bound(name, value, bounds[name])
        elif name == "procedure":
            self._check_procedure(value)
        elif self.params[name] in _KINDS:
            fits, words = _KINDS[self.params[name]]
            if not fits(value):
                raise Refused(400, f"params: {name} is not {words}.")

    def _check_procedure(self, procedure: object) -> None:
        if not isinstance(procedure, str) or len(procedure) > 200 or not procedure.isprintable():
            raise Refused(400, "params: procedure must be a short text, as best_of:4.")
        try:
            size = parse_procedure(procedure).n
        except ValueError:  # the model's own spelling: it says what is wrong with it
            size = max((int(x[:9]) for x in re.findall(r"\d+", procedure)), default=1)
        if size > self.limits.n:
            raise Refused(
                400,
                f"params: procedure = {procedure[:40]} draws more than {self.limits.n} responses.",
            )


def _check_bound(name: str, value: object, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        shown = str(value)[:40]
        raise Refused(
            400,
            f"params: {name} = {shown} must be a whole number, 1 to {most}, or 0 for the model's "
            "own.",
        )


def _is_long(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _is_double(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


_KINDS: dict[str, tuple[Callable[[object], bool], str]] = {
    "string": (lambda value: text_fault(value) is None, "a text"),
    "long": (_is_long, "a whole number of 64 bits"),
    "double": (_is_double, "a finite number"),
}


def no_number(name: str) -> None:
    """Refuse NaN and the infinities, which JSON does not have."""
    raise ValueError(f"{name} is no JSON")
