"""The case that all sides work on: a policy, a reward model, a tokenizer and prompts in a folder.

The tokenizer's EOS lies outside the policy's vocabulary, so that every response has the full
length and all sides sample and train on exactly the same number of tokens.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from infalign.data.builtin import draw_response, prompts_of
from infalign.data.tokenizer import train_tokenizer
from infalign.lm.models import save_model

END = "<end>"  # the EOS that no policy can sample
SUBSET = "helpful-base"


@dataclass(frozen=True)
class Case:
    """Sizes, in the spelling of params.yaml where it has one.

    Attributes:
        prompts: a step.
        samples: responses a prompt (K).
        learning_rate: small, so that the policy of the last step still writes like the first.
    """

    prompts: int = 32
    samples: int = 8
    prompt_tokens: int = 28
    response_tokens: int = 24
    vocab_size: int = 1024
    hidden_size: int = 64
    intermediate_size: int = 176
    layers: int = 3
    heads: int = 4
    pool: int = 384
    learning_rate: float = 1.0e-5

    @property
    def responses(self) -> int:
        """Responses a step."""
        return self.prompts * self.samples

    def save(self, folder: Path) -> None:
        """Write everything a side needs, laid out like a project's results."""
        texts = prompts_of(SUBSET, 0, 1200)
        rng = random.Random(0)
        answers = [f" {draw_response(SUBSET, text, rng)}" for text in texts]
        tokenizer = train_tokenizer([*texts, *answers], self.vocab_size)
        tokenizer.padding_side = "left"
        vocab_size = len(tokenizer)
        tokenizer.add_special_tokens({"eos_token": END})
        short = [t for t in texts if len(tokenizer(t)["input_ids"]) <= self.prompt_tokens]
        if len(short) < self.pool:
            raise ValueError(f"{len(short)} prompts of {self.prompt_tokens} tokens are too few")
        torch.manual_seed(0)
        shared = {
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "max_position_embeddings": 1024,
            "initializer_range": 0.05,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        tied = LlamaConfig(vocab_size=vocab_size, tie_word_embeddings=True, **shared)
        save_model(LlamaForCausalLM(tied), tokenizer, folder / "results/sft/policy")
        judge = LlamaConfig(vocab_size=len(tokenizer), num_labels=1, **shared)
        reward_model = LlamaForSequenceClassification(judge)
        save_model(reward_model, tokenizer, folder / "results/reward/helpful/selecting")
        (folder / "prompts.json").write_text(json.dumps(short[: self.pool]))
        (folder / "case.json").write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> Case:
        """The case that `save` wrote."""
        return cls(**json.loads((folder / "case.json").read_text()))


def prompt_texts(folder: Path) -> list[str]:
    """The case's prompts."""
    texts: list[str] = json.loads((folder / "prompts.json").read_text())
    return texts
