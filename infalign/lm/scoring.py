"""Log-probabilities, KL and rewards of given responses; a shared prompt is computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from infalign.lm.text import (
    Batch,
    by_length,
    encode_prompts,
    encode_responses,
    make_batch,
    shared_prompts,
)


def response_log_probs(policy: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Log-probabilities over the vocabulary at every response token: [response tokens, vocab]."""
    return torch.log_softmax(_response_logits(policy, batch)[batch.mask].float(), -1)


def token_log_probs(policy: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Log-probability of every response token, nats: [response tokens of the batch]."""
    logits = _response_logits(policy, batch).float()
    loss = F.cross_entropy(logits.flatten(0, 1), batch.responses.flatten(), reduction="none")
    return -loss[batch.mask.flatten()]


def _response_logits(policy: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Logits that predict the response tokens: [prompts * samples, response tokens, vocab]."""
    prompt, response = _inputs(policy, batch)
    first = policy(**prompt, logits_to_keep=1).logits
    first = first.repeat_interleave(batch.samples, 0)
    if batch.responses.shape[1] == 1:
        return first
    prompt["past_key_values"].batch_repeat_interleave(batch.samples)
    response["input_ids"] = response["input_ids"][:, :-1]
    response["position_ids"] = response["position_ids"][:, :-1]
    response["attention_mask"] = response["attention_mask"][:, :-1]
    return torch.cat([first, policy(**response).logits], 1)


def _inputs(model: PreTrainedModel, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments for the prompts, then for the responses behind them, with the cache between."""
    cache = DynamicCache(config=model.config)
    lengths = batch.prompt_mask.sum(1).repeat_interleave(batch.samples)
    before = batch.prompt_mask.repeat_interleave(batch.samples, 0)
    columns = torch.arange(batch.responses.shape[1], device=lengths.device)
    prompt = {
        "input_ids": batch.prompts,
        "attention_mask": batch.prompt_mask.long(),
        "position_ids": (batch.prompt_mask.cumsum(1) - 1).clamp(min=0),
    }
    response = {
        "input_ids": batch.responses,
        "attention_mask": torch.cat([before, batch.mask], 1).long(),
        "position_ids": lengths[:, None] + columns,
    }
    shared = {"past_key_values": cache, "use_cache": True}
    return prompt | shared, response | shared


def sum_responses(values: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Sum a value of every response token over each response: [prompts * samples]."""
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
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    responses: Sequence[Sequence[int]],
    *,
    batch_size: int,
) -> Divergence:
    """KL and log-ratio of each response; one prompt text and one token list a response."""
    kl, log_ratio = np.zeros(len(prompts)), np.zeros(len(prompts))
    for rows, batch in _batches(tokenizer, prompts, responses, batch_size, policy.device):
        ours, theirs = response_log_probs(policy, batch), response_log_probs(reference, batch)
        token_kl = (ours.exp() * (ours - theirs)).sum(-1)
        kl[rows] = sum_responses(token_kl.double(), batch).cpu().numpy()
        token = batch.tokens[:, None]
        ratio = (ours.gather(1, token) - theirs.gather(1, token))[:, 0]
        log_ratio[rows] = sum_responses(ratio.double(), batch).cpu().numpy()
    return Divergence(kl, log_ratio)


def pooled_rewards(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """The reward at each sequence's last real token, found by mask: [prompts * samples]."""
    head = getattr(model, "score", None)
    if head is None:  # an encoder reads whole sequences and pools by itself
        return model(**_joined(batch)).logits[:, 0]
    prompt, response = _inputs(model, batch)
    model.base_model(**prompt)
    prompt["past_key_values"].batch_repeat_interleave(batch.samples)
    hidden = model.base_model(**response).last_hidden_state
    last = batch.mask.sum(1) - 1
    return head(hidden[torch.arange(len(hidden), device=hidden.device), last])[:, 0]


def _joined(batch: Batch) -> dict[str, torch.Tensor]:
    """Prompt and response as one sequence, padded on the right."""
    prompts, before = (
        x.repeat_interleave(batch.samples, 0) for x in (batch.prompts, batch.prompt_mask)
    )
    ids, mask = torch.cat([prompts, batch.responses], 1), torch.cat([before, batch.mask], 1)
    order = torch.argsort((~mask).int(), dim=1, stable=True)
    return {"input_ids": ids.gather(1, order), "attention_mask": mask.gather(1, order).long()}


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

    One prompt text a response. Every response is read to its end with EOS behind it, whether or
    not it was cut.
    """
    rewards = np.zeros(len(prompts))
    replies = encode_responses(tokenizer, responses)
    for rows, batch in _batches(tokenizer, prompts, replies, batch_size, model.device):
        rewards[rows] = pooled_rewards(model, batch).double().cpu().numpy()
    return rewards


def _batches(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    responses: Sequence[Sequence[int]],
    batch_size: int,
    device: torch.device,
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Rows and their batch, alike lengths together; responses in a row share their prompt."""
    samples = shared_prompts(prompts, batch_size)
    encoded = encode_prompts(tokenizer, prompts[::samples])
    longest = np.array([len(r) for r in responses]).reshape(-1, samples).max(1)
    lengths = [len(p) + int(n) for p, n in zip(encoded, longest, strict=True)]
    for chosen in by_length(lengths, batch_size // samples):
        rows = (chosen[:, None] * samples + np.arange(samples)).reshape(-1)
        yield (
            rows,
            make_batch(
                [encoded[i] for i in chosen],
                [responses[int(i)] for i in rows],
                tokenizer.pad_token_id,
                device,
            ),
        )
