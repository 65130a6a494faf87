"""What a gate needs to know of a policy, in a folder that stays with its version.

`evidence.parquet`: the policy's and the reference's rewards of every evaluation prompt;
`other.parquet`: win rates over the reference on other objectives' prompts; `facts.json`: what was
compared (procedure, and digests of data, judges and reference), the calibration error, and the KL
budget; `trained.npy`: the prompts that anything of the system was trained on, 8 bytes each.
Numpy and pyarrow alone: a gate needs no model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from infalign.errors import InputError
from infalign.files.squares import Array
from infalign.files.tables import INDEPENDENT, SELECTING, Table, read_table, schema, write_table
from infalign.files.workspace import replacing, write_json

_TEXT, _FLOAT, _INF = pa.string(), pa.float64(), math.inf
TRAINED = "trained.npy"


EVIDENCE = Table(
    "evidence",
    schema(
        side=_TEXT,
        prompt_id=_TEXT,
        selecting=pa.list_(_FLOAT),
        independent=pa.list_(_FLOAT),
        kl=_FLOAT,
        n_tokens=_FLOAT,
        finished=_FLOAT,
    ),
    ("side", "prompt_id"),
    {
        SELECTING: (-_INF, _INF),
        INDEPENDENT: (-_INF, _INF),
        "kl": (-1e-3, _INF),
        "n_tokens": (0.0, _INF),
        "finished": (0.0, 1.0),
    },
    {"side": frozenset({"policy", "reference"})},
    {"train": SELECTING, "judge": INDEPENDENT},
    optional=frozenset({INDEPENDENT}),
)
OTHER = Table(
    "other objectives",
    schema(objective=_TEXT, prompt_id=_TEXT, win_rate=_FLOAT),
    ("objective", "prompt_id"),
    {"win_rate": (0.0, 1.0)},
)


@dataclass(frozen=True)
class Facts:
    """What was measured, and by what.

    Attributes:
        objective, variant, procedure: of the policy.
        data, judge, reference: SHA-256 of the prepared data, of both sources of rewards, and of the
            reference policy.
        calibration_error: mean absolute error of calibrated rewards.
        references: K, the number of references it was measured at.
        seed: of the bootstrap.
        kl_nats: the KL budget that the policy was trained to; None where it was given a beta, and
            in evidence that is older than this field.
        system: SHA-256 of what is deployed (policy, selecting reward, settings).
        reward, judged_by: SHA-256 of its packaged selecting reward, and of its packaged judge;
            None where there is no judge, and all three in older evidence.
        temperature: of sampling where it is deployed.
    """

    objective: str
    variant: str
    procedure: str
    data: str
    judge: str
    reference: str
    calibration_error: float
    references: int
    seed: int
    kl_nats: float | None = None
    system: str | None = None
    reward: str | None = None
    judged_by: str | None = None
    temperature: float = 1.0


@dataclass(frozen=True)
class Side:
    """Responses of one policy: rewards [prompts, samples], the rest means [prompts].

    `independent` is None where the objective has no judge.
    """

    selecting: Array
    independent: Array | None
    kl: Array
    n_tokens: Array
    finished: Array


@dataclass(frozen=True)
class Evidence:
    """A policy and the reference on the same prompts.

    Attributes:
        other: objective to win rates [prompts].
        trained: ids of the prompts that the system was trained on, its reward models and reference
            included; None in older evidence, which does not say.
    """

    facts: Facts
    prompt_ids: tuple[str, ...]
    policy: Side
    reference: Side
    other: Mapping[str, Array]
    trained: frozenset[str] | None = None


def write_evidence(folder: Path, evidence: Evidence) -> None:
    """Write the folder; the same evidence gives the same bytes."""
    words = [SELECTING, INDEPENDENT, "kl", "n_tokens", "finished"]
    if evidence.policy.independent is None:
        words.remove(INDEPENDENT)
    columns: dict[str, list[Any]] = {name: [] for name in ("side", "prompt_id", *words)}
    for name, side in (("policy", evidence.policy), ("reference", evidence.reference)):
        columns["side"] += [name] * len(evidence.prompt_ids)
        columns["prompt_id"] += evidence.prompt_ids
        for word in words:
            columns[word] += list(getattr(side, word))
    write_table(folder / "evidence.parquet", columns, EVIDENCE)
    rows = [
        (name, str(place), float(wins))
        for name, values in sorted(evidence.other.items())
        for place, wins in enumerate(values)
    ]
    names = OTHER.schema.names
    write_table(
        folder / "other.parquet",
        {name: [row[i] for row in rows] for i, name in enumerate(names)},
        OTHER,
    )
    write_json(folder / "facts.json", asdict(evidence.facts))
    if evidence.trained is not None:
        ids = np.array(sorted(int(name, 16) for name in evidence.trained), dtype=np.uint64)
        with replacing(folder / TRAINED) as temporary, open(temporary, "wb") as stream:
            np.save(stream, ids, allow_pickle=False)


def read_evidence(folder: Path) -> Evidence:
    """Read and check the folder."""
    try:
        facts = Facts(**json.loads((folder / "facts.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{folder / 'facts.json'} does not say what was measured ({error}): "
            "register the version again with `infalign promote`."
        ) from None
    path = folder / "evidence.parquet"
    table = read_table(path, EVIDENCE)
    side = table["side"].to_numpy(zero_copy_only=False)
    ids = table["prompt_id"].to_numpy(zero_copy_only=False)
    policy, reference = (table.take(np.flatnonzero(side == n)) for n in ("policy", "reference"))
    half = len(ids) // 2
    if not np.array_equal(ids[side == "policy"], ids[side == "reference"]) or not half:
        raise InputError(f"{path}: policy and reference must have the same prompts in one order.")
    other = read_table(folder / "other.parquet", OTHER)
    names = other["objective"].to_numpy(zero_copy_only=False)
    wins = other["win_rate"].to_numpy()
    return Evidence(
        facts,
        tuple(ids[side == "policy"]),
        _side(policy, path),
        _side(reference, path),
        {str(name): wins[names == name] for name in dict.fromkeys(names)},
        read_trained(folder / TRAINED),
    )


def read_trained(path: Path) -> frozenset[str] | None:
    """The ids of a file of prompts that something was trained on; None where there is none."""
    if not path.exists():
        return None
    try:
        ids = np.load(path, allow_pickle=False)
        return frozenset(f"{int(number):016x}" for number in ids)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} does not list prompts ({error}): register it again.") from None


def _side(table: pa.Table, path: Path) -> Side:
    def square(name: str) -> Array:
        column = table[name].combine_chunks()
        values = column.flatten().to_numpy(zero_copy_only=False)
        lengths = np.diff(column.offsets.to_numpy())
        if not len(values) or (lengths != lengths[0]).any():
            raise InputError(f"{path}, column {name}: every prompt needs as many samples.")
        return values.reshape(len(lengths), -1)

    means = (table[name].to_numpy() for name in ("kl", "n_tokens", "finished"))
    independent = square(INDEPENDENT) if INDEPENDENT in table.column_names else None
    return Side(square(SELECTING), independent, *means)
