"""One side's samples, prompt by prompt, and several sides on the same prompts.

Reads files through `reading`, or the folder that the stage evaluate writes. Sides may have
different numbers of samples, also from prompt to prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infalign.errors import InputError
from infalign.files.names import REFERENCE, SELECTING
from infalign.instrument.reading import KEYS, RESPONSES, Columns, Source, read_columns
from infalign.theory.checks import FloatArray

IntArray = NDArray[np.intp]
REFERENCE_LOGP = ("reference_logp", "ref_logp")  # the reference's of a policy's responses
KL_COLUMNS = ("kl", "log_ratio", "logp", *REFERENCE_LOGP)
OTHERS = ("sample_index", "n_tokens")
FOLDER_FILES = ("rewards.parquet", "samples.parquet")  # of an evaluated objective


@dataclass(frozen=True)
class Samples:
    """One side's samples; the rows of a prompt lie behind each other.

    Attributes:
        name: the policy's, `reference` for the reference.
        place: the file that they are from.
        key: what names its prompts, `prompt_id` or `prompt`.
        prompts: the prompts' keys, rising.
        counts: samples of each prompt [prompts].
        rewards: judge to rewards [rows], `selecting` first.
        numbers: the other columns there are (`kl`, `log_ratio`, …) [rows].
        responses: texts [rows], where they were asked for; empty otherwise.
        texts: key to the prompt's text, where the file has both.
    """

    name: str
    place: str
    key: str
    prompts: list[str]
    counts: IntArray
    rewards: dict[str, FloatArray]
    numbers: dict[str, FloatArray] = field(default_factory=dict)
    responses: list[str] = field(default_factory=list)
    texts: Mapping[str, str] = field(default_factory=dict)

    @property
    def starts(self) -> IntArray:
        """The first row of each prompt [prompts]."""
        return np.cumsum(self.counts) - self.counts

    def means(self, values: FloatArray) -> FloatArray:
        """The mean over each prompt's samples [prompts]."""
        if (self.counts == self.counts[0]).all():
            mean: FloatArray = values.reshape(len(self.counts), -1).mean(1)
            return mean
        return np.add.reduceat(values, self.starts) / self.counts

    def rectangle(self, values: FloatArray, chosen: IntArray, samples: int) -> FloatArray:
        """The first samples of the chosen prompts [chosen, samples]."""
        return values[self.starts[chosen][:, None] + np.arange(samples)]

    def of(self, positions: IntArray) -> Samples:
        """The same with these prompts alone."""
        starts, counts = self.starts[positions], self.counts[positions]
        rows = np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
        return Samples(
            self.name,
            self.place,
            self.key,
            [self.prompts[i] for i in positions],
            counts,
            {name: x[rows] for name, x in self.rewards.items()},
            {name: x[rows] for name, x in self.numbers.items()},
            [self.responses[i] for i in rows] if self.responses else [],
        )


def read_side(
    source: Source,
    name: str,
    reward: str,
    judges: Sequence[str],
    key: str | None = None,
    optional: bool = False,
) -> Samples:
    """The samples of one side.

    Args:
        source: as `reading.read_columns` takes it.
        name: the side's.
        reward: the column of the selecting reward.
        judges: the columns of further judges.
        key: `prompt_id` or `prompt`; None: the first of them that there is.
        optional: whether judges may be missing.

    Raises:
        InputError: naming file, row, column and remedy.
    """
    wanted = (reward, *judges, *KL_COLUMNS, *OTHERS)
    columns = read_columns(source, (*KEYS, *RESPONSES), tuple(dict.fromkeys(wanted)), name)
    if {"policy", "judge"} <= set(columns.names):
        raise InputError(
            f"{columns.place} has a row a policy and judge, as evaluate writes it: give its folder."
        )
    if optional:
        judges = [judge for judge in judges if judge in columns.numbers]
    for column in (reward, *judges):
        if column not in columns.numbers:
            option = "--reward" if column == reward else "--judge"
            raise InputError(
                f"{columns.place} has no column {column!r} but {', '.join(columns.names)}: name "
                f"one of them with {option}."
            )
    found = key or next((k for k in KEYS if k in columns.texts), None)
    if found not in columns.texts:
        raise InputError(
            f"{columns.place} has no column {found or ' or '.join(KEYS)!s} but "
            f"{', '.join(columns.names)}: it says which prompt a row answers."
        )
    if SELECTING in judges and reward != SELECTING:
        raise InputError(
            f"{columns.place}: {SELECTING!r} is what the reward is called that the procedure "
            "selects by: name that column with --reward, or rename it."
        )
    judged = {judge: judge for judge in judges if judge != SELECTING}
    return _grouped(columns, found, name, {SELECTING: reward, **judged})


def _grouped(columns: Columns, key: str, name: str, judges: Mapping[str, str]) -> Samples:
    """Rows in the order of prompts, and within one in that of `sample_index` or of the file."""
    codes, texts = columns.texts[key]
    asked = _one_text_an_id(columns) if key == KEYS[0] and KEYS[1] in columns.texts else {}
    order_of = np.argsort(np.array(texts, dtype=object), kind="stable")
    rank = np.empty(len(texts), dtype=np.intp)
    rank[order_of] = np.arange(len(texts))
    ranked, index = rank[codes], columns.numbers.get("sample_index")
    if index is None:
        order = np.argsort(ranked, kind="stable")
    else:
        order = np.lexsort((index, ranked))
        _once_each(columns, key, ranked, index, order)
    counts = np.bincount(ranked, minlength=len(texts))
    logp_alone = "logp" in columns.numbers
    written = next((r for r in RESPONSES if r in columns.texts), None) if logp_alone else None
    responses: list[str] = []
    if written:
        at, said = columns.texts[written]
        responses = [said[i] for i in at[order]]
    return Samples(
        name,
        columns.place,
        key,
        [texts[i] for i in order_of],
        counts,
        {judge: columns.numbers[column][order] for judge, column in judges.items()},
        {
            column: x[order]
            for column, x in columns.numbers.items()
            if column not in judges.values() and column != "sample_index"
        },
        responses,
        asked,
    )


def _one_text_an_id(columns: Columns) -> dict[str, str]:
    """The text of every id; one that two prompts have is refused."""
    (ids, names), (texts, said) = columns.texts["prompt_id"], columns.texts["prompt"]
    first = np.full(len(names), len(ids), dtype=np.intp)
    np.minimum.at(first, ids, np.arange(len(ids)))
    other = np.flatnonzero(texts != texts[first[ids]])
    if len(other):
        row = int(other[0])
        raise InputError(
            f"{columns.at(row)}: prompt_id {names[ids[row]]!r} stood for another prompt in "
            f"{columns.at(int(first[ids[row]]))}: give every prompt an id of its own."
        )
    return {name: said[texts[row]] for name, row in zip(names, first, strict=True)}


def _once_each(
    columns: Columns, key: str, ranked: IntArray, index: FloatArray, order: IntArray
) -> None:
    """Refuse a sample that is there twice."""
    same = (np.diff(ranked[order]) == 0) & (np.diff(index[order]) == 0)
    if same.any():
        at = int(np.argmax(same))
        first, second = sorted((int(order[at]), int(order[at + 1])))
        codes, texts = columns.texts[key]
        raise InputError(
            f"{columns.at(second)}: sample_index {index[second]:g} of prompt "
            f"{_short(texts[codes[second]])} is in {columns.at(first)} as well: number a prompt's "
            "samples, or leave sample_index out."
        )


def is_evaluation(source: Source) -> bool:
    """Whether a source is the folder that the stage evaluate wrote for an objective."""
    if not isinstance(source, str | Path):
        return False
    return all((Path(source) / name).is_file() for name in FOLDER_FILES)


def read_evaluation(folder: Path) -> dict[str, Samples]:
    """Every policy of an evaluated objective, the reference first."""
    import pyarrow.compute as pc

    from infalign.files.squares import Square, policy_rewards
    from infalign.files.tables import EVALUATION_REWARDS, EVALUATION_SAMPLES, read_table

    rewards = read_table(folder / FOLDER_FILES[0], EVALUATION_REWARDS)
    samples = read_table(folder / FOLDER_FILES[1], EVALUATION_SAMPLES)
    sides: dict[str, Samples] = {}
    for name in samples["policy"].unique().to_pylist():
        own = pc.field("policy") == name
        judged = policy_rewards(rewards.filter(own), folder / FOLDER_FILES[0])
        square = Square(samples.filter(own), folder / FOLDER_FILES[1])
        flat = {judge: x.reshape(-1) for judge, x in judged.items()}
        numbers = {c: square[c].reshape(-1).astype(float) for c in ("kl", "log_ratio", "n_tokens")}
        many = judged[SELECTING].shape[1]
        counts = np.full(len(square.prompt_ids), many, dtype=np.intp)
        sides[name] = Samples(name, str(folder), KEYS[0], square.prompt_ids, counts, flat, numbers)
    if REFERENCE not in sides:
        raise InputError(f"{folder} holds no samples of the reference: evaluate again.")
    return {REFERENCE: sides.pop(REFERENCE), **sides}


def on_common_prompts(
    reference: Samples, policies: Sequence[Samples], fewest: int, leave_out: bool
) -> tuple[Samples, list[Samples], int]:
    """All sides on the same prompts, and how many were left out for it.

    Args:
        fewest: samples that a prompt needs on every side: what the procedure draws.
        leave_out: whether prompts that do not fit are left out; else they are an error.

    Raises:
        InputError: naming the file and the prompt that another file lacks, or that has too few.
    """
    sides = [reference, *policies]
    common = set.intersection(*(set(side.prompts) for side in sides))
    every = set.union(*(set(side.prompts) for side in sides))
    if not common:
        one, other = reference.prompts[0], policies[0].prompts[0]
        raise InputError(
            f"{reference.place} and {policies[0].place} have no prompt in common, such as "
            f"{_short(one)} and {_short(other)}: write the same prompts, or ids, into both."
        )
    for side in policies:
        for prompt in sorted(common & side.texts.keys() & reference.texts.keys()):
            if side.texts[prompt] != reference.texts[prompt]:
                raise InputError(
                    f"{side.place}: prompt_id {_short(prompt)} is another prompt "
                    f"({_short(side.texts[prompt])}) than in {reference.place} "
                    f"({_short(reference.texts[prompt])}): give every prompt one id in all files."
                )
    few: set[str] = set()
    for side in sides:
        for prompt, count in zip(side.prompts, side.counts, strict=True):
            if prompt in common and count < fewest:
                few.add(prompt)
                if not leave_out:
                    raise InputError(
                        f"{side.place} has {count} samples of prompt {_short(prompt)} and the "
                        f"procedure draws {fewest}: sample more, or leave such prompts out with "
                        "--common."
                    )
    for side in sides if not leave_out else ():
        lacking = sorted(every - set(side.prompts))
        if lacking:
            holder = next(s for s in sides if lacking[0] in set(s.prompts))
            raise InputError(
                f"{side.place} lacks {len(lacking)} prompts that {holder.place} has, such as "
                f"{_short(lacking[0])}: sample them, or leave them out with --common."
            )
    kept = common - few
    if len(kept) < 2:
        raise InputError(
            f"{len(kept)} prompts are left of {reference.place} that every file has {fewest} "
            "samples of: intervals are over prompts and need at least 2."
        )
    if len(kept) == len(every):
        return reference, list(policies), 0
    cut = [
        side.of(np.array([i for i, prompt in enumerate(side.prompts) if prompt in kept]))
        for side in sides
    ]
    return cut[0], cut[1:], len(every) - len(kept)


def _short(prompt: str) -> str:
    text = " ".join(prompt.split())
    return repr(text if len(text) <= 60 else text[:57] + "...")


def alike(first: Samples, second: Samples) -> Iterator[tuple[IntArray, int, int]]:
    """Prompts by their numbers of samples: positions, samples of the first, of the second."""
    pairs, group = np.unique(
        np.stack([first.counts, second.counts], axis=1), axis=0, return_inverse=True
    )
    group = group.reshape(-1)
    order = np.argsort(group, kind="stable")
    ends = np.cumsum(np.bincount(group, minlength=len(pairs)))
    for (m, other), end, start in zip(pairs, ends, [0, *ends[:-1]], strict=True):
        yield order[start:end], int(m), int(other)


def largest_rectangle(samples: Samples) -> FloatArray:
    """The selecting rewards of the prompts and samples that make the largest full table."""
    counts = np.unique(samples.counts)
    sizes = [int((samples.counts >= m).sum()) * m for m in counts]
    many = int(counts[int(np.argmax(sizes))])
    chosen = np.flatnonzero(samples.counts >= many)
    return samples.rectangle(samples.rewards[SELECTING], chosen, many)
