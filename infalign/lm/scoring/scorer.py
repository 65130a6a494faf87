"""KL and rewards of given responses; a shared prompt is computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from infalign.data.dialogue import Dialogue
from infalign.lm.formats import Format
from infalign.lm.memory import Block, Budget, autocast, in_pieces
from infalign.lm.scoring.vocabulary import (
    is_joined,
    joined_inputs,
    response_log_probs,
    shared_inputs,
    token_log_probs,
    token_scores,
)
from infalign.lm.text import (
    Batch,
    by_length,
    make_batch,
    shared_prompts,
)
from infalign.processes.ranks import ALONE, Ranks

__all__ = [
    "Divergence",
    "Output",
    "divergence",
    "pooled_rewards",
    "response_log_probs",
    "score_responses",
    "sum_responses",
    "token_log_probs",
    "token_scores",
]


def sum_responses(values: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Sum a value of every response token over each response: [prompts * samples]."""
    if values.is_cuda:  # where index_add adds in any order, and equal values have unequal sums
        spread = values.new_zeros(batch.mask.shape)
        return spread.masked_scatter(batch.mask, values).sum(1)
    rows = batch.mask.nonzero()[:, 0]
    total = torch.zeros(len(batch.mask), dtype=values.dtype, device=values.device)
    return total.index_add(0, rows, values)


class Divergence(NamedTuple):
    """How far a policy is from the reference along given responses.

    Attributes:
        kl: sum over tokens of the exact KL of the next-token distributions, nats [responses].
        log_ratio: log policy - log reference of the response, nats [responses].
    """

    kl: np.ndarray
    log_ratio: np.ndarray


@torch.inference_mode()
def divergence(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    form: Format,
    prompts: Sequence[Dialogue],
    responses: Sequence[Sequence[int]],
    *,
    batch_size: int,
    budget: Budget | None = None,
    ranks: Ranks = ALONE,
) -> Divergence:
    """KL and log-ratio of each response; one prompt and one token list a response."""

    def measure(batch: Batch) -> np.ndarray:
        scores = token_scores(policy, reference, batch)
        ratio = scores.logp - scores.reference_logp
        sums = [sum_responses(values.double(), batch) for values in (scores.kl, ratio)]
        return torch.stack(sums, 1).cpu().numpy()

    samples = shared_prompts(prompts, batch_size)
    found = _over_batches(
        measure,
        policy,
        form.pad,
        form.encode_prompts(prompts[::samples]),
        responses,
        batch_size=batch_size,
        budget=budget or Budget(),
        ranks=ranks,
    )
    return Divergence(found[:, 0], found[:, 1])


class Output(NamedTuple):
    """Where a classifier's reward is read.

    Attributes:
        label: which of its outputs.
        pad: a token that is not read at but the last one before it, as transformers pools; None:
            it is read at the last token of all.
    """

    label: int = 0
    pad: int | None = None


LAST = Output()


def pooled_rewards(model: PreTrainedModel, batch: Batch, output: Output = LAST) -> torch.Tensor:
    """The reward at each sequence's last real token, found by mask: [prompts * samples]."""
    head = getattr(model, "score", None)
    if head is None:  # an encoder reads whole sequences and pools by itself
        return model(**joined_inputs(batch)[0]).logits[:, output.label]
    last = _last(batch.responses, batch.mask, output.pad)
    if is_joined(model) or bool((last < 0).any()):
        inputs, _ = joined_inputs(batch)
        hidden = model.base_model(**inputs, use_cache=False).last_hidden_state
        last = _last(inputs["input_ids"], inputs["attention_mask"].bool(), output.pad)
    else:
        prompt, response = shared_inputs(model, batch)
        begun = model.base_model(**prompt).last_hidden_state
        prompt["past_key_values"].batch_repeat_interleave(batch.samples)
        hidden = model.base_model(**response).last_hidden_state
        if getattr(model, "in_shares", False):
            # FSDP2 gathers a layer for backward by its output: the prompt's, too, whose keys count.
            hidden = hidden + 0 * begun.sum()
    state = hidden[torch.arange(len(hidden), device=hidden.device), last]
    with torch.autocast(state.device.type, enabled=False):  # bfloat16 rewards would tie
        return head(state.float())[:, output.label]


def _last(ids: torch.Tensor, mask: torch.Tensor, pad: int | None) -> torch.Tensor:
    """The place of each row's last real token that is not `pad`; -1 where there is none."""
    if pad is None:
        return mask.sum(1) - 1
    places = torch.arange(ids.shape[1], device=ids.device)
    return torch.where(mask & (ids != pad), places, -1).amax(1)


@torch.inference_mode()
def score_responses(
    model: PreTrainedModel,
    form: Format,
    prompts: Sequence[Dialogue],
    responses: Sequence[str],
    *,
    batch_size: int,
    budget: Budget | None = None,
    ranks: Ranks = ALONE,
    output: Output = LAST,
) -> np.ndarray:
    """Rewards of texts, float64 [responses], read in the reward model's own format.

    One prompt a response. Every response is read to the end of its turn, whether or not it was
    cut.
    """

    def reward(batch: Batch) -> np.ndarray:
        return pooled_rewards(model, batch, output).double().cpu().numpy()[:, None]

    asked, replies = form.encode_whole(prompts, responses)
    found = _over_batches(
        reward,
        model,
        form.pad,
        asked[:: shared_prompts(prompts, batch_size)],
        replies,
        batch_size=batch_size,
        budget=budget or Budget(),
        ranks=ranks,
    )
    return found[:, 0]


def _over_batches(
    work: Callable[[Batch], np.ndarray],
    model: PreTrainedModel,
    pad: int,
    encoded: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    batch_size: int,
    budget: Budget,
    ranks: Ranks,
) -> np.ndarray:
    """What `work` gives for every response [responses, values], float64.

    Alike lengths are together in a batch. Each process does its share of the batches, and all of
    them get all of the values.

    Args:
        encoded: prompts; as many responses in a row answer each of them.
    """
    samples = len(responses) // max(1, len(encoded))
    longest = np.array([len(r) for r in responses]).reshape(-1, samples).max(1)
    asked = np.array([len(p) for p in encoded])

    def width(block: Block) -> int:
        return int(asked[block.prompts].max() + longest[block.prompts].max())

    def run(block: Block) -> np.ndarray:
        batch = make_batch(
            [encoded[i] for i in block.prompts],
            [responses[int(i)] for i in block.rows(samples)],
            pad,
            model.device,
        )
        with autocast(model):
            return work(batch)

    parts = []
    for chosen in ranks.share(by_length((asked + longest).tolist(), batch_size // samples)):
        block = Block(chosen, np.arange(samples))
        parts += in_pieces(block, run, width, budget)
    values = [(block.rows(samples), found) for part in ranks.gather(parts) for block, found in part]
    columns = values[0][1].shape[1] if values else 1
    table = np.zeros((len(responses), columns))
    for rows, found in values:
        table[rows] = found
    return table
