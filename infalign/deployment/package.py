"""A policy as deployed: `python -m infalign.deployment.package --objective O --variant V OUT`.

Reads results/{prepare,sft,sources,reward,calibrate,align,evaluate}. Writes the folder OUT at once:
`deployed/` (what `deployed.py` loads), `evidence/` (what `gate.py` judges), `judge/` (the
independent one, if there is one, for `arena.py`) and `reference/` (for `monitor.py`).
The only thing that is computed here, on the other objectives' evaluation prompts, is the policy's
win rate by their rewards: what aligning for one objective costs the others.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from infalign.data.dialogue import read_prompts
from infalign.deployment import command
from infalign.deployment.evidence import TRAINED, Evidence, read_trained, write_evidence
from infalign.deployment.measured import measured
from infalign.errors import InputError
from infalign.files.sources import START
from infalign.files.squares import Array, reference_rewards
from infalign.files.tables import (
    CALIBRATION,
    INDEPENDENT,
    PROMPTS,
    SELECTING,
    read_table,
    write_table,
)
from infalign.files.workspace import Workspace, read_lengths, write_json
from infalign.rewards.description import kinds, settings_of, trained_halves
from infalign.settings.params import Params
from infalign.theory.winrates import win_rates


def package(root: Path, params: Params, objective: str, variant: str, out: Path) -> None:
    """Write the package, or nothing."""
    results = root / "results"
    staged = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.rmtree(staged, ignore_errors=True)
    try:
        _write_deployed(results, params, objective, variant, staged / "deployed")
        _write_yardsticks(results, params, objective, staged)
        evidence = _named(gather(results, params, objective, variant), staged)
        write_evidence(staged / "evidence", evidence)
        shutil.rmtree(out, ignore_errors=True)
        os.replace(staged, out)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _write_deployed(
    results: Path, params: Params, objective: str, variant: str, folder: Path
) -> None:
    from infalign.deployment.deployed import REFERENCES, check_safetensors
    from infalign.lm.models import passes_in, pick_device
    from infalign.rewards.packaged import classifiers, pack_source

    source = results / "align" / objective / variant / "policy"
    if not source.is_dir():
        raise InputError(f"{source} does not exist: run `infalign run` first.")
    check_safetensors(source)
    shutil.copytree(source, folder / "policy")
    pack_source(Workspace(params, results.parent, "package"), objective, folder)
    for inside in classifiers(folder):
        check_safetensors(inside)
    prompts = read_prompts(results / "prepare" / "prompts.parquet", objective)
    path = results / "calibrate" / objective / "calibration.parquet"
    known = {
        prompts[row["prompt_id"]].text: row["rewards"]
        for row in read_table(path, CALIBRATION).to_pylist()
    }
    columns = {"dialogue": list(known), "rewards": list(known.values())}
    write_table(folder / "references.parquet", columns, REFERENCES)
    halved = passes_in(params.run.precision, pick_device(params.run.device)) is not None
    lengths = read_lengths(params, results)
    settings = {
        "objective": objective,
        "variant": variant,
        "procedure": params.objectives[objective].procedure,
        "prompt_tokens": lengths.prompt,
        "response_tokens": lengths.response,
        "temperature": params.promotion.temperature,
        "threads": params.run.threads,
        "device": params.run.device,
        "precision": "bfloat16" if halved else "float32",  # as evaluated, wherever it is served
    }
    write_json(folder / "settings.json", settings)


def _write_yardsticks(results: Path, params: Params, objective: str, folder: Path) -> None:
    """What others are measured by, and the system once more: its judge and its reference."""
    from infalign.deployment.deployed import check_safetensors
    from infalign.rewards.packaged import classifiers, pack_source

    if settings_of(params.objectives[objective], INDEPENDENT) is not None:
        workspace = Workspace(params, results.parent, "package")
        pack_source(workspace, objective, folder / "judge", INDEPENDENT)
        for inside in classifiers(folder / "judge"):
            check_safetensors(inside)
    shutil.copytree(results / "sft" / "policy", folder / "reference" / "policy")
    check_safetensors(folder / "reference" / "policy")


def _named(evidence: Evidence, folder: Path) -> Evidence:
    """The evidence with the names, by content, of what is packaged."""
    facts = replace(
        evidence.facts,
        system=digest(folder / "deployed"),
        reward=source_digest(folder / "deployed"),
        judged_by=source_digest(folder / "judge") if (folder / "judge").exists() else None,
    )
    return replace(evidence, facts=facts)


def source_digest(folder: Path) -> str:
    """One name for a packaged source of rewards."""
    from infalign.rewards.packaged import FILE, FOLDER

    return digest(*(folder / name for name in (FILE, FOLDER) if (folder / name).exists()))


def gather(results: Path, params: Params, objective: str, variant: str) -> Evidence:
    """What was measured of a variant, with the digests of what it was measured by."""
    found = measured(results, params, objective, [variant])[variant]
    facts = replace(
        found.facts,
        data=digest(
            results / "prepare" / "prompts.parquet", results / "prepare" / "preferences.parquet"
        ),
        judge=digest(*_judges(results, params, objective)),
        reference=digest(results / "sft" / "policy"),
        temperature=params.promotion.temperature,
    )
    others = [name for name in params.run.objectives if name != objective]
    wins = {name: _other_wins(results, params, objective, variant, name) for name in others}
    trained = _trained(results)
    if params.align.start == "champion":  # what the champion was trained on is in the policy
        trained |= read_trained(results.parent / START / objective / TRAINED) or frozenset()
    return replace(found, facts=facts, other=wins, trained=trained)


def _trained(results: Path) -> frozenset[str]:
    """Every prompt of the training split, of all objectives: the reference learns from them all."""
    table = read_table(results / "prepare" / "prompts.parquet", PROMPTS)
    return frozenset(table.filter(pc.field("split") == "train")["prompt_id"].to_pylist())


def _judges(results: Path, params: Params, objective: str) -> Iterator[Path]:
    """What the reward and the judge of an objective are made of."""
    settings = params.objectives[objective]
    yield from (results / "reward" / objective / half for half in trained_halves(settings))
    if any(kind != "train" for kind in kinds(settings)):
        yield results / "sources" / f"{objective}.json"


def _other_wins(results: Path, params: Params, objective: str, variant: str, other: str) -> Array:
    """Win rate over the reference, without selection, on another objective's prompts [prompts]."""
    from infalign.engines.samplers import open_sampler
    from infalign.lm.memory import Budget
    from infalign.lm.models import load_format, load_policy, pick_device
    from infalign.lm.sampling.randomness import derive_seed
    from infalign.rewards.classifier import Passes
    from infalign.rewards.opening import open_source

    ids, references = reference_rewards(
        results / "calibrate" / other / "calibrated.parquet", "test"
    )
    reference = references[SELECTING]
    known = read_prompts(results / "prepare" / "prompts.parquet", other)
    device, many = pick_device(params.run.device), params.promotion.other_samples
    folder = results / "align" / objective / variant / "policy"
    with open_sampler(
        params,
        load_policy(folder, device, params.run.precision, frozen=True),
        folder,
        load_format(results / "sft" / "policy"),
        name=f"align/{objective}/{variant}",
        batch_size=params.evaluate.batch_size,
    ) as sampler:
        drawn = sampler.draw(
            [known[i] for i in ids],
            ids,
            np.tile(np.arange(many), (len(ids), 1)),
            seed=derive_seed(params.run.seed, "other"),
            longest=read_lengths(params, results).response,
        )
    passes = Passes(params.evaluate.batch_size, Budget(params.run.batch_tokens))
    source = open_source(Workspace(params, results.parent, "package"), other, SELECTING, passes)
    ours = source.rewards([known[i] for i in ids for _ in range(many)], drawn.text)
    return np.clip(win_rates("standard", ours.reshape(len(ids), many), reference), 0.0, 1.0)


def digest(*paths: Path) -> str:
    """SHA-256 over names and contents of files, and of the files of folders."""
    total = hashlib.sha256()
    for path in paths:
        for file in _files(path):
            total.update(f"{path.name}/{file.relative_to(path).as_posix()}\n".encode())
            total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()


def _files(path: Path) -> Iterator[Path]:
    if not path.exists():
        raise InputError(f"{path} does not exist: run `infalign run` first.")
    yield from sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def main(arguments: Sequence[str] | None = None) -> int:
    """Package one policy of the project in the current folder; 2 is the user's input."""
    parser = command.parser_of("package", __doc__)
    parser.add_argument("--variant", required=True)
    parser.add_argument("out", type=Path)

    def work(params: Params, chosen: Namespace) -> None:
        package(Path.cwd(), params, chosen.objective, chosen.variant, chosen.out)

    return command.run("package", parser, arguments, work)


if __name__ == "__main__":
    sys.exit(main())
