"""Loading and building models: plain Hugging Face folders in, plain Hugging Face folders out.

Models are float32, without dropout (dropout would make KL and likelihood ratios wrong), in eval
mode, loaded from safetensors, and never run remote code. On CUDA their passes may be in bfloat16
(`memory.autocast`); the weights stay float32, but for those that no one trains (`freezing`), and so
do the products that give logits and rewards (`heads`).
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from infalign.errors import InputError
from infalign.lm.formats import Format, check_template, end_of, with_arguments
from infalign.lm.freezing import freeze
from infalign.lm.heads import in_float32
from infalign.lm.loading import Loaded, base_of, load, load_config, load_weights
from infalign.settings.params import Model, Tiny

logging.disable_progress_bar()
logging.set_verbosity_error()


def pick_device(name: str) -> torch.device:
    """The device of run.device: `auto` takes CUDA where there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "run.device = 'cuda', but torch sees no GPU: set run.device to auto or cpu."
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def load_tokenizer(
    name_or_path: str | Path, revision: str | None = None
) -> PreTrainedTokenizerBase:
    """A tokenizer with an end (EOS, or SEP where an encoder has no EOS) and a padding token.

    Args:
        revision: a hub name's commit.
    """
    tokenizer = load(AutoTokenizer, name_or_path, revision=revision)
    tokenizer.init_kwargs.pop("local_files_only", None)  # how it was found is not what it is
    if tokenizer.eos_token_id is None and tokenizer.sep_token_id is None:
        raise InputError(
            f"{name_or_path}: the tokenizer has neither an EOS nor a SEP token, so that nothing "
            "could end a response: set its eos_token."
        )
    if tokenizer.pad_token_id is None:  # masks come from lengths, so any id serves
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.sep_token
    return tokenizer


def load_format(name_or_path: str | Path, revision: str | None = None) -> Format:
    """How a model, or what was saved of its tokenizer, sees dialogues and responses."""
    tokenizer = load_tokenizer(name_or_path, revision)
    _choose_template(tokenizer, name_or_path)
    return Format(tokenizer, _stops(name_or_path, revision))


def named_format(model: Model) -> Format:
    """The format of params.yaml's model; its chat template has its arguments in itself."""
    name = model.name_or_path
    tokenizer = load_tokenizer(name, model.revision)
    form = Format(tokenizer, _stops(name, model.revision))
    if model.format == "plain" or (tokenizer.chat_template is None and model.format == "auto"):
        if model.template_arguments:
            raise InputError(
                "model.template_arguments are of a chat template, and the format is plain: remove "
                "them."
            )
        tokenizer.chat_template = None
        return form
    if tokenizer.chat_template is None:
        raise InputError(
            f"model.format = 'chat', but the tokenizer of {name!r} has no chat template: set "
            "model.format to plain, or give a model with one."
        )
    _choose_template(tokenizer, name)
    tokenizer.chat_template = with_arguments(tokenizer.chat_template, model.template_arguments)
    remedy = 'set model.template_arguments: {strftime_now: "26 Jul 2024"}, say'
    check_template(form, f"model.name_or_path = {name!r}", remedy)
    return form


def _choose_template(tokenizer: PreTrainedTokenizerBase, name_or_path: str | Path) -> None:
    """Of several chat templates, take the one that is meant where nothing else is said."""
    if not isinstance(tokenizer.chat_template, dict):
        return
    if "default" not in tokenizer.chat_template:
        names = ", ".join(map(repr, sorted(tokenizer.chat_template)))
        raise InputError(
            f"{name_or_path}: the tokenizer has the chat templates {names}, and none of the name "
            "'default': set model.format to plain, or save it with one template."
        )
    tokenizer.chat_template = tokenizer.chat_template["default"]


def _stops(name_or_path: str | Path, revision: str | None) -> tuple[int, ...]:
    """What ends a response by a model's generation_config, an adapter's by its base's."""
    try:
        config = GenerationConfig.from_pretrained(str(name_or_path), revision=revision)
        found = config.eos_token_id
        stops = found if isinstance(found, list) else [found]
        return tuple(int(stop) for stop in stops if stop is not None)
    except (OSError, AttributeError, TypeError, ValueError):
        if not (Path(name_or_path) / "generation_config.json").is_file():
            base = base_of(name_or_path, revision)
            return () if base is None else _stops(base, None)
        raise InputError(
            f"{name_or_path}: generation_config.json cannot be read: correct or remove it."
        ) from None


def load_policy(
    name_or_path: str | Path,
    device: torch.device,
    precision: str = "float32",
    revision: str | None = None,
    *,
    frozen: bool = False,
) -> PreTrainedModel:
    """A causal language model in eval mode, float32, dropout off; passes in `precision`.

    Args:
        device: the meta device: without weights, as everywhere below.
        frozen: no one trains or saves it: linear weights in the type of its passes.
    """
    empty = device.type == "meta"
    loaded = load_weights(AutoModelForCausalLM, name_or_path, revision=revision, empty=empty)
    return _ready(_whole(loaded, name_or_path), device, precision, frozen)


def load_reward_model(
    name_or_path: str | Path,
    device: torch.device,
    precision: str = "float32",
    revision: str | None = None,
) -> PreTrainedModel:
    """A sequence classifier with one output, in eval mode, dropout off, frozen."""
    loaded = _classifier(name_or_path, revision)
    return _ready(_whole(loaded, name_or_path), device, precision, frozen=True)


def load_classifier(
    name_or_path: str | Path,
    device: torch.device,
    precision: str = "float32",
    revision: str | None = None,
) -> PreTrainedModel:
    """A sequence classifier with the head that it has, as `load_reward_model` otherwise."""
    loaded = load_weights(AutoModelForSequenceClassification, name_or_path, revision=revision)
    return _ready(_whole(loaded, name_or_path), device, precision, frozen=True)


def build_reward_model(
    name_or_path: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    seed: int,
    precision: str = "float32",
    *,
    revision: str | None = None,
) -> PreTrainedModel:
    """A reward model that starts from a model's weights; what these lack is drawn from `seed`.

    A language model lacks the head; a reward model lacks nothing. The padding token becomes the
    tokenizer's, with a row in the embedding: by it transformers finds the token to pool at.
    """
    torch.manual_seed(seed)
    model, missing = _classifier(name_or_path, revision, empty=device.type == "meta")
    embedding = model.get_input_embeddings().weight
    if any(model.get_parameter(name) is embedding for name in missing):
        raise InputError(
            f"model {str(name_or_path)!r}: no weight of it fits {type(model).__name__}: give a "
            "folder that transformers wrote."
        )
    for name in missing:
        weight = model.get_parameter(name)
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.02)
    _give_padding(model, tokenizer)
    return _ready(model, device, precision)


def own_padding(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer of a reward model in training, with a padding token that ends no response.

    transformers' classifiers pool at the last token that is not padding: where padding is EOS that
    is the one before EOS, and they would give other rewards than `pooled_rewards`.
    """
    if tokenizer.pad_token_id == end_of(tokenizer):
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    tokenizer.padding_side = "right"  # learnt positions count from the first token
    return tokenizer


def _give_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    pad = tokenizer.pad_token_id
    if pad >= len(model.get_input_embeddings().weight):
        model.resize_token_embeddings(pad + 1, mean_resizing=False)
        with torch.no_grad():
            model.get_input_embeddings().weight[pad] = 0.0  # masked wherever it stands
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        config.pad_token_id = pad


def _classifier(name_or_path: str | Path, revision: str | None, empty: bool = False) -> Loaded:
    check_classifier(load_config(name_or_path, revision), name_or_path)
    kind = AutoModelForSequenceClassification
    return load_weights(kind, name_or_path, revision=revision, empty=empty, num_labels=1)


def check_classifier(config: PreTrainedConfig, name_or_path: str | Path) -> None:
    """Raise where a model cannot be a reward model, or begin one."""
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise InputError(
            f"model {str(name_or_path)!r}: transformers has no sequence classifier for the model "
            f"type {config.model_type!r}, and a reward model is one: set reward.name_or_path to a "
            "model of another type."
        )
    trained = any("ForSequenceClassification" in name for name in config.architectures or ())
    if trained and config.num_labels != 1:
        raise InputError(
            f"model {str(name_or_path)!r} is a classifier with {config.num_labels} labels, and a "
            "reward model has one output: set reward.name_or_path to a reward model "
            "(num_labels = 1) or to a language model, which gets a head of its own."
        )


def _whole(loaded: Loaded, name_or_path: str | Path) -> PreTrainedModel:
    """The model, whose weights were all stored."""
    if loaded.missing:
        raise InputError(
            f"model {str(name_or_path)!r} has no weights for {', '.join(loaded.missing[:3])} of "
            f"{type(loaded.model).__name__}, which would be random: give the whole model."
        )
    return loaded.model


def build_tiny(
    sizes: Tiny,
    tokenizer: PreTrainedTokenizerBase,
    positions: int,
    device: torch.device,
    seed: int,
    precision: str = "float32",
) -> PreTrainedModel:
    """A small Llama-type model with random weights; `positions` is its longest sequence."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with device if device.type == "meta" else contextlib.nullcontext():
        model = LlamaForCausalLM(config)
    return _ready(model, device, precision)


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a plain Hugging Face folder: config, safetensors, tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, with dropout off in training mode too.

    Dropout is a module, a number that a module read when it was made, or one in its config that it
    reads whenever it computes; so are the layers and the noise of routers that training drops in.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
        _switch_off(module)
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig):
            for part in (config, *_parts(config)):
                _switch_off(part)
    return model


def _switch_off(owner: Any) -> None:
    for name, value in list(vars(owner).items()):
        if isinstance(value, float) and ("drop" in name or "jitter" in name):
            setattr(owner, name, 0.0)


def _parts(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """The configs inside a config: of text, of images."""
    inside = [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
    return inside + [part for each in inside for part in _parts(each)]


def precision_on(precision: str, device: torch.device) -> str:
    """run.precision where passes are on a device, wherever the model is made: `auto` settled."""
    if precision == "auto":
        return "bfloat16" if device.type == "cuda" else "float32"
    return precision


def passes_in(precision: str, device: torch.device) -> torch.dtype | None:
    """The type of autocast of run.precision; None: float32 throughout."""
    return torch.bfloat16 if precision_on(precision, device) == "bfloat16" else None


def _ready(
    model: PreTrainedModel, device: torch.device, precision: str, frozen: bool = False
) -> PreTrainedModel:
    model.autocast_dtype = passes_in(precision, device)
    if model.autocast_dtype is not None:
        in_float32(model)
    if frozen:
        freeze(model)
    without_dropout(model).to(device)
    return model.eval()
