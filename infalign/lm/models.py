"""Loading and building models: plain Hugging Face folders in, plain Hugging Face folders out.

Models are float32, without dropout (dropout would make KL and likelihood ratios wrong), in eval
mode, loaded from safetensors, and never run remote code. On CUDA their passes may be in bfloat16
(`memory.autocast`); the weights stay float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from infalign.errors import InputError
from infalign.settings.params import Tiny

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
    """A tokenizer with an EOS and a padding token; `revision` is a hub name's commit."""
    tokenizer = _load(AutoTokenizer, name_or_path, revision=revision)
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"{name_or_path}: the tokenizer has no EOS token: responses could not end."
        )
    if tokenizer.pad_token_id is None:  # masks come from lengths, so any id serves
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_policy(
    name_or_path: str | Path,
    device: torch.device,
    precision: str = "float32",
    revision: str | None = None,
) -> PreTrainedModel:
    """A causal language model in eval mode, float32, dropout off; passes in `precision`."""
    model = _load(AutoModelForCausalLM, name_or_path, dtype=torch.float32, revision=revision)
    return _ready(model, device, precision)


def load_reward_model(
    name_or_path: str | Path,
    device: torch.device,
    precision: str = "float32",
    revision: str | None = None,
) -> PreTrainedModel:
    """A sequence classifier with one output, in eval mode, float32, dropout off."""
    model = _load(
        AutoModelForSequenceClassification,
        name_or_path,
        dtype=torch.float32,
        num_labels=1,
        revision=revision,
    )
    return _ready(model, device, precision)


def build_reward_model(
    name_or_path: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    seed: int,
    precision: str = "float32",
    *,
    revision: str | None = None,
) -> PreTrainedModel:
    """A reward model that starts from a language model's weights; its head is drawn from `seed`."""
    torch.manual_seed(seed)
    model = load_reward_model(name_or_path, device, precision, revision)
    model.config.pad_token_id = tokenizer.pad_token_id
    head = getattr(model, "score", None)
    if isinstance(head, torch.nn.Linear):
        torch.nn.init.normal_(head.weight, std=0.02)
    return model


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
    return _ready(LlamaForCausalLM(config), device, precision)


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a plain Hugging Face folder: config, safetensors, tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def _load(kind: Any, name_or_path: str | Path, **options: Any) -> Any:
    try:
        return kind.from_pretrained(str(name_or_path), trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"model {str(name_or_path)!r} cannot be loaded: give a local Hugging Face folder, or a "
            f"hub name while online ({reason})."
        ) from None


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, with dropout off in training mode too."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # read when it was made
    for name in ("attention_dropout", "attention_probs_dropout_prob", "attn_pdrop"):
        if hasattr(model.config, name):
            setattr(model.config, name, 0.0)
    return model


def passes_in(precision: str, device: torch.device) -> torch.dtype | None:
    """The type of autocast of run.precision; None: float32 throughout."""
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" else "float32"
    return torch.bfloat16 if precision == "bfloat16" else None


def _ready(model: PreTrainedModel, device: torch.device, precision: str) -> PreTrainedModel:
    model.autocast_dtype = passes_in(precision, device)
    without_dropout(model).to(device)
    return model.eval()
