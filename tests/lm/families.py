"""Tiny models of many families: what transformers' configs need to be small."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from infalign.lm.models import save_model

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 96,
    "initializer_range": 0.3,
    "layer_norm_epsilon": 1e-5,
    "pad_token_id": 0,
}
WINDOW = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
HYBRID = {"layer_types": ["conv", "full_attention"]}
SMALL = {"d_model": 32, "num_layers": 2, "attention_heads": 2, "ffn_dim": 48}
FAMILIES = {  # a model type, and words of ours behind it
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": 8},
    "mixtral": {"num_local_experts": 2},
    "gemma2": {"head_dim": 16, "final_logit_softcapping": 30.0, **WINDOW},
    "gemma3_text": {"head_dim": 16, **WINDOW},
    "phi3": {},
    "gpt2": {},
    "gpt_neox": {},
    "olmo2": {},
    "smollm3": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3},
    "xglm": {**SMALL, "init_std": 0.3},
    "bloom": {},
    "falcon": {"alibi": False},
    "falcon with alibi": {"alibi": True},
    "granite": {"logits_scaling": 2.0},
    "cohere": {"logit_scale": 0.25},
    "lfm2": HYBRID,
    "lfm2 with biases": {"conv_bias": True, **HYBRID},
    "mamba": {"state_size": 8},
    "mamba2": {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1},
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
}


def sizes_of(family: str) -> dict[str, object]:
    """Everything that the config of a family's model type is made from."""
    return SIZES | FAMILIES[family]


def config_of(family: str) -> object:
    """A tiny config with every dropout that the family has set to a half."""
    config = AutoConfig.for_model(family.split()[0], **sizes_of(family))
    for name, value in config.to_dict().items():
        if isinstance(value, float) and "drop" in name:
            setattr(config, name, 0.5)
    return config


def saved(family, tokenizer, folder):
    """The folder, with a model of the family and random weights in it."""
    torch.manual_seed(1)
    config = config_of(family)
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    save_model(AutoModelForCausalLM.from_config(config), tokenizer, folder)
    return folder
