"""Where given responses stand in a model's own next-token distributions.

A token drawn from a distribution stands, with its probability spread evenly over its own share, at
a uniform place of it when the likeliest tokens come first (the randomised probability integral
transform). Tokens drawn from another distribution stand elsewhere: none behind where it was
truncated, more at the front where it was sharpened.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from infalign.lm.memory import Block, Budget, autocast, in_pieces
from infalign.lm.scoring.scorer import sum_responses
from infalign.lm.scoring.vocabulary import LOGITS, response_log_probs
from infalign.lm.text import make_batch


class Standing(NamedTuple):
    """What a model makes of given responses.

    Attributes:
        logp: log-probability of each response, nats [responses].
        places: of their tokens in the distributions, 0 to 1, the likeliest first [tokens].
    """

    logp: np.ndarray
    places: np.ndarray


@torch.inference_mode()
def standing(
    policy: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    pad: int,
    seed: int = 0,
) -> Standing:
    """How likely responses are, and where their tokens stand.

    Args:
        prompts: token ids.
        responses: as many to each prompt, prompt-major; none of them empty.
        seed: of the places within the tokens' own shares.
    """
    samples = len(responses) // len(prompts)
    random = torch.Generator().manual_seed(seed)
    budget = Budget(max(1, LOGITS // int(policy.config.get_text_config().vocab_size)))
    logp, places = np.zeros(len(responses)), []

    def work(block: Block) -> tuple[np.ndarray, np.ndarray]:
        chosen = [responses[int(row)] for row in block.rows(samples)]
        batch = make_batch([prompts[i] for i in block.prompts], chosen, pad, policy.device)
        with autocast(policy):
            scores = response_log_probs(policy, batch)
        own = scores.gather(1, batch.tokens[:, None])
        above = torch.where(scores > own, scores.exp(), 0.0).sum(1)
        spread = torch.rand(len(own), generator=random).to(own.device)
        stand = (above + spread * own[:, 0].exp()).clamp(max=1.0)
        return sum_responses(own[:, 0].double(), batch).cpu().numpy(), stand.cpu().numpy()

    def width(block: Block) -> int:
        rows = block.rows(samples)
        longest = max(len(responses[int(row)]) for row in rows)
        return longest + max(len(prompts[i]) for i in block.prompts)

    for number in range(len(prompts)):
        whole = Block(np.array([number]), np.arange(samples))
        for block, (sums, stand) in in_pieces(whole, work, width, budget):
            logp[block.rows(samples)] = sums
            places.append(stand)
    return Standing(logp, np.concatenate(places).astype(np.float64))
