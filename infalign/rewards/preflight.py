"""Every named source of rewards looked at before anything is trained: no weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from infalign.data.dialogue import Dialogue
from infalign.errors import InputError
from infalign.lm.formats import Format
from infalign.lm.loading import base_of, check_weights, load_config
from infalign.lm.models import load_format
from infalign.lm.preflight import check_reads
from infalign.rewards.classifier import chosen_label
from infalign.rewards.description import FIELDS, settings_of
from infalign.rewards.function import Columns
from infalign.rewards.trial import SAID, try_sources
from infalign.settings.params import Params
from infalign.settings.rewards import ModelReward, is_trained, named_leaves

Texts = tuple[Sequence[Dialogue], Sequence[str]]


def check_sources(
    params: Params,
    root: Path,
    texts: Mapping[str, Texts],
    columns: Mapping[str, Columns],
    form: Format,
    longest: int,
) -> None:
    """Raise for the first source of rewards that could not be asked later.

    Args:
        texts: by objective: prompts, and a response to each; of prompts alone there are none.
        columns: by objective: prompts alone with the other columns of their rows.
        form: the policy's, as whose the responses are cut.
        longest: of a policy's responses, tokens.
    """

    @cache
    def cut(name: str) -> Texts:
        prompts, said = texts[name]
        return prompts, form.cut_responses(said, longest)

    for name in params.run.objectives:
        _check_pairs(params, name, bool(texts[name][1]))
    try_sources(params, root, columns)
    for name, field, settings in named_leaves(params.running):
        if isinstance(settings, ModelReward):
            check_model(f"{field}.path", settings, root, cut(name), longest)


def _check_pairs(params: Params, name: str, has_pairs: bool) -> None:
    for judge, key in FIELDS.items():
        if not has_pairs and is_trained(settings_of(params.objectives[name], judge)):
            otherwise = " (null: there is none)" if key == "judge" else ""
            raise InputError(
                f"params.yaml: objectives.{name}.{key} is trained from preference pairs, and its "
                "data has prompts alone: give data with pairs, or a model, a function or a server"
                f"{otherwise}."
            )


def check_model(field: str, settings: ModelReward, root: Path, texts: Texts, longest: int) -> None:
    """Raise where a classifier is none, has several outputs, or cannot read what there is."""
    local = root / settings.path
    name = local if local.is_dir() else settings.path
    if base_of(name, settings.revision) is not None:
        raise InputError(
            f"{field} = {settings.path!r} is an adapter: merge it into its model and save that."
        )
    config = load_config(name, settings.revision)
    chosen_label(config, settings.label, settings.path)
    form = load_format(name, settings.revision)
    check_weights(name)
    prompts, responses = texts
    prompts, said = prompts[: len(responses)] or prompts, responses or [SAID[0]] * len(prompts)
    if prompts:
        check_reads(f"{field} = {settings.path!r}", config, form, prompts, said, longest)
