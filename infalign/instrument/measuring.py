"""`measure`: what samples of policies and of their reference say about the policies.

Reads the samples of every side, brings them onto the same prompts and has them measured
(`infalign.instrument.statistics`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from infalign.errors import InputError
from infalign.files.names import REFERENCE, SELECTING
from infalign.instrument.measurement import Measurement
from infalign.instrument.reading import Source
from infalign.instrument.samples import (
    Samples,
    is_evaluation,
    on_common_prompts,
    read_evaluation,
    read_side,
)
from infalign.instrument.statistics import Measuring
from infalign.measuring.contest import Contest
from infalign.theory.procedures import Procedure, parse_procedure
from infalign.theory.transforms import parse_transform

WIDTH = 0.02
REPLICATES, FEWEST, RESAMPLED = 1000, 100, 50_000_000  # by default: fewer of very many prompts
Policies = Mapping[str, Source] | Sequence[str | Path] | str | Path | None


def measure(
    reference: Source,
    policies: Policies = None,
    procedure: str | Sequence[str] = "best_of:4",
    *,
    reward: str = "reward",
    judges: Sequence[str] = (),
    transforms: Mapping[str, str] | None = None,
    kl_nats: float | None = None,
    width: float = WIDTH,
    common: bool = False,
    replicates: int | None = None,
    seed: int = 0,
) -> Measurement:
    """Win rates, KL, limits and efficiencies of policies over their reference.

    Args:
        reference: samples of the reference: a path (JSON lines, Parquet, a folder of them, or
            `results/evaluate/O` of a finished run, which holds policies too), columns by name,
            rows, or a table of pandas, datasets or pyarrow. One row a response: `prompt_id` or
            `prompt`, the reward, and more judges' rewards.
        policies: name to samples, or paths, named for their files. They may have `kl` (token-exact,
            nats a response), `log_ratio`, or `logp` with `reference_logp`.
        procedure: spelling, or several; the first one is what the policies are deployed with.
        reward: the column of the reward that the procedure selects by.
        judges: columns of rewards that only compare.
        transforms: policy to what it maximised (`raw`, `identity`, `exp:10`, …), for the limit of
            its method.
        kl_nats: budget at which `optimal` and `auto` among the transforms were chosen.
        width: of an interval, for which the prompts and samples needed are counted.
        common: leave out prompts that a file lacks or has too few samples of; else an error.
        replicates: of the bootstrap over prompts; None: 1000, and fewer (100 at least) of more than
            50,000 prompts.
        seed: of the bootstrap.

    Raises:
        InputError: one sentence naming file, row, column and remedy.
    """
    names = [procedure] if isinstance(procedure, str) else list(procedure)
    try:
        asked = tuple(dict.fromkeys(map(parse_procedure, names)))
        if not asked:
            raise InputError("no procedure is given: name one, such as best_of:4.")
        sides, notes = _sides(reference, policies, reward, judges)
        draws = max(one.n for one in asked)
        base, others, left_out = on_common_prompts(sides[0], sides[1:], draws, common)
        if left_out:
            notes.append(f"{left_out} prompts were left out that not every file has in full.")
        if replicates is None:
            replicates = min(REPLICATES, max(FEWEST, RESAMPLED // len(base.prompts)))
        contest = Contest(
            asked[0],
            asked,
            _methods(others, transforms, asked[0], kl_nats),
            kl_nats or math.nan,
            replicates,
            seed,
        )
        return Measuring(base, others, contest, width, notes).all()
    except ValueError as error:
        raise InputError(str(error)) from None


def _methods(
    policies: Sequence[Samples],
    transforms: Mapping[str, str] | None,
    own: Procedure,
    kl_nats: float | None,
) -> dict[str, str]:
    """What each policy maximised, where it is told."""
    told = dict(transforms or {})
    names = [policy.name for policy in policies]
    for name, spelling in told.items():
        if name not in names:
            raise InputError(f"a transformation is given for {name}, which is none of {names}.")
        if spelling in ("auto", "optimal") and kl_nats is None:
            raise InputError(
                f"the transformation of {name} is {spelling}, which depends on the KL budget: give "
                "kl_nats as well."
            )
        if spelling != "raw":
            parse_transform(spelling, own, kl_nats)
    return told


def _sides(
    reference: Source, policies: Policies, reward: str, judges: Sequence[str]
) -> tuple[list[Samples], list[str]]:
    """The reference and the policies, read, and what is to be said of it."""
    given, optional = _named(policies), False
    if not given and not is_evaluation(reference):
        raise InputError("no policy is given: name the file of its samples with --policy.")
    if is_evaluation(reference):
        known = read_evaluation(Path(reference))
        sides = [_with_judges(side, judges) for side in known.values()]
        optional = not judges  # all that the folder has and the other files have too
        judges = tuple(judge for judge in sides[0].rewards if judge != SELECTING)
    else:
        sides = [read_side(reference, REFERENCE, reward, judges)]
    for name, source in given.items():
        if name in {side.name for side in sides}:
            raise InputError(f"two policies are called {name}: name them apart, NAME=PATH.")
        sides.append(read_side(source, name, reward, judges, optional=optional))
    if len(sides) < 2:
        raise InputError(f"{reference} holds no policy beside the reference: name one's samples.")
    common = [j for j in sides[0].rewards if all(j in side.rewards for side in sides)]
    lost = [judge for judge in sides[0].rewards if judge not in common]
    notes = [f"{' and '.join(lost)} of {reference} do not judge: other files lack them."]
    sides = [replace(s, rewards={judge: s.rewards[judge] for judge in common}) for s in sides]
    return _same_keys(sides, reference, given, reward, common[1:]), notes if lost else []


def _named(policies: Policies) -> dict[str, Source]:
    """Policies by name: those given as paths alone are called as their files."""
    if policies is None:
        return {}
    if isinstance(policies, Mapping):
        return dict(policies)
    paths = [policies] if isinstance(policies, str | Path) else list(policies)
    named: dict[str, Source] = {}
    for path in map(Path, paths):
        name = path.name.partition(".")[0]
        if name in named:
            raise InputError(f"{named[name]} and {path} are both called {name}: write NAME=PATH.")
        named[name] = path
    return named


def _with_judges(side: Samples, judges: Sequence[str]) -> Samples:
    """A side of an evaluated objective with the judges asked for; by default all that it has."""
    missing = [judge for judge in judges if judge not in side.rewards]
    if missing:
        raise InputError(
            f"{side.place} has no judge {missing[0]!r} but {', '.join(list(side.rewards)[1:])}."
        )
    kept = (SELECTING, *(judges or list(side.rewards)[1:]))
    return replace(side, rewards={judge: side.rewards[judge] for judge in kept})


def _same_keys(
    sides: list[Samples],
    reference: Source,
    given: Mapping[str, Source],
    reward: str,
    judges: Sequence[str],
) -> list[Samples]:
    """All sides by `prompt_id` or all by `prompt`: by the text where one side has no ids."""
    kinds = {side.key for side in sides}
    if len(kinds) == 1:
        return sides
    own = [REFERENCE] if not is_evaluation(reference) else []
    sources = {**dict.fromkeys(own, reference), **given}
    return [
        side
        if side.key == "prompt" or side.name not in sources
        else read_side(sources[side.name], side.name, reward, judges, "prompt")
        for side in sides
    ]
