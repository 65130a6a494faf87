"""Rewards by a function of a file of one's own.

`(dialogues, responses, **columns) -> list of floats`: a dialogue is a list of {"role", "content"},
and columns are the other columns of the prompts' rows, lists with one value a response, where the
data has prompts alone. The file is run where rewards are asked for; what it imports of its own is
not followed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from infalign.data.dialogue import Dialogue
from infalign.errors import InputError
from infalign.files.squares import Array
from infalign.rewards.source import as_rewards

Columns: TypeAlias = Mapping[Dialogue, Mapping[str, Any]]
AT_ONCE = 1024  # responses a call


@dataclass(frozen=True)
class Function:
    """A source of rewards; `load_function` makes one."""

    path: Path
    name: str
    call: Callable[..., Any]
    columns: Columns = field(default_factory=dict)

    def rewards(self, dialogues: Sequence[Dialogue], responses: Sequence[str]) -> Array:
        """As every source of rewards."""
        found = [np.empty(0)]
        for start in range(0, len(responses), AT_ONCE):
            chosen = slice(start, start + AT_ONCE)
            found.append(self._rewards(dialogues[chosen], list(responses[chosen])))
        return np.concatenate(found)

    def _rewards(self, dialogues: Sequence[Dialogue], responses: list[str]) -> Array:
        columns = self._columns(dialogues)
        try:
            asked = [dialogue.messages for dialogue in dialogues]
            given = self.call(asked, list(responses), **columns)
            values = _listed(given)
        except (Exception, SystemExit) as error:
            raise InputError(
                f"{_place(self.path, error, self._line)}: {self.name} failed "
                f"({_short(error)}): correct it."
            ) from error
        source = f"{self.path}, line {self._line}: {self.name}"
        if values is None:
            raise InputError(
                f"{source} gave {type(given).__name__}, and not a list with one number a response."
            )
        return as_rewards(values, responses, source)

    @property
    def needed(self) -> list[str]:
        """The columns without which it cannot be called."""
        return [name for name, without in _taken(self.call)[0].items() if without]

    @property
    def used(self) -> list[str]:
        """The columns that it is given, of those that any prompt has."""
        taken, all_of_them = _taken(self.call)
        there = dict.fromkeys(name for row in self.columns.values() for name in row)
        return [name for name in there if all_of_them or name in taken]

    def _columns(self, dialogues: Sequence[Dialogue]) -> dict[str, list[Any]]:
        """The columns that the function takes, of those that the prompts have."""
        rows = [self.columns.get(dialogue, {}) for dialogue in dialogues]
        there = dict.fromkeys(name for row in rows for name in row)
        taken, all_of_them = _taken(self.call)
        for name in taken:
            if name not in there and taken[name]:
                raise InputError(
                    f"{self.path}, line {self._line}: {self.name} needs the column {name!r}, and "
                    f"the prompts have {list(there)}: give it a default, or other data."
                )
        return {
            name: [row.get(name) for row in rows] for name in there if all_of_them or name in taken
        }

    @property
    def _line(self) -> int:
        code = getattr(inspect.unwrap(self.call), "__code__", None)
        return 1 if code is None else int(code.co_firstlineno)


def load_function(
    path: Path,
    name: str,
    sha256: str | None = None,
    columns: Columns | None = None,
    remedy: str = "run `infalign run`, which makes again what depends on it",
) -> Function:
    """The function of a file; every way in which there is none is one sentence.

    Args:
        sha256: of the file as it was when it was looked at; another one is refused.
        columns: of the prompts that have any.
        remedy: where it is another one.
    """
    try:
        source = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}): write the function {name} there, or "
            "correct the reward's path."
        ) from None
    if sha256 is not None and hashlib.sha256(source).hexdigest() != sha256:
        raise InputError(
            f"{path} is not the file that was described when it was looked at: {remedy}."
        )
    module = run_file(path, source)
    call = getattr(module, name, None)
    if not callable(call):
        known = [n for n, v in vars(module).items() if inspect.isfunction(v)]
        raise InputError(f"{path} has no function {name!r}: it has {known}.")
    _check_signature(path, name, call)
    return Function(path, name, call, columns or {})


def run_file(path: Path, source: bytes) -> Any:
    """The file, run as a module that nothing else imports."""
    name = f"_reward_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and pickle look for it
    try:
        # Not by the loader: its cached file may be of a text of the same second and size.
        exec(compile(source, str(path), "exec"), vars(module))
    except SyntaxError as error:
        where = f"{error.filename}, line {error.lineno}"
        raise InputError(f"{where}: {error.msg}: correct it.") from None
    except (Exception, SystemExit) as error:
        raise InputError(
            f"{_place(path, error, 1)}: the file cannot be imported ({_short(error)}): correct it."
        ) from error
    return module


def _check_signature(path: Path, name: str, call: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(call)
    except (TypeError, ValueError):  # of something built in, which says nothing
        return
    try:
        signature.bind([], [], **dict.fromkeys(_taken(call)[0]))
    except TypeError as error:
        line = getattr(getattr(call, "__code__", None), "co_firstlineno", 1)
        raise InputError(
            f"{path}, line {line}: {name}{signature} cannot be called with dialogues and "
            f"responses ({error}): write def {name}(dialogues, responses, **columns)."
        ) from None
    if inspect.iscoroutinefunction(call):
        raise InputError(f"{path}: {name} is async, and is called as an ordinary function.")


def _taken(call: Callable[..., Any]) -> tuple[dict[str, bool], bool]:
    """The columns that a function names, and whether it cannot do without; whether it takes any."""
    try:
        more = list(inspect.signature(call).parameters.values())[2:]
    except (TypeError, ValueError):
        return {}, False
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    columns = {each.name: each.default is each.empty for each in more if each.kind in named}
    return columns, any(each.kind is each.VAR_KEYWORD for each in more)


def _listed(given: Any) -> Iterable[object] | None:
    """The values of a list, a tuple or an array; None: it is none of these."""
    if hasattr(given, "tolist"):
        given = given.tolist()
    return given if isinstance(given, list | tuple) else None


def _place(path: Path, error: BaseException, line: int) -> str:
    """The file and the line of it that an error went through last."""
    for frame in traceback.extract_tb(error.__traceback__):
        if Path(frame.filename) == path and frame.lineno is not None:
            line = frame.lineno
    return f"{path}, line {line}"


def _short(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
