"""The sizes of a model: from its config, without its weights, or from a number of parameters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from infalign.errors import InputError

# Where a hub cannot be asked: what these models' published config.json say.
_LLAMA = {"model_type": "llama", "tie_word_embeddings": False}
_QWEN = {"model_type": "qwen2", "tie_word_embeddings": True, "vocab_size": 151936}
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
_LLAMA_8B = _LLAMA | dict(zip(_SIZES, (128256, 4096, 14336, 32, 32, 8), strict=True))
_QWEN_HALF = _QWEN | dict(zip(_SIZES[1:], (896, 4864, 24, 14, 2), strict=True))
_QWEN3_SMALL = _QWEN | dict(zip(_SIZES[1:], (1024, 3072, 28, 16, 8), strict=True))
_QWEN3_SMALL |= {"model_type": "qwen3", "head_dim": 128}
PUBLISHED = {
    "Skywork/Skywork-Reward-V2-Qwen3-0.6B": _QWEN3_SMALL,
    "meta-llama/Llama-3.1-8B": _LLAMA_8B,
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA_8B,
    "Qwen/Qwen2.5-0.5B": _QWEN_HALF,
    "Qwen/Qwen2.5-0.5B-Instruct": _QWEN_HALF,
}


@dataclass(frozen=True)
class Weight:
    """One weight of a model.

    Attributes:
        linear: whether it belongs to a linear layer of the trunk.
        layer: whether it stands in one of the layers, which are dealt out one by one.
        head: whether it gives logits and nothing else.
    """

    shape: tuple[int, ...]
    linear: bool
    layer: bool
    head: bool = False

    @property
    def count(self) -> int:
        """How many numbers it has."""
        total = 1
        for side in self.shape:
            total *= side
        return total

    @property
    def four_bits(self) -> int:
        """Bytes in NF4: half of one a number, and of a block of 64 a scale, quantised again.

        One byte a scale, four of 256 scales and of their mean, and two tables, of 16 and of 256.
        """
        blocks = -(-self.count // 64)
        return -(-self.count // 2) + blocks + 4 * -(-blocks // 256) + 4 + 4 * (16 + 256)

    def share(self, processes: int) -> int:
        """Numbers of the largest share: rows are dealt out, and none is cut."""
        return -(-self.shape[0] // processes) * (self.count // self.shape[0])


@dataclass(frozen=True)
class Shape:
    """A causal language model's sizes.

    Attributes:
        active: parameters that one token meets: of experts, those that it is sent to.
        cached: keys and values of one token in one layer, numbers.
        inner: width of its feed-forward layers.
        source: where the sizes come from.
    """

    weights: tuple[Weight, ...]
    layers: int
    hidden: int
    inner: int
    cached: int
    vocabulary: int
    source: str
    active: int

    @property
    def parameters(self) -> int:
        """All of them."""
        return sum(weight.count for weight in self.weights)

    @property
    def linear(self) -> int:
        """Those of the trunk's linear layers."""
        return sum(weight.count for weight in self.weights if weight.linear)

    def frozen(self, halved: bool) -> int:
        """Bytes of a whole copy that no one trains."""
        return 4 * self.parameters - 2 * self.linear * halved

    def quantised(self, halved: bool) -> int:
        """Bytes of a whole copy whose linear layers are in 4 bits."""
        return sum(
            w.four_bits
            if w.linear and len(w.shape) == 2
            else w.count * (2 if w.linear and halved else 4)
            for w in self.weights
        )

    def frozen_shares(self, processes: int, halved: bool) -> int:
        """Bytes that each process holds of one whose layers are in shares."""
        return sum(
            (w.share(processes) if w.layer else w.count) * (2 if halved and w.linear else 4)
            for w in self.weights
        )

    @property
    def largest_layer(self) -> int:
        """Numbers of one layer, about."""
        inside = sum(weight.count for weight in self.weights if weight.layer)
        return -(-inside // max(1, self.layers))

    def classifier(self) -> Shape:
        """The reward model of the same trunk, whose head is one row."""
        heads = sum(weight.count for weight in self.weights if weight.head)
        return replace(
            self,
            weights=tuple(w for w in self.weights if not w.head),
            active=self.active - heads,
        )

    def adapter(self, rank: int) -> list[Weight]:
        """The factors of an adapter in every linear layer of the trunk."""
        return [
            Weight(shape, linear=False, layer=True)
            for weight in self.weights
            if weight.linear and len(weight.shape) == 2
            for shape in ((rank, weight.shape[1]), (weight.shape[0], rank))
        ]


def shape_of(config: Any, source: str, *, classifies: bool = False) -> Shape:
    """The sizes of a model of transformers: built without memory.

    Args:
        classifies: it is a sequence classifier, which gives rewards, no language model.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from infalign.lm.freezing import linear_weights

    kind = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
    try:
        with torch.device("meta"):
            model = kind.from_config(config)
    except ValueError:
        raise InputError(
            f"{source}: transformers has no {'classifier' if classifies else 'language model'} of "
            f"the type {config.model_type!r}."
        ) from None
    names = set(model._no_split_modules or ())
    layers = [m for m in model.modules() if type(m).__name__ in names]
    inside = {id(p) for layer in layers for p in layer.parameters()}
    linear = {id(weight) for weight in linear_weights(model)}
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    alone = head is not None and head.weight is not embedding.weight
    own = config.get_text_config()
    weights = tuple(
        Weight(tuple(p.shape), id(p) in linear, id(p) in inside, alone and p is head.weight)
        for p in model.parameters()
    )
    return Shape(
        weights,
        layers=own.num_hidden_layers,
        hidden=own.hidden_size,
        inner=getattr(own, "intermediate_size", None) or 4 * own.hidden_size,
        cached=2 * _key_numbers(own),
        vocabulary=own.vocab_size,
        source=source,
        active=_active(own, weights),
    )


def _key_numbers(config: Any) -> int:
    """Numbers of one token's keys in one layer; of a state space there are none to speak of."""
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        return 0
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    if getattr(config, "multi_query", False) and not getattr(
        config, "new_decoder_architecture", False
    ):
        return int(size)
    return int((getattr(config, "num_key_value_heads", None) or heads) * size)


def _active(config: Any, weights: Sequence[Weight]) -> int:
    """Parameters that a token meets: of experts, matrices of one weight, those it is sent to."""
    experts = next(
        (
            number
            for name in ("num_local_experts", "num_experts", "n_routed_experts")
            if (number := getattr(config, name, None))
        ),
        0,
    )
    chosen = getattr(config, "num_experts_per_tok", None) or experts
    idle = sum(w.count for w in weights if len(w.shape) == 3 and w.shape[0] == experts)
    return sum(w.count for w in weights) - (idle * (experts - chosen) // experts if experts else 0)


def named_shape(name: str, revision: str | None = None) -> Shape:
    """The sizes of a folder's or a hub name's language model."""
    return shape_of(*_config(name, revision))


def classifier_shape(name: str, revision: str | None = None) -> Shape:
    """The sizes of a folder's or a hub name's reward model."""
    return shape_of(*_config(name, revision), classifies=True)


def _config(name: str, revision: str | None) -> tuple[Any, str]:
    from transformers import AutoConfig

    from infalign.lm.loading import load_config

    try:
        return load_config(name, revision), f"config of {name}"
    except InputError:
        if name not in PUBLISHED:
            raise
    return AutoConfig.for_model(**PUBLISHED[name]), f"published sizes of {name}"


def tiny_shape(sizes: Any) -> Shape:
    """The sizes of the model that is built here."""
    return _llama(
        (
            sizes.vocab_size,
            sizes.hidden_size,
            sizes.intermediate_size,
            sizes.layers,
            sizes.heads,
            sizes.heads,
        ),
        "model.tiny",
        tied=True,
    )


def counted_shape(text: str) -> Shape:
    """A Llama-type model of so many parameters: `8b`, `350m`; a layer for every 128 of its width.

    Of 3.5 widths in its feed-forward layers, a quarter as many heads of keys and values as of
    queries, heads of 64 or 128, and a vocabulary of 128,256 (32,000 below a billion).
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([bm])", text.strip().lower())
    if found is None or float(found[1]) == 0:
        raise InputError(f"--parameters {text!r} must be a number with b or m, such as 8b or 350m.")
    wanted = float(found[1]) * (1e9 if found[2] == "b" else 1e6)
    vocabulary = 128256 if wanted >= 1e9 else 32000
    best: tuple[float, Sequence[int]] | None = None
    for width in range(256, 20480 + 1, 256):
        inner, layers = 128 * round(3.5 * width / 128), max(2, round(width / 128))
        head = 128 if width >= 2048 else 64
        queries = width // head
        pairs = max(1, queries // 4)
        layer = 2 * width * width + 2 * width * pairs * head + 3 * width * inner + 2 * width
        total = layers * layer + (1 if wanted < 1e9 else 2) * vocabulary * width
        sizes = (vocabulary, width, inner, layers, queries, pairs)
        if best is None or abs(total - wanted) < best[0]:
            best = (abs(total - wanted), sizes)
    assert best is not None
    return _llama(best[1], f"a Llama-type model of about {text}", tied=wanted < 1e9)


def _llama(sizes: Sequence[int], source: str, *, tied: bool) -> Shape:
    from transformers import LlamaConfig

    named = dict(zip(_SIZES, sizes, strict=True))
    return shape_of(LlamaConfig(**named, tie_word_embeddings=tied), source)
