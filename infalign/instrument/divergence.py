"""A policy's KL from the reference, as far as its files tell it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from infalign.instrument.samples import REFERENCE_LOGP, Samples
from infalign.theory.checks import FloatArray


class Divergence(NamedTuple):
    """KL by prompt, nats a response, where it can be known.

    Fields: means over each prompt's samples of token-exact KLs, and of log-ratios (either may be
    None); where neither is there, why.
    """

    exact: FloatArray | None
    log_ratio: FloatArray | None
    unknown: str = ""

    @property
    def best(self) -> FloatArray | None:
        """The less noisy of the two."""
        return self.log_ratio if self.exact is None else self.exact


def divergence(policy: Samples, reference: Samples) -> Divergence:
    """From `kl`, `log_ratio`, `logp` with `reference_logp`, or `logp` and texts on both sides."""
    numbers = policy.numbers
    exact = policy.means(numbers["kl"]) if "kl" in numbers else None
    ratios = numbers.get("log_ratio")
    of_reference = next((numbers[c] for c in REFERENCE_LOGP if c in numbers), None)
    unknown = ""
    if ratios is None and "logp" in numbers:
        if of_reference is None:
            of_reference, unknown = _looked_up(policy, reference)
        if of_reference is not None:
            ratios = numbers["logp"] - of_reference
    elif ratios is None and exact is None:
        unknown = (
            f"{policy.place} has no column kl, log_ratio, or logp with reference_logp: without a "
            f"KL there is no limit and no efficiency of {policy.name}."
        )
    return Divergence(exact, None if ratios is None else policy.means(ratios), unknown)


def _looked_up(policy: Samples, reference: Samples) -> tuple[FloatArray | None, str]:
    """The reference's log-probabilities of the policy's responses, where it drew the same ones."""
    lacking = (
        f"{policy.place} has the policy's logp and not the reference's of the same responses: add "
        "the column reference_logp"
    )
    if "logp" not in reference.numbers or not policy.responses or not reference.responses:
        return None, f"{lacking}."
    known: dict[tuple[int, str], float] = {}
    prompts = np.repeat(np.arange(len(reference.prompts)), reference.counts).tolist()
    for prompt, text, logp in zip(
        prompts, reference.responses, reference.numbers["logp"].tolist(), strict=True
    ):
        known[prompt, text] = logp
    asked = np.repeat(np.arange(len(policy.prompts)), policy.counts).tolist()
    found = [known.get(key) for key in zip(asked, policy.responses, strict=True)]
    there = sum(value is not None for value in found)
    if there < len(found):
        return (
            None,
            f"{lacking} ({100 * there / len(found):.0f} % of them are in {reference.place}).",
        )
    return np.array(found, dtype=np.float64), ""
