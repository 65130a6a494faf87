"""prepare: preference data as tables that every later stage trusts, and the policy's tokenizer.

Reads data.path, or the objectives' own data, in any form that `infalign.data.forms` knows. Writes
to results/prepare prompts.parquet, preferences.parquet, tokenizer/, lengths.json and metrics.json,
which counts every pair dropped and why.

A prompt belongs to one split and one half for all objectives, whatever data is added: where files
do not say its split, its own hash does. A dialogue longer than model.prompt_tokens keeps its last
exchanges, and is divided by what it is then; cutting may make prompts equal, so what training
shares with the test split is looked for once more afterwards and leaves the training split. Long
responses are kept and counted: training cuts them at model.response_tokens.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from infalign.data.dialogue import Dialogue
from infalign.data.kept import Kept, cut, divide, separate, shortened, unrepeat
from infalign.data.pairs import SPLITS, Pair, quantile
from infalign.data.places import split_name
from infalign.data.reading import counted, options_of, read_data
from infalign.data.suites import pinned
from infalign.data.tokenizer import train_tokenizer
from infalign.errors import InputError
from infalign.files.sources import check_listed, data_paths, suite_paths
from infalign.files.tables import INDEPENDENT, PREFERENCES, PROMPTS, SELECTING, write_table
from infalign.files.weights import check_kind, check_source, folders
from infalign.files.workspace import Lengths, Needs, Workspace, write_json
from infalign.lm.formats import Format
from infalign.lm.models import named_format
from infalign.lm.preflight import check_models, check_texts
from infalign.rewards.description import trained_halves
from infalign.rewards.preflight import check_sources
from infalign.settings.params import Params

WHOLE = 256  # responses whose parts are compared with the template's rendering of the whole
MOST_TOO_LONG = 0.5  # share of the pairs that may be lost because their prompt is too long


def needs(params: Params) -> Needs:
    """What the stage depends on."""
    return Needs(
        inputs=(*data_paths(params), *suite_paths(params), *folders(params.model)),
        params=(
            "run.objectives",
            "data",
            "model.name_or_path",
            "model.revision",
            "model.kind",
            "model.format",
            "model.template_arguments",
            "model.prompt_tokens",
            "model.response_tokens",
            "model.length_quantile",
            "model.tiny.vocab_size",
            "reward.name_or_path",
            *(
                f"objectives.{objective}.{key}"
                for objective in params.run.objectives
                for key in ("data", "subset", "columns", "reward", "judge")
            ),
        ),
        outputs=("results/prepare",),
    )


def run(workspace: Workspace) -> None:
    """Read, cut, split, and write the tables, the tokenizer and the counts."""
    params = workspace.params
    check_source("model", params.model, workspace.root)
    check_kind(params.model, params.model.kind, workspace.root)
    check_listed("prepare", params, workspace.root)
    kept = {name: _read(workspace.root, params, name) for name in params.run.objectives}
    suites = pinned(workspace.root, params.data)
    separate(kept, suites)
    form = _format(params, kept)
    lengths = _lengths(params, form, kept)
    check_models(params, form, lengths)
    for part in kept.values():
        cut(part, form.encode_prompts, lengths.prompt)
        divide(part)
    separate(kept, suites | shortened(suites, form.encode_prompts, lengths.prompt))
    for part in kept.values():
        unrepeat(part)
    _check_left(kept, params, lengths)
    _check_long(kept, form, lengths)
    texts = {name: _texts(part) for name, part in kept.items()}
    everyone = [prompt for part in kept.values() for prompt in part.dialogues(*SPLITS)]
    answered = [pair for each in texts.values() for pair in zip(*each, strict=False)]
    check_texts(params, form, lengths, everyone, answered)
    columns = {name: _columns(part) for name, part in kept.items()}
    check_sources(params, workspace.root, texts, columns, form, lengths.response)
    for prompt, response in answered[:WHOLE]:
        form.check_whole(prompt, response)
    if any(prompt.turns[0].role == "system" for prompt in everyone) and not form.takes_system:
        print("prepare: the chat template takes no system turn: it begins the user's first.")
    out = workspace.out / "prepare"
    out.mkdir(parents=True, exist_ok=True)
    form.save(out / "tokenizer")
    write_table(out / "prompts.parquet", prompt_columns(kept), PROMPTS)
    write_table(out / "preferences.parquet", pair_columns(kept), PREFERENCES)
    write_json(out / "metrics.json", _metrics(kept, form, workspace, lengths))
    found = {"prompt_tokens": lengths.prompt, "response_tokens": lengths.response}
    write_json(out / "lengths.json", found)


def _texts(part: Kept) -> tuple[list[Dialogue], list[str]]:
    """The prompts of an objective's pairs, once for each response, and the responses."""
    sides = [(p.prompt, text) for p in part.pairs for text in (p.chosen, p.rejected)]
    prompts = [prompt for prompt, _ in sides] or [row.prompt for row in part.prompts]
    return prompts, [text for _, text in sides]


def _columns(part: Kept) -> dict[Dialogue, dict[str, Any]]:
    """The prompts whose rows have other columns."""
    return {row.prompt: json.loads(row.columns) for row in part.prompts if row.columns != "{}"}


def _read(root: Path, params: Params, objective: str) -> Kept:
    about = params.objectives[objective]
    options = options_of(params.data, about.columns)
    subset = read_data(root / params.data_path(objective), about.subset, options)
    if subset.left_out:
        names = sorted({split_name(path) for path in subset.left_out})
        print(f"prepare: objective {objective!r}: splits that are not read: {names}.", flush=True)
    if over := subset.dropped["over_limit"]:
        print(
            f"prepare: objective {objective!r}: {over} pairs beyond data.kept_bytes or "
            "data.most_pairs are left out, whole prompts by their hash.",
            flush=True,
        )
    splits = {split: list(subset.pairs(split)) for split in SPLITS}
    alone = {split: list(subset.prompts[split]) for split in SPLITS}
    return Kept(subset, splits, alone, Counter(subset.dropped))


def _format(params: Params, kept: dict[str, Kept]) -> Format:
    """The named model's format, or for `tiny` a tokenizer trained on the training split."""
    model = params.model
    if model.name_or_path != "tiny":
        return named_format(model)
    texts = [
        text
        for part in kept.values()
        for pair in part.splits["train"]
        for text in (pair.prompt.marked, f" {pair.chosen}", f" {pair.rejected}")
    ]
    texts += [row.prompt.marked for part in kept.values() for row in part.alone["train"]]
    return Format(train_tokenizer(texts, model.tiny.vocab_size))


def _lengths(params: Params, form: Format, kept: dict[str, Kept]) -> Lengths:
    """The lengths of params.yaml; where it has none, a quantile of the data's."""
    model = params.model
    pairs = [pair for part in kept.values() for pair in part.pairs]
    everyone = {prompt for part in kept.values() for prompt in part.dialogues(*SPLITS)}
    asked, answered = model.prompt_tokens, model.response_tokens
    if asked is None:
        ids = form.encode_prompts(list(everyone))
        asked = quantile(map(len, ids), model.length_quantile)
        print(f"prepare: model.prompt_tokens = {asked}, as the data.", flush=True)
    if answered is None:
        texts = sorted({text for pair in pairs for text in (pair.chosen, pair.rejected)})
        if not texts:
            raise InputError(
                "model.response_tokens = null follows the data's responses, and there are none: "
                "set it."
            )
        answered = max(2, quantile(map(len, form.encode_responses(texts)), model.length_quantile))
        print(f"prepare: model.response_tokens = {answered}, as the data.", flush=True)
    return Lengths(asked, answered)


def _check_left(kept: dict[str, Kept], params: Params, lengths: Lengths) -> None:
    for name, part in kept.items():
        trained = trained_halves(params.objectives[name])
        for split in SPLITS:
            halves = {half_of(pair.prompt) for pair in part.splits[split]}
            one_sided = bool(trained) and split == "train" and len(halves) == 1
            if one_sided or not part.dialogues(split):
                raise InputError(
                    f"objective {name!r}: too few prompts of {params.data_path(name)} "
                    f"are left for the {split} split (dropped: {dict(part.dropped)}): give more "
                    f"data, or raise model.prompt_tokens = {lengths.prompt}."
                )


def _check_long(kept: dict[str, Kept], form: Format, lengths: Lengths) -> None:
    """Say how many pairs are lost for the length of their prompts; raise where most of them are."""
    longest = lengths.prompt
    for name, part in kept.items():
        lost = len(part.too_long)
        pairs = lost + len(part.pairs) + len(part.prompts)
        if not lost:
            continue
        rows = "pairs" if part.pairs else "prompts"
        shortest = form.encode_prompts([prompt.last(1) for prompt in part.too_long])
        enough = quantile([0] * (pairs - lost) + [len(ids) for ids in shortest], 0.95)
        told = (
            f"objective {name!r}: {lost} of {pairs} {rows} are left out, because even the last "
            f"turn of their prompt is longer than model.prompt_tokens = {longest}"
        )
        if enough > longest:
            told += f": {enough} would keep 95 % of the {rows}"
        if lost > MOST_TOO_LONG * pairs:
            raise InputError(f"{told}; more than half is too many.")
        print(f"prepare: {told}.", flush=True)


def half_of(prompt: Dialogue) -> str:
    """Which reward model learns from the prompt's pairs: the training one or the judge."""
    return SELECTING if prompt.share("half") < 0.5 else INDEPENDENT


def prompt_columns(kept: dict[str, Kept]) -> dict[str, Sequence[str]]:
    """The prompts table: each prompt once an objective."""
    rows: dict[tuple[str, str], tuple[str, str, str, str]] = {}
    for objective, part in kept.items():
        for split in SPLITS:
            for pair in part.splits[split]:
                key = (objective, pair.prompt.id)
                rows.setdefault(key, (split, pair.source, pair.prompt.text, "{}"))
            for row in part.alone[split]:
                key = (objective, row.prompt.id)
                rows.setdefault(key, (split, row.source, row.prompt.text, row.columns))
    return {
        "objective": [objective for objective, _ in rows],
        "prompt_id": [prompt_id for _, prompt_id in rows],
        "split": [row[0] for row in rows.values()],
        "source": [row[1] for row in rows.values()],
        "dialogue": [row[2] for row in rows.values()],
        "columns": [row[3] for row in rows.values()],
    }


def pair_columns(kept: dict[str, Kept]) -> dict[str, Sequence[str]]:
    """The preferences table; a pair's id is the hash of its objective and its three texts."""
    rows = [
        {
            "pair_id": sha256(json.dumps(_names(objective, pair)).encode()).hexdigest()[:16],
            "prompt_id": pair.prompt.id,
            "objective": objective,
            "split": split,
            "half": half_of(pair.prompt),
            "chosen": pair.chosen,
            "rejected": pair.rejected,
        }
        for objective, part in kept.items()
        for split in SPLITS
        for pair in part.splits[split]
    ]
    return {name: [row[name] for row in rows] for name in PREFERENCES.schema.names}


def _names(objective: str, pair: Pair) -> list[str]:
    """What tells a pair from all others."""
    return [objective, pair.prompt.name, pair.chosen, pair.rejected]


def _metrics(
    kept: dict[str, Kept], form: Format, workspace: Workspace, lengths: Lengths
) -> dict[str, Any]:
    params = workspace.params
    about = {name: _about(workspace.root / params.data_path(name)) for name in kept}
    metrics: dict[str, Any] = {
        "tokenizer": {"name": params.model.name_or_path, "vocab_size": len(form.tokenizer)},
        "objectives": {name: _counts(part, form, lengths) for name, part in kept.items()},
    }
    for name, part in kept.items():
        ceiling = about[name].get("subsets", {}).get(part.subset.name, {}).get("test", {})
        metrics["objectives"][name]["accuracy_ceiling"] = ceiling.get("accuracy_ceiling")
        metrics["objectives"][name]["gold"] = about[name].get("gold")
    return metrics


def _about(folder: Path) -> dict[str, Any]:
    """What corpus.json says about built-in data; nothing for anybody else's."""
    try:
        about = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) and about.get("gold") == "builtin" else {}


def _counts(part: Kept, form: Format, lengths: Lengths) -> dict[str, Any]:
    """Lines in, pairs out, every reason in between, lengths in tokens."""
    pairs, prompts = part.pairs, sorted(part.dialogues(*SPLITS))
    responses = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    prompt_lengths = [len(ids) for ids in form.encode_prompts(prompts)]
    response_lengths = [len(ids) for ids in form.encode_responses(responses)]
    return {
        "subset": part.subset.name,
        "lines": part.subset.lines,
        "pairs": {split: len(part.splits[split]) for split in SPLITS},
        "prompts": {split: len(part.dialogues(split)) for split in SPLITS},
        "independent_half_share": _share(half_of(pair.prompt) == INDEPENDENT for pair in pairs),
        "dropped": counted(part.dropped),
        "first_broken_line": part.subset.first_broken,
        "dialogues_cut": part.dialogues_cut,
        "responses_cut": sum(n > lengths.response for n in response_lengths),
        "prompt_tokens": _lengths_of(prompt_lengths),
        "response_tokens": _lengths_of(response_lengths),
    }


def _lengths_of(tokens: Sequence[int]) -> dict[str, float | None]:
    return {"mean": _mean(tokens), "max": max(tokens, default=None)}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _share(flags: Any) -> float | None:
    return _mean([float(flag) for flag in flags])
