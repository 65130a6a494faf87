"""A Llama's passes over real tokens only, for models small enough to be bound by everything else.

The real tokens of prompts and responses are the rows of one matrix; only attention sees padded
rectangles. Weights that meet the same input are one matrix, the norms' and the attention's scales
are folded into them, and the rotary embedding is one complex product. What comes out is
what transformers computes from the same weights, up to rounding. Everything else (other models,
hooks, adapters, sharded weights, GPUs) takes transformers' own way: see `fits`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import LlamaForCausalLM, LlamaModel, PreTrainedModel

from infalign.lm.llama.fused import collect, gated, normalise, rotate, spread
from infalign.lm.text import Batch

LARGEST = 2**25  # parameters: copies of larger weights cost more than they save
ROPES = ("default", "linear", "llama3")  # whose angles depend on the position alone


class Layer(NamedTuple):
    """One layer's weights, as this module multiplies with them.

    Attributes:
        qkv: [query, key and value heads * head size, hidden], pairs of a rotation side by side.
        out: [hidden, heads * head size].
        gate_up: [2 * intermediate, hidden].
        down: [hidden, intermediate].
    """

    qkv: torch.Tensor
    out: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


def fits(model: PreTrainedModel) -> bool:
    """Whether a model is plain Llama, float32 on CPU, and small."""
    if type(model) is not LlamaForCausalLM:
        return False
    return _is_plain(model) and not getattr(model, "recomputes", False)


def _is_plain(model: PreTrainedModel) -> bool:
    config, weights = model.config, list(model.parameters())
    linear = [m for m in model.modules() if "Linear" in type(m).__name__]
    return (
        config._attn_implementation == "sdpa"
        and config.hidden_act == "silu"
        and config.rope_parameters["rope_type"] in ROPES
        and all(type(m) is torch.nn.Linear and m.bias is None for m in linear)
        and all(type(w) is torch.nn.Parameter for w in weights)
        and all(w.dtype == torch.float32 and w.device.type == "cpu" for w in weights)
        and sum(w.numel() for w in weights) <= LARGEST
        and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        and getattr(model, "autocast_dtype", None) is None
    )


def layers_of(trunk: LlamaModel) -> list[Layer]:
    """Every layer's weights, put together anew so that gradients reach the model's own."""
    found = []
    layers: Any = trunk.layers
    for layer in layers:
        attention, mlp = layer.self_attn, layer.mlp
        size = attention.head_dim
        before, behind = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        query = _neighbours(attention.q_proj.weight * attention.scaling, size)
        key = _neighbours(attention.k_proj.weight, size)
        found.append(
            Layer(
                torch.cat([query, key, attention.v_proj.weight]) * before,
                attention.o_proj.weight,
                torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]) * behind,
                mlp.down_proj.weight,
            )
        )
    return found


def _neighbours(weight: torch.Tensor, size: int) -> torch.Tensor:
    """Rows of every head reordered so that the two that turn together are neighbours."""
    halves = weight.view(-1, 2, size // 2, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape)


@torch.no_grad()
def turns_of(trunk: LlamaModel, positions: int) -> torch.Tensor:
    """The rotary embedding of every position: complex [positions, head size / 2]."""
    places = torch.arange(positions)[None]
    cosine, sine = trunk.rotary_emb(trunk.embed_tokens.weight, places)
    half = cosine.shape[-1] // 2
    return torch.complex(cosine[0, :, :half], sine[0, :, :half])


@dataclass(frozen=True)
class Packed:
    """A batch as rows of real tokens: the prompts', then those of the responses.

    Attributes:
        ids, positions: int64 [rows].
        places: of the rows in the padded rectangles, the prompts' first, then the responses'.
        sources: the row at every place of those, len(ids) where there is none.
        predictors: the row that predicts each response token.
        mask: additive, of the response rectangles' queries [prompts, 1, tokens, keys].
        prompt_mask: the same of the prompts' [prompts, tokens, tokens].
        sizes: prompts, their tokens, responses to each, their tokens: of the rectangles.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    places: torch.Tensor
    sources: torch.Tensor
    predictors: torch.Tensor
    mask: torch.Tensor
    prompt_mask: torch.Tensor
    sizes: tuple[int, int, int, int]


def pack(batch: Batch) -> Packed:
    """Lay a batch out, without each response's last token, which predicts nothing."""
    prompt_real, real = batch.prompt_mask, batch.mask
    lengths, prompt_lengths = real.sum(1), prompt_real.sum(1)
    real = real & (torch.arange(real.shape[1]) < lengths[:, None] - 1)
    real = real[:, : max(1, int(lengths.max()) - 1)]
    (n_prompts, width), (n_rows, longest) = prompt_real.shape, real.shape
    samples = n_rows // n_prompts
    prompt_places = prompt_real.flatten().nonzero()[:, 0]
    places = torch.cat([prompt_places, prompt_real.numel() + real.flatten().nonzero()[:, 0]])
    sources = torch.full((prompt_real.numel() + real.numel(),), len(places))
    sources[places] = torch.arange(len(places))
    before = (prompt_real.cumsum(1) - 1)[prompt_real]
    behind = (prompt_lengths.repeat_interleave(samples)[:, None] + torch.arange(longest))[real]
    seen = torch.arange(longest)[:, None] >= torch.arange(longest)
    seen = torch.cat(
        [
            prompt_real[:, None, None].expand(-1, -1, longest, -1),
            seen.expand(n_prompts, 1, longest, longest),
        ],
        -1,
    )
    among = torch.arange(width)[:, None] >= torch.arange(width)
    return Packed(
        torch.cat([batch.prompts[prompt_real], batch.responses[:, :longest][real]]),
        torch.cat([before, behind]),
        places,
        sources,
        _predictors(batch, prompt_lengths, real.sum(1)),
        _additive(seen),
        _additive(among & prompt_real[:, None]),
        (n_prompts, width, samples, longest),
    )


def _predictors(
    batch: Batch, prompt_lengths: torch.Tensor, packed_lengths: torch.Tensor
) -> torch.Tensor:
    """The row that predicts each response token: the one before it."""
    last_of_prompt = (prompt_lengths.cumsum(0) - 1).repeat_interleave(batch.samples)
    begins = prompt_lengths.sum() + packed_lengths.cumsum(0) - packed_lengths
    columns = torch.arange(batch.mask.shape[1])
    rows = torch.where(columns == 0, last_of_prompt[:, None], begins[:, None] + columns - 1)
    return rows[batch.mask]


def _additive(seen: torch.Tensor) -> torch.Tensor:
    lowest = torch.finfo(torch.float32).min
    return torch.zeros(seen.shape).masked_fill_(~seen, lowest)


def token_states(model: PreTrainedModel, packed: Packed) -> torch.Tensor:
    """What predicts every response token: [response tokens, hidden]."""
    # A prompt's last row predicts many: embedding's derivative sums them, fast.
    return torch.nn.functional.embedding(packed.predictors, last_states(model, packed))


def last_states(model: PreTrainedModel, packed: Packed) -> torch.Tensor:
    """The trunk's last states of every row: [rows, hidden]."""
    trunk: Any = model.base_model
    epsilon = trunk.norm.variance_epsilon
    turns = turns_of(trunk, int(packed.positions.max()) + 1)[packed.positions]
    x = trunk.embed_tokens(packed.ids)
    for layer, module in zip(layers_of(trunk), trunk.layers, strict=True):
        attention = module.self_attn
        size, shared = attention.head_dim, attention.num_key_value_groups
        mixed = normalise(x, epsilon) @ layer.qkv.t()
        keys = attention.k_proj.out_features // size
        mixed = rotate(mixed, turns, (keys * shared + keys) * size)
        x = x + _attend(mixed, packed, keys, shared, size) @ layer.out.t()
        x = x + gated(normalise(x, epsilon) @ layer.gate_up.t()) @ layer.down.t()
    return normalise(x, epsilon) * trunk.norm.weight


def _attend(mixed: torch.Tensor, packed: Packed, keys: int, shared: int, size: int) -> torch.Tensor:
    """Attention of every row to what comes before it: [rows, heads * head size].

    Args:
        mixed: queries, keys and values, heads side by side [rows, (2 + shared) * keys * size].
        keys: key heads, each for `shared` query heads.
    """
    n_prompts, width, samples, longest = packed.sizes
    heads = [keys * shared, keys, keys]
    padded = spread(mixed, packed.places, packed.sources).view(-1, sum(heads), size)
    first, rest = padded.split([n_prompts * width, len(padded) - n_prompts * width])
    before = first.view(n_prompts, width, -1, size).permute(2, 0, 1, 3).contiguous()
    behind = rest.view(n_prompts, samples, longest, -1, size).permute(3, 0, 1, 2, 4).contiguous()
    past_query, past_key, past_value = before.split(heads)
    query, key, value = behind.split(heads)
    if shared > 1:
        past_key, past_value, key, value = (
            x.repeat_interleave(shared, 0) for x in (past_key, past_value, key, value)
        )
    of_prompts = past_query @ past_key.transpose(-1, -2) + packed.prompt_mask
    found_before = of_prompts.softmax(-1) @ past_value
    together = (-1, n_prompts, samples * longest)
    past = query.reshape(*together, size) @ past_key.transpose(-1, -2)
    own = query @ key.transpose(-1, -2)
    scores = torch.cat([past.view(*own.shape[:-1], width), own], -1).add_(packed.mask)
    past, own = scores.softmax(-1).split([width, longest], -1)
    found = own @ value
    found = found + (past.reshape(*together, width) @ past_value).view(found.shape)
    rows = torch.cat(
        [
            found_before.permute(1, 2, 0, 3).reshape(n_prompts * width, -1),
            found.permute(1, 2, 3, 0, 4).reshape(n_prompts * samples * longest, -1),
        ]
    )
    return collect(rows, packed.places, packed.sources)
