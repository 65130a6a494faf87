"""What a named model cannot do, said before anything is trained.

`prepare` asks here with configs, tokenizers and the texts; no weights are loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from infalign.data.dialogue import Dialogue
from infalign.errors import InputError
from infalign.files.workspace import Lengths
from infalign.lm.formats import Format, check_template
from infalign.lm.loading import base_of, check_weights, load_config
from infalign.lm.models import check_classifier, load_format
from infalign.settings.params import Params
from infalign.settings.rewards import is_trained, named_leaves


def check_models(params: Params, form: Format, lengths: Lengths) -> None:
    """Raise where the policy's model, or the reward models', cannot serve as such.

    Args:
        form: the policy's.
    """
    name, start = params.model.name_or_path, params.reward.name_or_path
    if name != "tiny":
        config = load_config(name, params.model.revision)
        _check_policy(config, params, form.tokenizer, lengths)
        check_weights(name)
        if start == "sft" and _trains_rewards(params):
            check_classifier(config, name)
    if start != "sft" and _trains_rewards(params):
        check_classifier(load_config(start, params.reward.revision), start)
        load_format(start, params.reward.revision)
        check_weights(start)
    for one in (name, start):
        base = None if one in ("tiny", "sft") else base_of(one)
        if base is not None and Path(base).is_dir():  # seen from here alone, by DVC not at all
            print(
                f"prepare: {one!r} is an adapter of the local model {base!r}, whose own files are "
                "no dependency: after a change there run again by hand, or merge the adapter.",
                flush=True,
            )


def check_texts(
    params: Params,
    form: Format,
    lengths: Lengths,
    prompts: Sequence[Dialogue],
    answered: Sequence[tuple[Dialogue, str]],
) -> None:
    """Raise where a model has no embedding for a token, or no position for the last one.

    Args:
        form: the policy's.
        prompts: all of them.
        answered: prompts with a response of the data, where there are any.
    """
    asked, responses = [prompt for prompt, _ in answered], [text for _, text in answered]
    name, start = params.model.name_or_path, params.reward.name_or_path
    if name != "tiny":
        config = load_config(name, params.model.revision)
        _check_rows(f"model.name_or_path = {name!r}", config, form, prompts, responses)
    if start == "sft" or not _trains_rewards(params):
        return
    revision = params.reward.revision
    cut = form.cut_responses(responses, lengths.response)
    field = f"reward.name_or_path = {start!r}"
    config, own = load_config(start, revision), load_format(start, revision)
    check_reads(field, config, own, asked, cut, lengths.response)


def _trains_rewards(params: Params) -> bool:
    """Whether any objective's reward or judge is trained."""
    return any(is_trained(leaf) for _, _, leaf in named_leaves(params.running))


def check_reads(
    field: str,
    config: PreTrainedConfig,
    form: Format,
    prompts: Sequence[Dialogue],
    responses: Sequence[str],
    longest: int,
) -> None:
    """Raise where a reward model cannot read a prompt with a response.

    Args:
        field: where params.yaml names it, and what it names.
        form: the reward model's.
        responses: of the data, cut as a policy's would be.
        longest: of a policy's responses, tokens; those of the data may be shorter.
    """
    if form.chat:
        check_template(form, field, "save its tokenizer with a date of yours in chat_template")
    _check_rows(field, config, form, prompts, responses)
    asked, said = form.encode_whole(prompts, responses)
    whole = max(map(len, asked)) + max(longest, *map(len, said))
    positions = min(_positions(config), form.tokenizer.model_max_length)
    if whole > positions:
        raise InputError(
            f"{field} reads at most {positions} tokens, and a prompt with a response may have "
            f"{whole}: lower model.prompt_tokens or model.response_tokens, or take another model."
        )


def _check_policy(
    config: PreTrainedConfig, params: Params, tokenizer: PreTrainedTokenizerBase, lengths: Lengths
) -> None:
    name = params.model.name_or_path
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(
            f"model.name_or_path = {name!r}: transformers has no causal language model of the type "
            f"{config.model_type!r}: name a model that continues a text."
        )
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"model.name_or_path = {name!r}: the tokenizer has no EOS token, so that responses "
            "could not end: set its eos_token."
        )
    longest = lengths.prompt + lengths.response + 1  # EOS, where a reward is read
    if longest > _positions(config):
        raise InputError(
            f"model.name_or_path = {name!r} has {_positions(config)} positions, and "
            f"model.prompt_tokens = {lengths.prompt} and model.response_tokens = "
            f"{lengths.response} with EOS need {longest}: lower one of them, or take a model "
            "with more."
        )


def _positions(config: PreTrainedConfig) -> int:
    """The longest sequence of a model, tokens; those without a bound have a large one."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or 2**31)


def _check_rows(
    field: str,
    config: PreTrainedConfig,
    form: Format,
    prompts: Sequence[Dialogue],
    responses: Sequence[str],
) -> None:
    """Every token that occurs has a row in the embedding; others may be beyond its end."""
    rows = int(config.get_text_config().vocab_size)
    tokenizer = form.tokenizer
    if form.rows <= rows:
        return
    texts = form.encode_prompts(prompts) + form.encode_responses(responses)
    largest = max(form.pad, *(max(ids, default=0) for ids in texts))
    if largest >= rows:
        raise InputError(
            f"{field}: the tokenizer gives {tokenizer.convert_ids_to_tokens(largest)!r} the id "
            f"{largest}, and the model's embedding has {rows} rows: save the model after "
            f"resize_token_embeddings({form.rows}), or give the tokenizer that it was trained with."
        )
