"""Log-probabilities, KL and rewards of given responses, in batches of alike length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from infalign.lm.text import (
    Batch,
    by_length,
    encode_prompts,
    encode_responses,
    make_batch,
)


def response_log_probs(policy: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Log-probabilities over the vocabulary at every response token; the head skips prompts.

    Returns:
        [response tokens of the batch, vocab], in the order of `batch.response_mask.nonzero()`.
    """
    logits = _response_logits(policy, batch)
    return torch.log_softmax(logits[batch.response_mask].float(), -1)


def token_log_probs(policy: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Log-probability of every response token, nats: [response tokens of the batch]."""
    logits = _response_logits(policy, batch).float()
    loss = F.cross_entropy(logits.flatten(0, 1), batch.response.flatten(), reduction="none")
    return -loss[batch.response_mask.flatten()]


def _response_logits(policy: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Logits that predict the responses' columns: [batch, width, vocab]."""
    return policy(
        input_ids=batch.ids[:, :-1],
        attention_mask=batch.mask[:, :-1].long(),
        position_ids=batch.positions[:, :-1],
        use_cache=False,
        logits_to_keep=batch.width,
    ).logits


def sum_responses(values: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Sum a value of every response token over each response: [batch]."""
    rows = batch.response_mask.nonzero()[:, 0]
    return torch.zeros(len(batch.ids), dtype=values.dtype, device=values.device).index_add(
        0, rows, values
    )


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
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    responses: Sequence[Sequence[int]],
    *,
    batch_size: int,
) -> Divergence:
    """KL and log-ratio of each response; one prompt text and one token list a response."""
    encoded = encode_prompts(tokenizer, prompts)
    kl, log_ratio = np.zeros(len(prompts)), np.zeros(len(prompts))
    for chosen in _batches(encoded, responses, batch_size):
        batch = make_batch(
            [encoded[i] for i in chosen],
            [responses[i] for i in chosen],
            tokenizer.pad_token_id,
            policy.device,
        )
        ours, theirs = response_log_probs(policy, batch), response_log_probs(reference, batch)
        token_kl = (ours.exp() * (ours - theirs)).sum(-1)
        token = batch.response[batch.response_mask][:, None]
        kl[chosen] = sum_responses(token_kl.double(), batch).cpu().numpy()
        ratio = (ours.gather(1, token) - theirs.gather(1, token))[:, 0]
        log_ratio[chosen] = sum_responses(ratio.double(), batch).cpu().numpy()
    return Divergence(kl, log_ratio)


def pooled_rewards(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """The reward at each sequence's last real token, found by mask: [batch]."""
    head = getattr(model, "score", None)
    if head is None:  # an encoder pools by itself, at its first position
        return model(**_unpadded_left(batch)).logits[:, 0]
    hidden = model.base_model(
        input_ids=batch.ids,
        attention_mask=batch.mask.long(),
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state
    columns = torch.arange(batch.ids.shape[1], device=hidden.device)
    last = (columns * batch.mask).argmax(1)
    return head(hidden[torch.arange(len(hidden), device=hidden.device), last])[:, 0]


def _unpadded_left(batch: Batch) -> dict[str, torch.Tensor]:
    """A batch as encoders read it: every sequence begins in the first column."""
    order = torch.argsort((~batch.mask).int(), dim=1, stable=True)
    return {
        "input_ids": batch.ids.gather(1, order),
        "attention_mask": batch.mask.gather(1, order).long(),
    }


@torch.inference_mode()
def score_responses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    responses: Sequence[str],
    *,
    batch_size: int,
) -> np.ndarray:
    """Rewards of texts, float64 [responses], read with the reward model's own tokenizer.

    Every response is read to its end with EOS behind it, whether or not it was cut.
    """
    encoded = encode_prompts(tokenizer, prompts)
    replies = encode_responses(tokenizer, responses)
    rewards = np.zeros(len(prompts))
    for chosen in _batches(encoded, replies, batch_size):
        batch = make_batch(
            [encoded[i] for i in chosen],
            [replies[i] for i in chosen],
            tokenizer.pad_token_id,
            model.device,
        )
        rewards[chosen] = pooled_rewards(model, batch).double().cpu().numpy()
    return rewards


def _batches(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], batch_size: int
) -> list[np.ndarray]:
    lengths = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
    return by_length(lengths, batch_size)
