"""The schema of every parquet file: checked reads, atomic writes.

A table is written to a temporary name and renamed, and says which file, column and row is wrong
when it is read. Keys are unique, numbers are finite and within range, nulls are refused except in
columns whose value may be undefined.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infalign.errors import InputError
from infalign.files.names import GOLD, INDEPENDENT, SELECTING
from infalign.files.names import REFERENCE as REFERENCE
from infalign.files.workspace import replacing


@dataclass(frozen=True)
class Table:
    """One kind of parquet file: its columns, its key and the range of its numbers.

    `former` are names that columns had before, which are read as if they were today's; columns in
    `optional` may be missing.
    """

    name: str
    schema: pa.Schema
    key: tuple[str, ...]
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    choices: dict[str, frozenset[str]] = field(default_factory=dict)
    former: dict[str, str] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()

    def of(self, columns: Iterable[str]) -> Table:
        """The same with those of its optional columns that are among the names."""
        left = self.optional - set(columns)
        names = [name for name in self.schema.names if name not in left]
        return replace(self, schema=pa.schema([self.schema.field(name) for name in names]))


_INF = float("inf")
_SPLIT = {"split": frozenset({"train", "test"})}
_JUDGE = {"judge": frozenset({SELECTING, INDEPENDENT, GOLD})}
_TEXT, _INT, _FLOAT = pa.string(), pa.int32(), pa.float64()


def schema(*undefined: str, **columns: pa.DataType) -> pa.Schema:
    """Columns in order; those named in `undefined` may hold nulls."""
    return pa.schema(
        [pa.field(name, kind, nullable=name in undefined) for name, kind in columns.items()]
    )


PROMPTS = Table(
    "prompts",
    schema(
        prompt_id=_TEXT, objective=_TEXT, split=_TEXT, source=_TEXT, dialogue=_TEXT, columns=_TEXT
    ),
    ("objective", "prompt_id"),
    choices=_SPLIT,
)
PREFERENCES = Table(
    "preferences",
    schema(
        pair_id=_TEXT,
        prompt_id=_TEXT,
        objective=_TEXT,
        split=_TEXT,
        half=_TEXT,
        chosen=_TEXT,
        rejected=_TEXT,
    ),
    ("pair_id",),
    choices=_SPLIT | {"half": frozenset({SELECTING, INDEPENDENT})},
)
SAMPLES = Table(
    "samples",
    schema(
        objective=_TEXT,
        prompt_id=_TEXT,
        sample_index=_INT,
        split=_TEXT,
        response=_TEXT,
        tokens=pa.list_(_INT),
        n_tokens=_INT,
        logp=_FLOAT,
        finished=pa.bool_(),
    ),
    ("objective", "prompt_id", "sample_index"),
    {"sample_index": (0, _INF), "n_tokens": (1, _INF), "logp": (-_INF, 0.0)},
    _SPLIT,
)
CALIBRATION = Table(
    "calibration",
    schema(prompt_id=_TEXT, split=_TEXT, n_reference=_INT, rewards=pa.list_(_FLOAT)),
    ("prompt_id",),
    {"n_reference": (2, _INF), "rewards": (-_INF, _INF)},
    _SPLIT,
)
CALIBRATED = Table(
    "calibrated",
    schema(
        prompt_id=_TEXT,
        sample_index=_INT,
        split=_TEXT,
        reward=_FLOAT,
        independent_reward=_FLOAT,
        calibrated=_FLOAT,
    ),
    ("prompt_id", "sample_index"),
    {
        "sample_index": (0, _INF),
        "reward": (-_INF, _INF),
        "independent_reward": (-_INF, _INF),
        "calibrated": (0.0, 1.0),
    },
    _SPLIT,
    optional=frozenset({"independent_reward"}),
)
PART_REWARDS = Table(
    "rewards of a sum's parts",
    schema(prompt_id=_TEXT, sample_index=_INT, judge=_TEXT, part=_TEXT, reward=_FLOAT),
    ("prompt_id", "sample_index", "judge", "part"),
    {"sample_index": (0, _INF), "reward": (-_INF, _INF)},
    _JUDGE,
)
EVALUATION_SAMPLES = Table(
    "evaluation samples",
    schema(
        policy=_TEXT,
        prompt_id=_TEXT,
        sample_index=_INT,
        response=_TEXT,
        n_tokens=_INT,
        finished=pa.bool_(),
        kl=_FLOAT,
        log_ratio=_FLOAT,
    ),
    ("policy", "prompt_id", "sample_index"),
    {"sample_index": (0, _INF), "n_tokens": (1, _INF), "kl": (-1e-3, _INF)}
    | {"log_ratio": (-_INF, _INF)},
)
EVALUATION_REWARDS = Table(
    "evaluation rewards",
    schema(policy=_TEXT, prompt_id=_TEXT, sample_index=_INT, judge=_TEXT, reward=_FLOAT),
    ("policy", "prompt_id", "sample_index", "judge"),
    {"sample_index": (0, _INF), "reward": (-_INF, _INF)},
    _JUDGE,
)
# Undefined, so null: an efficiency at KL 0, and the limit of a method that cannot spend the KL.
EVALUATION = Table(
    "evaluation",
    schema(
        "method_limit",
        "method_limit_error",
        "efficiency",
        "efficiency_low",
        "efficiency_high",
        "method_efficiency",
        policy=_TEXT,
        judge=_TEXT,
        procedure=_TEXT,
        win_rate=_FLOAT,
        low=_FLOAT,
        high=_FLOAT,
        limit=_FLOAT,
        tied_limit=_FLOAT,
        method_limit=_FLOAT,
        method_limit_error=_FLOAT,
        efficiency=_FLOAT,
        efficiency_low=_FLOAT,
        efficiency_high=_FLOAT,
        method_efficiency=_FLOAT,
        kl=_FLOAT,
        kl_se=_FLOAT,
        log_ratio=_FLOAT,
        log_ratio_se=_FLOAT,
        response_tokens=_FLOAT,
        truncated=_FLOAT,
        n_prompts=_INT,
    ),
    ("policy", "judge", "procedure"),
    dict.fromkeys(("win_rate", "low", "high", "limit", "tied_limit"), (0.0, 1.0))
    | dict.fromkeys(("method_limit", "truncated"), (0.0, 1.0))
    | dict.fromkeys(("efficiency", "efficiency_low", "efficiency_high"), (-_INF, _INF))
    | dict.fromkeys(("method_efficiency", "log_ratio"), (-_INF, _INF))
    | dict.fromkeys(("method_limit_error", "kl_se", "log_ratio_se"), (0.0, _INF))
    | {"kl": (-1e-3, _INF), "response_tokens": (0.0, _INF), "n_prompts": (1, _INF)},
    _JUDGE,
    optional=frozenset({"tied_limit"}),  # of a reward of few levels
)
DIFFERENCES = Table(
    "differences",
    schema(
        first=_TEXT,
        second=_TEXT,
        judge=_TEXT,
        procedure=_TEXT,
        difference=_FLOAT,
        low=_FLOAT,
        high=_FLOAT,
    ),
    ("first", "second", "judge", "procedure"),
    dict.fromkeys(("difference", "low", "high"), (-1.0, 1.0)),
    _JUDGE,
)


def write_table(path: Path, columns: Mapping[str, object], kind: Table) -> None:
    """Write columns (name to sequence) as one parquet file, atomically, checked as it is read."""
    kind = kind.of(columns)
    table = pa.table(columns, schema=kind.schema)
    check_table(table, kind, path)
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", store_schema=False)


def read_table(path: Path, kind: Table) -> pa.Table:
    """Read a parquet file and check columns, types, nulls, keys and ranges."""
    try:
        table = pq.read_table(path, partitioning=None)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: run the stage that writes it.") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is not a readable parquet file: {error}.") from None
    table = table.rename_columns([kind.former.get(name, name) for name in table.column_names])
    kind = kind.of(table.column_names)
    missing = [name for name in kind.schema.names if name not in table.column_names]
    extra = [name for name in table.column_names if name not in kind.schema.names]
    if missing or extra:
        raise InputError(
            f"{path}: the {kind.name} table needs the columns {kind.schema.names}; "
            f"missing: {missing}, unknown: {extra}. Remove the file and run its stage again."
        )
    table = table.select(kind.schema.names)
    for wanted in kind.schema:
        if not _same_type(table.schema.field(wanted.name).type, wanted.type):
            found = table.schema.field(wanted.name).type
            raise InputError(
                f"{path}, column {wanted.name}: found {found}, needs {wanted.type}. "
                "Remove the file and run its stage again."
            )
    check_table(table, kind, path)
    return table


def _same_type(found: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_list(wanted):
        return bool(pa.types.is_list(found) and found.value_type == wanted.value_type)
    return bool(found == wanted)


def check_table(table: pa.Table, kind: Table, path: Path) -> None:
    """Raise InputError naming file, column and row for the first value that does not fit."""

    def fault(column: str, row: int, value: object, need: str) -> InputError:
        return InputError(
            f"{path}, column {column}, row {row}: {value!r} {need}. "
            "Remove the file and run its stage again."
        )

    for name in kind.schema.names:
        column = table.column(name)
        if column.null_count and not kind.schema.field(name).nullable:
            row = pc.index(pc.is_null(column), True).as_py()
            raise fault(name, row, None, "is not allowed")
        if name in kind.ranges:
            _check_range(column, kind.ranges[name], name, fault)
        if name in kind.choices:
            allowed = pc.is_in(column, value_set=pa.array(sorted(kind.choices[name]), _TEXT))
            row = pc.index(allowed, False).as_py()
            if row >= 0:
                raise fault(
                    name, row, column[row].as_py(), f"is not in {sorted(kind.choices[name])}"
                )
    _check_key(table, kind, fault)


def _check_range(column: pa.ChunkedArray, bounds: tuple[float, float], name: str, fault) -> None:  # type: ignore[no-untyped-def]
    low, high = bounds
    rows = None
    if pa.types.is_list(column.type):
        rows = pc.list_parent_indices(column)
        column = pc.list_flatten(column)
    elif column.null_count:
        rows = pc.indices_nonzero(pc.is_valid(column))
        column = pc.drop_null(column)
    values = column.to_numpy().astype(np.float64, copy=False)
    bad = ~(np.isfinite(values) & (values >= low) & (values <= high))
    if bad.any():
        at = int(np.argmax(bad))
        row = at if rows is None else int(rows[at].as_py())
        raise fault(name, row, float(values[at]), f"is not a finite number in [{low}, {high}]")


def _check_key(table: pa.Table, kind: Table, fault) -> None:  # type: ignore[no-untyped-def]
    keys = table.select(list(kind.key))
    counts = keys.group_by(list(kind.key)).aggregate([([], "count_all")])
    if counts.num_rows == table.num_rows:
        return
    seen: set[tuple[object, ...]] = set()
    for row, key in enumerate(zip(*(keys.column(n).to_pylist() for n in kind.key), strict=True)):
        if key in seen:
            raise fault("+".join(kind.key), row, key, "is there twice")
        seen.add(key)
