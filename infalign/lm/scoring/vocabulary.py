"""Log-probabilities of given responses, never with all their logits in memory at once.

Logits of a batch are as large as its response tokens times the vocabulary. Up to LOGITS values
they are computed at once; beyond that from the hidden states, a slice of tokens at a time, and
backward computes a slice's logits again.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from infalign.lm.llama import fused, passes
from infalign.lm.text import Batch

LOGITS = 2**25  # values held at once: 128 MiB in float32

Reference: TypeAlias = (
    PreTrainedModel | Callable[[], contextlib.AbstractContextManager[PreTrainedModel]]
)


class TokenScores(NamedTuple):
    """What a policy and its reference think of every response token: [response tokens].

    Attributes:
        logp: log-probability under the policy, nats, with gradient where that is on.
        reference_logp: under the reference, nats.
        kl: exact KL of the policy's next-token distribution from the reference's, nats.
    """

    logp: torch.Tensor
    reference_logp: torch.Tensor
    kl: torch.Tensor


def token_log_probs(policy: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Log-probability of every response token, nats: [response tokens of the batch]."""
    if passes.fits(policy):
        head = policy.get_output_embeddings().weight
        states = passes.token_states(policy, passes.pack(batch))
        return fused.token_logp(states, head, batch.tokens)
    if _is_small(policy, batch):
        logits = _response_states(policy, policy, batch).float()
        loss = F.cross_entropy(logits.flatten(0, 1), batch.responses.flatten(), reduction="none")
        return -loss[batch.mask.flatten()]
    states, head = _states(policy, batch, is_joined(policy))
    pieces = [
        _again_in_backward(_token_logp, head, part, tokens)
        for part, tokens in _slices(policy, states, batch.tokens)
    ]
    return torch.cat(pieces)


def response_log_probs(policy: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Log-probabilities over the vocabulary at every response token: [response tokens, vocab]."""
    return torch.log_softmax(_response_states(policy, policy, batch)[batch.mask].float(), -1)


def token_scores(policy: PreTrainedModel, reference: Reference, batch: Batch) -> TokenScores:
    """Both models' log-probabilities of the response tokens, and the KL between the models.

    Both take the same way through a batch, so that a policy that is the reference has KL 0.

    Args:
        reference: a model, or what gives one for a while (the policy without its adapter).
    """
    if isinstance(reference, PreTrainedModel) and passes.fits(policy) and passes.fits(reference):
        return _compared_llamas(policy, reference, batch)
    if _is_small(policy, batch):
        ours = response_log_probs(policy, batch)
        with torch.no_grad(), _standing_in(reference) as model:
            theirs = response_log_probs(model, batch)
        return _compared(ours, theirs, batch.tokens)
    joined = is_joined(policy)
    states, head = _states(policy, batch, joined)
    with torch.no_grad(), _standing_in(reference) as model:
        other, other_head = _states(model, batch, joined)
    pieces = [
        _again_in_backward(_compared_states, head, part, other_head, other_part, tokens)
        for part, other_part, tokens in _slices(policy, states, other, batch.tokens)
    ]
    return TokenScores(*(torch.cat(column) for column in zip(*pieces, strict=True)))


def _compared_llamas(
    policy: PreTrainedModel, reference: PreTrainedModel, batch: Batch
) -> TokenScores:
    packed = passes.pack(batch)
    with torch.no_grad():
        others = passes.token_states(reference, packed)
    states = passes.token_states(policy, packed)
    ours, theirs = (model.get_output_embeddings().weight for model in (policy, reference))
    return TokenScores(*fused.compared(states, ours, others, theirs, batch.tokens))


def _compared(ours: torch.Tensor, theirs: torch.Tensor, tokens: torch.Tensor) -> TokenScores:
    """Scores of tokens from log-probabilities over the vocabulary [tokens, vocab]."""
    chosen = tokens[:, None]
    logp = ours.gather(1, chosen)[:, 0]
    with torch.no_grad():
        kl = (ours.exp() * (ours - theirs)).sum(-1)
    return TokenScores(logp, theirs.gather(1, chosen)[:, 0], kl)


Head: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


def _compared_states(
    head: Head,
    states: torch.Tensor,
    other_head: Head,
    others: torch.Tensor,
    tokens: torch.Tensor,
) -> TokenScores:
    ours = torch.log_softmax(head(states).float(), -1)
    with torch.no_grad():
        theirs = torch.log_softmax(other_head(others).float(), -1)
    return _compared(ours, theirs, tokens)


def _token_logp(head: Head, states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return -F.cross_entropy(head(states).float(), tokens, reduction="none")


def _again_in_backward(work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work` gives; its intermediate values are computed again when gradients need them."""
    if not torch.is_grad_enabled():
        return work(*arguments)
    return checkpoint(work, *arguments, use_reentrant=False, preserve_rng_state=False)


def _slices(policy: PreTrainedModel, *values: torch.Tensor) -> Any:
    """Values of every token, so many tokens at a time that their logits are not too many."""
    size = max(1, LOGITS // _vocabulary(policy))
    return zip(*(value.split(size) for value in values), strict=True)


def is_joined(model: PreTrainedModel) -> bool:
    """Whether prompts are computed again for each response.

    Recomputing forbids a cache, and only a cache of keys and values can be repeated for every
    response: not what a convolution, a linear attention or a state space keeps.
    """
    return bool(getattr(model, "recomputes", False)) or not _repeats(model)


def _repeats(model: PreTrainedModel) -> bool:
    known = getattr(model, "repeats_cache", None)
    if known is None:
        layers = DynamicCache(config=model.config).layers
        plain = all(type(x) in (DynamicLayer, DynamicSlidingWindowLayer) for x in layers)
        taken = inspect.signature(model.base_model.forward).parameters
        model.repeats_cache = known = plain and "past_key_values" in taken
    return bool(known)


def _is_small(policy: PreTrainedModel, batch: Batch) -> bool:
    few = batch.mask.numel() * _vocabulary(policy) <= LOGITS
    return few and not is_joined(policy)


def _vocabulary(policy: PreTrainedModel) -> int:
    return int(policy.config.get_text_config().vocab_size)


@contextlib.contextmanager
def _standing_in(reference: Reference) -> Any:
    if isinstance(reference, torch.nn.Module):
        yield reference
    else:
        with reference() as model:
            yield model


def _states(policy: PreTrainedModel, batch: Batch, joined: bool) -> tuple[torch.Tensor, Head]:
    """What predicts every response token [response tokens, hidden], and the way to its logits.

    A model that does more behind its trunk than one matrix product (a soft cap, a scale) gives
    its logits themselves.
    """
    plain = has_plain_head(policy)
    trunk = policy.base_model if plain else policy
    head = policy.get_output_embeddings() if plain else torch.nn.Identity()
    if not joined:
        return _response_states(policy, trunk, batch)[batch.mask], head
    inputs, predicts = joined_inputs(batch)
    return _output(trunk(**inputs, use_cache=False))[predicts], head


def has_plain_head(policy: PreTrainedModel) -> bool:
    """Whether logits are the output embedding of the trunk's last states; found out by trying.

    The output embedding is made to give numbers that a soft cap or a scale behind it would change
    beyond doubt, whatever the model's own logits are; what it is given is compared with the states.
    """
    known = getattr(policy, "has_plain_head", None)
    if known is None:
        head = policy.get_output_embeddings()
        policy.has_plain_head = known = head is not None and _is_last(head, policy)
    return bool(known)


@torch.no_grad()
def _is_last(head: torch.nn.Module, policy: PreTrainedModel) -> bool:
    """Whether a head reads the trunk's last states as they are, and nothing comes behind it."""
    given: list[torch.Tensor] = []

    def replace(_: torch.nn.Module, inputs: tuple[torch.Tensor], logits: torch.Tensor) -> Any:
        marks = torch.linspace(-1000, 1000, logits.numel(), device=logits.device)
        given.extend([inputs[0].float(), marks.view_as(logits).to(logits.dtype)])
        return given[-1]

    ids = torch.arange(4, device=policy.device)[None]
    states = _output(policy.base_model(input_ids=ids, use_cache=False)).float()
    with head.register_forward_hook(replace):
        logits = policy(input_ids=ids, use_cache=False).logits
    read, marks = given
    close = read.shape == states.shape and torch.allclose(read, states, rtol=1e-3, atol=1e-6)
    return close and torch.equal(logits.float(), marks.float())


def _output(found: Any) -> torch.Tensor:
    """Last states of a trunk, or logits of a whole model."""
    hidden = getattr(found, "last_hidden_state", None)
    return found.logits if hidden is None else hidden


def _response_states(policy: PreTrainedModel, trunk: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """What predicts the response tokens: [prompts * samples, response tokens, hidden or vocab]."""
    prompt, response = shared_inputs(policy, batch)
    more = {"logits_to_keep": 1} if trunk is policy else {}
    first = _output(trunk(**prompt, **more))[:, -1:]
    first = first.repeat_interleave(batch.samples, 0)
    if batch.responses.shape[1] == 1:
        return first
    prompt["past_key_values"].batch_repeat_interleave(batch.samples)
    response["input_ids"] = response["input_ids"][:, :-1]
    response["position_ids"] = response["position_ids"][:, :-1]
    response["attention_mask"] = response["attention_mask"][:, :-1]
    return torch.cat([first, _output(trunk(**response))], 1)


def shared_inputs(model: PreTrainedModel, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
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


def joined_inputs(batch: Batch) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Prompt and response as one sequence, padded on the right, and which of its tokens predict
    the response's: bool [prompts * samples, tokens]."""
    prompts, before = (
        x.repeat_interleave(batch.samples, 0) for x in (batch.prompts, batch.prompt_mask)
    )
    ids, mask = torch.cat([prompts, batch.responses], 1), torch.cat([before, batch.mask], 1)
    order = torch.argsort((~mask).int(), dim=1, stable=True)
    inputs = {"input_ids": ids.gather(1, order), "attention_mask": mask.gather(1, order).long()}
    first, last = before.sum(1) - 1, mask.sum(1) - 1
    places = torch.arange(ids.shape[1], device=ids.device)
    return inputs, (places >= first[:, None]) & (places < last[:, None])
