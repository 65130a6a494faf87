"""The case that all sides work on: a policy, a reward model, a tokenizer and prompts in a folder.

The tokenizer's EOS lies outside the policy's vocabulary, so that every response has the full
length and all sides sample and train on exactly the same number of tokens.
"""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

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
        key_heads: of keys and values; 0: as many as heads.
        start: folder of a pretrained Llama whose sizes these are; empty: random weights.
        lora_rank: of the adapter that is trained; 0: all weights are.
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
    key_heads: int = 0
    start: str = ""
    lora_rank: int = 0

    @classmethod
    def given(cls, folder: Path, lora_rank: int) -> Case:
        """A pretrained Llama with an adapter: few prompts, longer texts."""
        config = AutoConfig.from_pretrained(folder)
        return cls(
            prompts=4,
            samples=4,
            prompt_tokens=96,
            response_tokens=32,
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            pool=64,
            key_heads=config.num_key_value_heads,
            start=str(folder.resolve()),
            lora_rank=lora_rank,
        )

    @property
    def responses(self) -> int:
        """Responses a step."""
        return self.prompts * self.samples

    def save(self, folder: Path) -> None:
        """Write everything a side needs, laid out like a project's results."""
        texts = prompts_of(SUBSET, 0, 1200)
        if self.start:  # two questions behind each other: prompts of a chat's length
            texts = [first + second for first, second in itertools.pairwise(texts)]
            tokenizer = AutoTokenizer.from_pretrained(self.start)
            tokenizer.chat_template = None
        else:
            rng = random.Random(0)
            answers = [f" {draw_response(SUBSET, text, rng)}" for text in texts]
            tokenizer = train_tokenizer([*texts, *answers], self.vocab_size)
        tokenizer.padding_side = "left"
        vocab_size = len(tokenizer)
        tokenizer.add_special_tokens({"eos_token": END, "pad_token": tokenizer.pad_token})
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
        if self.start:
            policy = AutoModelForCausalLM.from_pretrained(self.start, dtype=torch.float32)
            policy.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
            shared |= {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2}
            shared |= {"num_attention_heads": 4, "num_key_value_heads": 4}
        else:
            tied = LlamaConfig(vocab_size=vocab_size, tie_word_embeddings=True, **shared)
            policy = LlamaForCausalLM(tied)
        save_model(policy, tokenizer, folder / "results/sft/policy")
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
