"""Ancestral sampling at temperature 1, no truncation of the distribution.

A prompt is computed once for all its samples, prompts of alike length share a batch, and finished
sequences leave it. Tokens follow from one uniform by the inverse CDF in float64 (`randomness`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from infalign.lm.decoding import fast_decoding, roomy_cache
from infalign.lm.llama import passes
from infalign.lm.llama.decoding import LlamaDecoder
from infalign.lm.memory import Block, Budget, autocast, in_pieces
from infalign.lm.sampling.randomness import counter_of, uniforms
from infalign.lm.sampling.static import SHRINK_SHARE, StaticDecoder, can_be_static
from infalign.lm.text import by_length, decode_responses, encode_prompts
from infalign.processes.ranks import ALONE, Ranks

SCORES = 2**24  # next-token scores turned into tokens at once: 128 MiB in float64
LEAVING_SHARE = 0.25  # finished sequences leave the batch when they are this share of it


@dataclass(frozen=True)
class Responses:
    """Sampled responses, `samples` a prompt, prompt-major: row = prompt * samples + sample.

    Attributes:
        tokens: token ids of each response, EOS included where it ended.
        text: decoded, stripped.
        logp: log-probability of each response, nats, as sampled (float64 sums).
        finished: whether the response ended by itself.
    """

    tokens: list[list[int]]
    text: list[str]
    logp: np.ndarray
    finished: np.ndarray

    @property
    def n_tokens(self) -> np.ndarray:
        """Length of each response, tokens, EOS included."""
        return np.array([len(t) for t in self.tokens])


def sample_responses(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    prompt_ids: Sequence[str],
    sample_indices: np.ndarray,
    *,
    seed: int,
    longest: int,
    batch_size: int,
    budget: Budget | None = None,
    ranks: Ranks = ALONE,
) -> Responses:
    """Sample responses to each prompt.

    Args:
        sample_indices: int [prompts, samples], the counter of every response.
        seed: of the stream; with prompt id, sample index and position it fixes every token.
        longest: tokens of a response, EOS included.
        batch_size: sequences decoded side by side, at most.
        budget: of the tokens that they may grow to.
        ranks: processes that share the batches; each gets all of the responses.
    """
    encoded = encode_prompts(tokenizer, prompts)
    n_prompts, n_samples = sample_indices.shape
    limits = _Limits(seed, longest, tokenizer.eos_token_id, tokenizer.pad_token_id)

    def decode(block: Block) -> tuple[list[list[int]], np.ndarray]:
        keys = torch.tensor([counter_of(prompt_ids[i]) for i in block.prompts])
        indices = sample_indices[np.ix_(block.prompts, block.columns)].astype(np.int64)
        with fast_decoding(policy), autocast(policy):
            return _decode(
                policy, [encoded[i] for i in block.prompts], keys, torch.from_numpy(indices), limits
            )

    def width(block: Block) -> int:
        return max(len(encoded[i]) for i in block.prompts) + longest

    parts: list[tuple[Block, tuple[list[list[int]], np.ndarray]]] = []
    side_by_side = max(1, batch_size // n_samples)
    for chosen in ranks.share(by_length([len(p) for p in encoded], side_by_side)):
        block = Block(chosen, np.arange(n_samples))
        parts += in_pieces(block, decode, width, budget or Budget())
    tokens: list[list[int]] = [[] for _ in range(n_prompts * n_samples)]
    logp = np.zeros(n_prompts * n_samples)
    for block, (decoded, sums) in (pair for part in ranks.gather(parts) for pair in part):
        for row, response, total in zip(block.rows(n_samples), decoded, sums, strict=True):
            tokens[row], logp[row] = response, total
    eos = tokenizer.eos_token_id
    finished = np.array([bool(t) and t[-1] == eos for t in tokens])
    return Responses(tokens, decode_responses(tokenizer, tokens), logp, finished)


@dataclass(frozen=True)
class _Limits:
    seed: int
    longest: int
    eos: int
    pad: int


@dataclass
class _Rows:
    """Sequences being decoded: rows of the cache, and which responses they are."""

    cache: DynamicCache
    mask: torch.Tensor
    positions: torch.Tensor
    keys: torch.Tensor
    indices: torch.Tensor
    place: torch.Tensor
    done: torch.Tensor

    def leave(self, with_cache: bool) -> None:
        """Let the finished sequences go."""
        kept = (~self.done).nonzero()[:, 0]
        if with_cache:
            self.cache.batch_select_indices(kept)
        for name in ("mask", "positions", "keys", "indices", "place", "done"):
            setattr(self, name, getattr(self, name)[kept])


@torch.inference_mode()
def _decode(
    policy: PreTrainedModel,
    prompts: list[list[int]],
    keys: torch.Tensor,
    sample_indices: torch.Tensor,
    limits: _Limits,
) -> tuple[list[list[int]], np.ndarray]:
    """Decode prompts × samples sequences; rows prompt-major."""
    rows, logits = _prefill(policy, prompts, keys, sample_indices, limits)
    padded = bool((~rows.mask).any())
    kind, decoder = _own_decoder(policy), None
    if kind:
        decoder = kind(policy, rows.cache, rows.mask, rows.positions, limits.longest)
        rows.cache = DynamicCache()  # its content was copied
    shape = (len(rows.place), limits.longest)
    out = torch.full(shape, -1, dtype=torch.int64, device=policy.device)
    logp = torch.zeros(len(out), dtype=torch.float64, device=policy.device)
    every = torch.arange(limits.longest, device=policy.device)[:, None]
    uniform = uniforms(limits.seed, rows.keys, rows.indices, every)
    for position in range(limits.longest):
        token, token_logp = draw(logits, uniform[position, rows.place])
        out[rows.place, position] = torch.where(rows.done, -1, token)
        logp[rows.place] += torch.where(rows.done, 0.0, token_logp)
        rows.done = rows.done | (token == limits.eos)
        n_done = int(rows.done.sum())
        if position + 1 == limits.longest or n_done == len(token):
            break
        if n_done >= (SHRINK_SHARE if kind is StaticDecoder else LEAVING_SHARE) * len(token):
            token = token[~rows.done]
            if decoder:
                decoder.keep(~rows.done)
            rows.leave(with_cache=decoder is None)
        if decoder:
            logits = decoder(token)
            continue
        rows.mask = torch.cat([rows.mask, rows.mask.new_ones(len(rows.mask), 1)], 1)
        logits = policy(
            input_ids=token[:, None],
            attention_mask=rows.mask.long() if padded else None,
            position_ids=rows.positions[:, None],
            past_key_values=rows.cache,
            use_cache=True,
        ).logits[:, -1]
        rows.positions = rows.positions + 1
    return [[t for t in row if t >= 0] for row in out.tolist()], logp.cpu().numpy()


def _own_decoder(policy: PreTrainedModel) -> type[StaticDecoder] | type[LlamaDecoder] | None:
    """What decodes a policy faster than its own forward does, where there is something."""
    if can_be_static(policy):
        return StaticDecoder
    return LlamaDecoder if passes.fits(policy) else None


def _prefill(
    policy: PreTrainedModel,
    prompts: list[list[int]],
    keys: torch.Tensor,
    sample_indices: torch.Tensor,
    limits: _Limits,
) -> tuple[_Rows, torch.Tensor]:
    """Compute every prompt once, then give each of its samples a row; their first logits."""
    device, n_samples = policy.device, sample_indices.shape[1]
    width = max(len(p) for p in prompts)
    ids = torch.tensor([[limits.pad] * (width - len(p)) + p for p in prompts], device=device)
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    mask = torch.arange(width, device=device) >= (width - lengths)[:, None]
    cache = roomy_cache(policy, 0 if _own_decoder(policy) else limits.longest)
    logits = policy(
        input_ids=ids,
        attention_mask=mask.long(),
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    cache.batch_repeat_interleave(n_samples)
    mask, lengths, logits = (x.repeat_interleave(n_samples, 0) for x in (mask, lengths, logits))
    n_rows = len(prompts) * n_samples
    rows = _Rows(
        cache,
        mask,
        lengths,
        keys.to(device).repeat_interleave(n_samples),
        sample_indices.to(device).reshape(-1),
        torch.arange(n_rows, device=device),
        torch.zeros(n_rows, dtype=torch.bool, device=device),
    )
    return rows, logits


def draw(logits: torch.Tensor, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [batch] by inverse CDF, and their log-probabilities [batch], nats.

    Args:
        logits: [batch, vocab].
        uniform: float64 [batch] in [0, 1).
    """
    if logits.numel() > SCORES and len(logits) > 1:  # float64 sums of a large vocabulary are large
        parts = [draw(*pair) for pair in zip(logits.chunk(2), uniform.chunk(2), strict=True)]
        return torch.cat([t for t, _ in parts]), torch.cat([p for _, p in parts])
    weights = torch.exp(logits.float() - logits.amax(-1, keepdim=True).float())
    cdf = weights.cumsum(-1, dtype=torch.float64)
    total = cdf[:, -1]
    token = torch.searchsorted(cdf, (uniform * total)[:, None], right=True)[:, 0]
    token = token.clamp(max=logits.shape[-1] - 1)
    chosen = weights.gather(1, token[:, None])[:, 0].double()
    return token, torch.log(chosen) - torch.log(total)
