"""Whether what an engine draws is drawn from the model that it should be drawn from.

The first responses are computed by the own forward pass as well. Other weights, another template or
a broken kernel give other log-probabilities. A truncated or sharpened distribution gives the same
ones, for servers tell them before they truncate: it is seen by where the tokens stand in the whole
distribution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import binom
from transformers import PreTrainedModel

from infalign.errors import CheckFailed
from infalign.lm.scoring.standing import Standing, standing

RESPONSES = 64  # that are compared
FLOAT32_BOUND, BFLOAT16_BOUND = 1e-3, 2e-2  # nats a token; rounding makes some 1e-6 and 1e-3
TAILS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # shares of a distribution, its unlikeliest tokens
CHANCE = 1e-7  # of so few tokens in a tail where they are drawn from the whole distribution
DEVIATIONS = 5.5  # standard deviations of the mean place; beyond by chance once in 3e7


def check_drawn(
    policy: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    logp: np.ndarray,
    pad: int,
    who: str,
) -> None:
    """Raise CheckFailed where responses are not a model's own.

    Args:
        prompts: token ids.
        responses: token ids, as many to each prompt, prompt-major.
        logp: log-probabilities that the engine gave, nats [responses].
        who: what drew them, to begin a sentence with.
    """
    found = standing(policy, prompts, responses, pad)
    lengths = np.array([len(r) for r in responses])
    check_log_probs(found.logp, logp, lengths, policy, who)
    _check_whole(found, who)


def check_log_probs(
    ours: np.ndarray, theirs: np.ndarray, lengths: np.ndarray, policy: PreTrainedModel, who: str
) -> None:
    """Raise where log-probabilities of responses differ by more than a bound, nats a token.

    Args:
        ours, theirs: by the own forward pass and by the engine, nats [responses].
        lengths: tokens [responses].
    """
    apart = float(np.mean(np.abs(ours - theirs) / lengths))
    exact = getattr(policy, "autocast_dtype", None) is None
    most = FLOAT32_BOUND if exact else BFLOAT16_BOUND
    if not apart <= most:
        raise CheckFailed(
            f"{who} gives its responses log-probabilities that differ by {apart:.2g} nats a token "
            f"from those of the model here, more than {most:g}: it serves other weights (a former "
            "run's?), or computes in another precision: start it again with this run's model"
            + (" and --dtype float32." if exact else ".")
        )


def _check_whole(found: Standing, who: str) -> None:
    """Raise where tokens do not stand as those of the whole distribution do."""
    many, mean = len(found.places), float(found.places.mean())
    for tail in TAILS:
        inside = int((found.places > 1 - tail).sum())
        if binom.cdf(inside, many, tail) < CHANCE:
            raise _other(
                who, f"{inside} of {many} tokens are in its last {100 * tail:g} %, too few"
            )
    if abs(mean - 0.5) * math.sqrt(12 * many) > DEVIATIONS:
        raise _other(who, f"the mean place of {many} tokens in it is {mean:.3f} in place of 0.5")


def _other(who: str, why: str) -> CheckFailed:
    return CheckFailed(
        f"{who} draws from a truncated or reshaped distribution: {why}: remove top_p, top_k, "
        "min_p, temperature and penalties from its settings (start it with --generation-config "
        "vllm)."
    )
