"""Ancestral sampling, no truncation of the distribution.

A prompt is computed once for all its samples, prompts of alike length share a batch, and finished
sequences leave it. Tokens follow from one uniform by the inverse CDF in float64 (`randomness`).
How a model is decoded, and that this draws from its own distribution, is found out first (`ways`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from infalign.data.dialogue import Dialogue
from infalign.lm.formats import Format
from infalign.lm.memory import Block, Budget, autocast, in_pieces
from infalign.lm.sampling.randomness import counter_of, draw, uniforms
from infalign.lm.sampling.ways import Way, proven_way
from infalign.lm.text import by_length
from infalign.processes.ranks import ALONE, Ranks


@dataclass(frozen=True)
class Responses:
    """Sampled responses, `samples` a prompt, prompt-major: row = prompt * samples + sample.

    Attributes:
        tokens: token ids of each response, its end included where it ended.
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
        """Length of each response, tokens, its end included."""
        return np.array([len(t) for t in self.tokens])

    def of_prompt(self, number: int, samples: int) -> Responses:
        """Those of one prompt, of `samples` each."""
        rows = slice(number * samples, (number + 1) * samples)
        return Responses(self.tokens[rows], self.text[rows], self.logp[rows], self.finished[rows])


def sample_responses(
    policy: PreTrainedModel,
    form: Format,
    prompts: Sequence[Dialogue],
    prompt_ids: Sequence[str],
    sample_indices: np.ndarray,
    *,
    seed: int | Sequence[int],
    longest: int,
    batch_size: int,
    temperature: float = 1.0,
    budget: Budget | None = None,
    ranks: Ranks = ALONE,
) -> Responses:
    """Sample responses to each prompt; InputError where a model's own cannot be drawn.

    Args:
        sample_indices: int [prompts, samples], the counter of every response.
        seed: of the stream, or one a prompt; with prompt id, sample index and position it fixes
            every token.
        longest: tokens of a response, its end included.
        batch_size: sequences decoded side by side, at most.
        temperature: what logits are divided by; KL and win rates are measured at 1.
        budget: of the tokens that they may grow to.
        ranks: processes that share the batches; each gets all of the responses.
    """
    encoded = form.encode_prompts(prompts)
    n_prompts, n_samples = sample_indices.shape
    budget = budget or Budget()
    limits = _Limits(longest, form.ends, form.pad, temperature)
    seeds = [seed] * n_prompts if isinstance(seed, int) else seed
    counters = [counter_of(name) ^ own for name, own in zip(prompt_ids, seeds, strict=True)]
    if not encoded:
        return Responses([], [], np.zeros(0), np.zeros(0, dtype=bool))
    way = proven_way(policy, max(encoded, key=len), longest, budget)

    def decode(block: Block) -> tuple[list[list[int]], np.ndarray]:
        keys = torch.tensor([counters[i] for i in block.prompts])
        indices = sample_indices[np.ix_(block.prompts, block.columns)].astype(np.int64)
        chosen = [encoded[i] for i in block.prompts]
        with autocast(policy):
            return _decode(policy, way, chosen, keys, torch.from_numpy(indices), limits)

    def width(block: Block) -> int:
        return max(len(encoded[i]) for i in block.prompts) + longest

    parts: list[tuple[Block, tuple[list[list[int]], np.ndarray]]] = []
    side_by_side = max(1, batch_size // n_samples) if way.padded else 1
    for chosen in ranks.share(by_length([len(p) for p in encoded], side_by_side)):
        block = Block(chosen, np.arange(n_samples))
        parts += in_pieces(block, decode, width, budget)
    tokens: list[list[int]] = [[] for _ in range(n_prompts * n_samples)]
    logp = np.zeros(n_prompts * n_samples)
    for block, (decoded, sums) in (pair for part in ranks.gather(parts) for pair in part):
        for row, response, total in zip(block.rows(n_samples), decoded, sums, strict=True):
            tokens[row], logp[row] = response, total
    finished = np.array([bool(t) and t[-1] in form.ends for t in tokens])
    return Responses(tokens, form.decode(tokens), logp, finished)


@dataclass(frozen=True)
class _Limits:
    longest: int
    ends: tuple[int, ...]
    pad: int
    temperature: float


@torch.inference_mode()
def _decode(
    policy: PreTrainedModel,
    way: Way,
    prompts: list[list[int]],
    keys: torch.Tensor,
    sample_indices: torch.Tensor,
    limits: _Limits,
) -> tuple[list[list[int]], np.ndarray]:
    """Decode prompts × samples sequences; rows prompt-major."""
    device, samples, longest = policy.device, sample_indices.shape[1], limits.longest
    decoder, logits = way.begin(policy, prompts, samples, pad=limits.pad, longest=longest)
    place = torch.arange(len(logits), device=device)
    ends = torch.tensor(limits.ends, device=device)
    done = torch.zeros(len(logits), dtype=torch.bool, device=device)
    out = torch.full((len(logits), longest), -1, dtype=torch.int64, device=device)
    logp = torch.zeros(len(logits), dtype=torch.float64, device=device)
    uniform = uniforms(
        0,  # the seeds are in the keys
        keys.to(device).repeat_interleave(samples),
        sample_indices.to(device).reshape(-1),
        torch.arange(longest, device=device)[:, None],
    )
    for position in range(longest):
        token, token_logp = draw(logits, uniform[position, place], limits.temperature)
        out[place, position] = torch.where(done, -1, token)
        logp[place] += torch.where(done, 0.0, token_logp)
        done = done | torch.isin(token, ends)
        n_done = int(done.sum())
        if position + 1 == longest or n_done == len(token):
            break
        if n_done >= decoder.leaving_share * len(token):
            kept = ~done
            decoder.keep(kept)
            token, place, done = token[kept], place[kept], done[kept]
        logits = decoder(token)
    return [[t for t in row if t >= 0] for row in out.tolist()], logp.cpu().numpy()
