"""Champions on fresh prompts: `python -m infalign.deployment.monitor --objective O --seed N M OUT`

Reads the package of a registered version (M: `deployed/`, `evidence/` and `reference/`) and the
prompts in results/prepare. Fresh are evaluation prompts that the version's own evaluation did not
use and that nothing of it was trained on. Champion and reference answer them anew; the win rate
and the reference's rewards are compared with those of the version's evaluation. Writes OUT, a JSON
file.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infalign.data.dialogue import Dialogue, hash_share, read_prompts
from infalign.deployment import command
from infalign.deployment.drift import reward_drift, win_rate_drift
from infalign.deployment.evidence import Evidence, read_evidence
from infalign.errors import InputError
from infalign.files.squares import Array
from infalign.files.workspace import write_json
from infalign.settings.params import Params
from infalign.theory.procedures import parse_procedure
from infalign.theory.winrates import bootstrap_interval, win_rates

if TYPE_CHECKING:
    from infalign.rewards.function import Columns

FEWEST = 8  # fresh prompts that are worth a comparison


def check(root: Path, params: Params, objective: str, model: Path, seed: int) -> dict[str, Any]:
    """The champion's numbers on fresh prompts, beside those of its evaluation."""
    from infalign.rewards.opening import columns_of

    evidence = read_evidence(model / "evidence")
    folders = (model / "deployed", _reference(root, model, evidence))
    procedure = parse_procedure(evidence.facts.procedure)
    if procedure.n > params.drift.samples:
        raise InputError(
            f"drift.samples = {params.drift.samples}, but {procedure} draws {procedure.n} "
            "responses: give drift.samples at least as many."
        )
    prompts = fresh_prompts(root, params, objective, evidence, seed)
    columns = columns_of(root / "results" / "prepare" / "prompts.parquet", objective)
    ours, theirs = _rewards(folders, params, prompts, columns, seed)
    wins = np.clip(win_rates(procedure, ours, theirs), 0.0, 1.0)
    return {"prompts": len(prompts), "procedure": str(procedure)} | compare(
        params, evidence, wins, theirs, seed
    )


def _reference(root: Path, model: Path, evidence: Evidence) -> Path:
    """The reference policy that the champion was measured against: its package's.

    Older packages hold none: then it must still be the one in results/sft.
    """
    from infalign.deployment.package import digest

    packaged = model / "reference" / "policy"
    if packaged.is_dir():
        return packaged
    here = root / "results" / "sft" / "policy"
    if not here.is_dir() or digest(here) != evidence.facts.reference:
        raise InputError(
            "results/sft holds another reference policy than the champion was measured against, "
            "and its version is too old to hold its own: check it in a folder made by "
            "`infalign restore`, or promote a version of this one."
        )
    return here


def compare(
    params: Params, evidence: Evidence, wins: Array, reference: Array, seed: int
) -> dict[str, Any]:
    """Win rates [prompts] and the reference's rewards [prompts, samples], against the evaluation's.

    As many samples of the evaluation are used as were drawn now: more would make its prompts less
    noisy, and prompts with and without drift would no longer be exchangeable.
    """
    many = reference.shape[1]
    old = evidence.policy.selecting[:, :many], evidence.reference.selecting[:, :many]
    before = np.clip(win_rates(evidence.facts.procedure, *old), 0.0, 1.0)
    common: dict[str, Any] = {
        "level": params.drift.p_value,
        "replicates": max(1000, round(10 / params.drift.p_value)),
        "seed": seed,
    }
    low, high = bootstrap_interval(wins, replicates=params.evaluate.bootstrap, seed=seed)
    won = win_rate_drift(before, wins, threshold=params.drift.win_rate, **common)
    rewards = reward_drift(old[1], reference, threshold=params.drift.reward_distance, **common)
    return {
        "win_rate": asdict(won) | {"low": low, "high": high},
        "reference_reward": asdict(rewards),
        "alarm": won.alarm or rewards.alarm,
    }


def fresh_prompts(
    root: Path, params: Params, objective: str, evidence: Evidence, seed: int
) -> dict[str, Dialogue]:
    """Evaluation prompts that the version knows nothing of, others with every seed."""
    known = read_prompts(root / "results" / "prepare" / "prompts.parquet", objective, "test")
    used = {*evidence.prompt_ids, *(evidence.trained or ())}
    fresh = [name for name in known if name not in used]
    if len(fresh) < FEWEST:
        raise InputError(
            f"{len(fresh)} evaluation prompts of {objective} are fresh, at least {FEWEST} are "
            "needed: add held-out data, or lower sample.test_prompts."
        )
    fresh.sort(key=lambda name: hash_share(name, f"monitor {seed}"))
    return {name: known[name] for name in fresh[: params.drift.prompts]}


def _rewards(
    folders: tuple[Path, Path],
    params: Params,
    prompts: dict[str, Dialogue],
    columns: Columns,
    seed: int,
) -> tuple[Array, Array]:
    """Training rewards of champion and reference, [prompts, samples] each.

    Args:
        folders: what is deployed of the champion, and the reference policy.
        columns: the other columns of the prompts' rows.
    """
    from infalign.lm.memory import Budget
    from infalign.lm.models import load_format, load_policy, pick_device
    from infalign.lm.sampling.randomness import derive_seed
    from infalign.lm.sampling.sampler import sample_responses
    from infalign.rewards.classifier import Passes
    from infalign.rewards.packaged import open_packaged

    deployed, reference = folders
    device, samples = pick_device(params.run.device), params.drift.samples
    settings = json.loads((deployed / "settings.json").read_text(encoding="utf-8"))
    precision = settings.get("precision", "float32")  # older packages do not say
    passes = Passes(params.evaluate.batch_size, Budget(params.run.batch_tokens))
    source = open_packaged(deployed, params.run.device, precision, passes, columns)
    indices = np.tile(np.arange(samples), (len(prompts), 1))
    found = []
    for side, folder in (
        ("champion", deployed / "policy"),
        ("reference", reference),
    ):
        drawn = sample_responses(
            load_policy(folder, device, precision),
            load_format(folder),
            list(prompts.values()),
            list(prompts),
            indices,
            seed=derive_seed(seed, "monitor", side),
            longest=settings["response_tokens"],
            batch_size=params.evaluate.batch_size,
        )
        asked = [dialogue for dialogue in prompts.values() for _ in range(samples)]
        rewards = source.rewards(asked, drawn.text)
        found.append(rewards.reshape(len(prompts), samples))
    return found[0], found[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Check one champion in the project of the current folder; 2 is the user's input."""
    parser = command.parser_of("monitor", __doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)

    def work(params: Params, chosen: Namespace) -> None:
        found = check(Path.cwd(), params, chosen.objective, chosen.model, chosen.seed)
        write_json(chosen.out, found)

    return command.run("monitor", parser, arguments, work)


if __name__ == "__main__":
    sys.exit(main())
