"""A step whose responses are scored in parts: their gradient, without all of them in memory.

What a step's loss makes of the responses' log-probabilities needs all of them. Of several parts
they are therefore computed twice: first without gradients, for the loss and its derivative by each
log-probability, then part by part, each taking its share of that derivative back to the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, NamedTuple, TypeVar

import torch

from infalign.lm.scoring.scorer import sum_responses
from infalign.lm.scoring.vocabulary import Reference, TokenScores, token_log_probs, token_scores
from infalign.lm.text import Batch, make_batch
from infalign.lm.training.parallel import Part, Trainable


class LogProbs(NamedTuple):
    """What the policy alone thinks of every response token, nats, with gradient: [tokens]."""

    logp: torch.Tensor


Scores = TypeVar("Scores", bound=TokenScores | LogProbs)


@dataclass(frozen=True)
class Scored(Generic[Scores]):
    """A step's responses with what the models think of them.

    Attributes:
        scores: of every response token, part after part; `logp` has a gradient.
        batches: the parts.
        again: to be called when the loss was differentiated; nothing where there is one part.
    """

    scores: Scores
    batches: list[Batch]
    again: list[Callable[[], float]]

    @property
    def tokens(self) -> int:
        """Of all responses."""
        return len(self.scores.logp)

    def sums(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over each response of a value of every token: [responses]."""
        if len(self.batches) == 1:
            return sum_responses(values, self.batches[0])
        each = values.split([len(batch.tokens) for batch in self.batches])
        return torch.cat([sum_responses(v, b) for v, b in zip(each, self.batches, strict=True)])


def batches_of(
    parts: Sequence[Part],
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[Sequence[int]]],
    pad: int,
    device: torch.device,
) -> list[Batch]:
    """A step's parts as batches.

    Args:
        prompts: token ids of all prompts, which the parts' rows number.
        responses: token ids of the step's responses, a list for each row of the parts in turn.
    """
    batches, first = [], 0
    for part in parts:
        rows = responses[first : first + len(part.rows)]
        asked = [prompts[i] for i in part.rows]
        batches.append(make_batch(asked, [r for row in rows for r in row], pad, device))
        first += len(part.rows)
    return batches


def score_parts(
    trainable: Trainable, reference: Reference, batches: list[Batch]
) -> Scored[TokenScores]:
    """Score a step's responses under the policy in training and its reference."""
    return _in_parts(trainable, batches, partial(trainable, token_scores, reference))


def log_prob_parts(trainable: Trainable, batches: list[Batch]) -> Scored[LogProbs]:
    """Score a step's responses under the policy in training alone, as `score_parts` does."""

    def score(batch: Batch) -> LogProbs:
        return LogProbs(trainable(token_log_probs, batch))

    return _in_parts(trainable, batches, score)


def _in_parts(
    trainable: Trainable, batches: list[Batch], score: Callable[[Batch], Scores]
) -> Scored[Scores]:
    """Score every part; of several, without gradients but for that of the log-probabilities."""
    if len(batches) == 1:
        return Scored(score(batches[0]), batches, [])
    with torch.no_grad():
        parts = [score(batch) for batch in batches]
    scores = type(parts[0])(*(torch.cat(values) for values in zip(*parts, strict=True)))
    scores.logp.requires_grad_()
    again: list[Callable[[], float]] = []
    first = 0
    for batch in batches:
        last = first + len(batch.tokens)
        again.append(partial(_descend, trainable, batch, scores.logp, first, last))
        first = last
    return Scored(scores, batches, again)


def _descend(
    trainable: Trainable, batch: Batch, logp: torch.Tensor, first: int, last: int
) -> float:
    """Take the derivative of the loss by a part's log-probabilities back to the weights."""
    assert logp.grad is not None, "the loss was not differentiated"
    trainable(token_log_probs, batch).backward(logp.grad[first:last])
    return 0.0  # the loss is counted already
