"""sample: responses of the reference policy, temperature 1, in shards of fixed composition.

Reads results/prepare and results/sft. Writes results/sample/{samples,large}.parquet and
metrics.json. `samples` holds K responses a prompt for training and evaluation prompts; `large`
holds many more responses to a few evaluation prompts, against which the calibration error of a
small K is measured. A shard that is finished is never sampled again; several processes take a
shard each, and rank 0 writes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from infalign.data.dialogue import Dialogue
from infalign.engines.samplers import Sampler, open_sampler
from infalign.errors import InputError
from infalign.files.tables import PROMPTS, SAMPLES, read_table, write_table
from infalign.files.workspace import Needs, Workspace, write_json
from infalign.lm.memory import Budget
from infalign.lm.models import load_format, load_policy, pick_device
from infalign.lm.sampling.randomness import derive_seed
from infalign.processes.ranks import join
from infalign.settings.params import MODELS, Params


def needs(params: Params) -> Needs:
    """What the stage depends on."""
    return Needs(
        inputs=("results/prepare", "results/sft"),
        params=(
            *MODELS,
            "run.objectives",
            "model.response_tokens",
            "generation.engine",
            "sample",
        ),
        outputs=("results/sample",),
    )


@dataclass(frozen=True)
class _Shard:
    """Prompts that are sampled together, and the sample indices they get."""

    name: str
    objective: str
    split: str
    prompts: list[dict[str, str]]
    first: int
    samples: int


def run(workspace: Workspace) -> None:
    """Sample every shard that is not there yet, then join them."""
    params = workspace.params
    ranks = join(params.run)
    shards = list(_shards(workspace))
    if ranks.main:
        _tell_missing(workspace, shards)
    places = [workspace.work / "shards" / f"{shard.name}.parquet" for shard in shards]
    missing = ranks.first([n for n, path in enumerate(places) if not path.exists()])
    if missing:
        _sample_all(workspace, shards, places, missing)
    if not ranks.main:
        return
    out = workspace.out / "sample"
    joined = {}
    for name in ("samples", "large"):
        parts = [
            read_table(path, SAMPLES)
            for path, shard in zip(places, shards, strict=True)
            if shard.name.startswith(name)
        ]
        joined[name] = pa.concat_tables(parts)
        columns = {c: joined[name][c] for c in SAMPLES.schema.names}
        write_table(out / f"{name}.parquet", columns, SAMPLES)
    write_json(out / "metrics.json", _metrics(joined["samples"]))


def _sample_all(
    workspace: Workspace, shards: list[_Shard], places: list[Path], missing: list[int]
) -> None:
    """Sample the shards that are missing, one a process at a time; rank 0 writes them."""
    params, folder = workspace.params, workspace.results("sft", "policy")
    device, ranks = pick_device(params.run.device), join(params.run)
    policy = load_policy(folder, device, params.run.precision, frozen=True)
    form = load_format(folder)
    with open_sampler(
        params,
        policy,
        folder,
        form,
        name="sft",
        batch_size=params.sample.batch_size,
        budget=Budget(params.run.batch_tokens),
        ranks=ranks,
    ) as sampler:
        for start in range(0, len(missing), ranks.size):
            numbers = missing[start : start + ranks.size]
            mine = [_sample(shards[n], workspace, sampler) for n in ranks.share(numbers)]
            made = [columns for found in ranks.gather(mine) for columns in found]
            for number, columns in zip(numbers, made, strict=True):
                if ranks.main:
                    write_table(places[number], columns, SAMPLES)
                    done = f"{number + 1}/{len(shards)} {shards[number].name}"
                    print(f"{workspace.instance} shard {done}", flush=True)


def _shards(workspace: Workspace) -> Iterator[_Shard]:
    """Prompts in the order of their ids (hashes, so a random choice), cut into shards."""
    settings = workspace.params.sample
    table = read_table(workspace.results("prepare", "prompts.parquet"), PROMPTS)
    rows = sorted(table.to_pylist(), key=lambda row: row["prompt_id"])
    plans = (
        ("samples", "train", settings.train_prompts, 0, settings.train_samples),
        ("samples", "test", settings.test_prompts, 0, settings.test_samples),
        ("large", "test", settings.large_prompts, settings.test_samples, settings.large_samples),
    )
    for objective in workspace.params.run.objectives:
        for name, split, n_prompts, first, samples in plans:
            chosen = [r for r in rows if r["objective"] == objective and r["split"] == split]
            chosen = chosen[:n_prompts]
            size = max(1, settings.shard_responses // samples)
            for start in range(0, len(chosen), size):
                yield _Shard(
                    f"{name}-{objective}-{split}-{start // size:05d}",
                    objective,
                    split,
                    chosen[start : start + size],
                    first,
                    samples,
                )


def _tell_missing(workspace: Workspace, shards: list[_Shard]) -> None:
    """Say where the data has fewer prompts than are asked for, and stop where it has none."""
    settings = workspace.params.sample
    wanted = {"train": settings.train_prompts, "test": settings.test_prompts}
    for objective in workspace.params.run.objectives:
        for split, many in wanted.items():
            start = f"samples-{objective}-{split}-"
            found = sum(len(shard.prompts) for shard in shards if shard.name.startswith(start))
            if not found:
                raise InputError(
                    f"results/prepare has no {split} prompts of {objective}: look at its "
                    "metrics.json for what was dropped and why."
                )
            if found < many:
                print(
                    f"{workspace.instance}: {objective} has {found} {split} prompts, not "
                    f"sample.{split}_prompts = {many}: all of them are taken.",
                    flush=True,
                )


def _sample(shard: _Shard, workspace: Workspace, sampler: Sampler) -> dict[str, object]:
    """One shard as the columns of the samples table."""
    indices = np.tile(np.arange(shard.first, shard.first + shard.samples), (len(shard.prompts), 1))
    responses = sampler.draw(
        [Dialogue.parse(row["dialogue"]) for row in shard.prompts],
        [row["prompt_id"] for row in shard.prompts],
        indices,
        seed=derive_seed(workspace.params.run.seed, "sample"),
        longest=workspace.lengths.response,
    )
    n_rows = indices.size
    return {
        "objective": [shard.objective] * n_rows,
        "prompt_id": [row["prompt_id"] for row in shard.prompts for _ in range(shard.samples)],
        "sample_index": indices.reshape(-1),
        "split": [shard.split] * n_rows,
        "response": responses.text,
        "tokens": responses.tokens,
        "n_tokens": responses.n_tokens,
        "logp": responses.logp,
        "finished": responses.finished,
    }


def _metrics(samples: pa.Table) -> dict[str, float]:
    finished = samples["finished"].to_numpy(zero_copy_only=False)
    keys = list(
        zip(*(samples[c].to_pylist() for c in ("objective", "prompt_id", "response")), strict=True)
    )
    return {
        "responses": len(keys),
        "response_tokens": float(samples["n_tokens"].to_numpy().mean()),
        "truncated_share": float(1 - finished.mean()),
        "repeated_share": 1 - len(set(keys)) / len(keys),
        "entropy_nats": float(-samples["logp"].to_numpy().mean()),
    }
