"""Operations of a small model's passes, each as one function with its own derivative.

On CPU a small model spends more time between its matrix products than in them: every elementwise
operation reads and writes whole activations. These do the same arithmetic in fewer passes over
memory, keep less for backward, and never hold the log-probabilities of all tokens at once.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

CACHED = 2**17  # next-token scores worked on at once: half a MiB, which stays in a core's cache


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, epsilon: float) -> torch.Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = torch.rsqrt(length * length / x.shape[-1] + epsilon)
        normal = x * inverse
        ctx.save_for_backward(normal, inverse)
        return normal

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        normal, inverse = ctx.saved_tensors
        along = (gradient * normal).mean(-1, keepdim=True)
        return torch.addcmul(gradient, normal, along, value=-1).mul_(inverse), None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(both)
        gate, up = both.chunk(2, -1)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        (both,) = ctx.saved_tensors
        gate, up = both.chunk(2, -1)
        found = torch.empty_like(both)
        gate_gradient, up_gradient = found.chunk(2, -1)
        torch.mul(gradient, F.silu(gate), out=up_gradient)
        torch.ops.aten.silu_backward.grad_input(gradient * up, gate, grad_input=gate_gradient)
        return found


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, turns: torch.Tensor, width: int) -> torch.Tensor:
        ctx.mark_dirty(x)
        ctx.save_for_backward(turns)
        ctx.width = width
        return rotate_(x, turns, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        (turns,) = ctx.saved_tensors
        return rotate_(gradient.clone(), turns.conj().resolve_conj(), ctx.width), None, None


def rotate_(x: torch.Tensor, turns: torch.Tensor, width: int) -> torch.Tensor:
    """Turn neighbouring pairs among the first `width` values of every row, in place.

    Args:
        x: [rows, values].
        turns: complex [rows, pairs], repeated along the row.
    """
    pairs = x[:, :width].unflatten(-1, (-1, turns.shape[-1], 2))
    torch.view_as_complex(pairs).mul_(turns[:, None])
    return x


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, places: torch.Tensor, sources: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(places, sources)
        return _spread(x, sources)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return gradient.index_select(0, ctx.saved_tensors[0]), None, None


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, places: torch.Tensor, sources: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(places, sources)
        return x.index_select(0, places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return _spread(gradient, ctx.saved_tensors[1]), None, None


def _spread(x: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, x.new_zeros(1, x.shape[1])]).index_select(0, sources)


class _TokenLogp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, weight: torch.Tensor, tokens: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(states, weight, tokens)
        found = states.new_empty(len(tokens))
        for part in _parts(tokens, weight):
            logits = states[part] @ weight.t()
            found[part] = -F.cross_entropy(logits, tokens[part], reduction="none")
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        states, weight, tokens = ctx.saved_tensors
        return (*_through_vocabulary(states, weight, tokens, gradient), None)


class _Compared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: torch.Tensor) -> Any:
        states, weight, others, other_weight, tokens = given
        ctx.save_for_backward(states, weight, tokens)
        logp, other_logp, kl = (states.new_empty(len(tokens)) for _ in range(3))
        for part in _parts(tokens, weight):
            ours = torch.log_softmax(states[part] @ weight.t(), -1)
            theirs = torch.log_softmax(others[part] @ other_weight.t(), -1)
            chosen = tokens[part, None]
            logp[part] = ours.gather(1, chosen)[:, 0]
            other_logp[part] = theirs.gather(1, chosen)[:, 0]
            kl[part] = ours.exp().mul_(ours.sub_(theirs)).sum(-1)
        ctx.mark_non_differentiable(other_logp, kl)
        return logp, other_logp, kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor, *unused: torch.Tensor) -> Any:
        states, weight, tokens = ctx.saved_tensors
        return (*_through_vocabulary(states, weight, tokens, gradient), None, None, None)


def _through_vocabulary(
    states: torch.Tensor, weight: torch.Tensor, tokens: torch.Tensor, gradient: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Derivatives by states and weight, from that by the tokens' log-probabilities."""
    of_states, of_weight = torch.empty_like(states), torch.zeros_like(weight)
    for part in _parts(tokens, weight):
        slope = torch.softmax(states[part] @ weight.t(), -1)
        slope.mul_(-gradient[part, None])
        slope.scatter_add_(1, tokens[part, None], gradient[part, None])
        torch.mm(slope, weight, out=of_states[part])
        of_weight.addmm_(slope.t(), states[part])
    return of_states, of_weight


def _parts(tokens: torch.Tensor, weight: torch.Tensor) -> list[slice]:
    size = max(16, CACHED // len(weight))
    return [slice(start, start + size) for start in range(0, len(tokens), size)]


def normalise(x: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Rows over their root mean square; the norm's scale is the next weight's [rows, values]."""
    return _Normalise.apply(x, epsilon)


def gated(both: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up from both side by side: [rows, 2 * values] to [rows, values]."""
    return _Gated.apply(both)


def rotate(x: torch.Tensor, turns: torch.Tensor, width: int) -> torch.Tensor:
    """Turn pairs among the first `width` values of every row, in place, with gradient."""
    if not torch.is_grad_enabled() or not x.requires_grad:
        return rotate_(x, turns, width)
    return _Rotate.apply(x, turns, width)


def spread(x: torch.Tensor, places: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
    """Rows of x to their places in a padded rectangle of zeros.

    Args:
        places: of every row of x in the rectangle.
        sources: the row of x at every place, len(x) where there is none.
    """
    return _Spread.apply(x, places, sources)


def collect(x: torch.Tensor, places: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
    """The rows of a padded rectangle at these places: the other way round."""
    return _Collect.apply(x, places, sources)


def token_logp(states: torch.Tensor, weight: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probability of every token, nats, from what predicts it.

    Logits are computed a cacheful at a time, and again in backward.

    Args:
        states: [tokens, hidden].
        weight: of the vocabulary [vocab, hidden].
        tokens: ids [tokens].
    """
    return _TokenLogp.apply(states, weight, tokens)


def compared(
    states: torch.Tensor,
    weight: torch.Tensor,
    others: torch.Tensor,
    other_weight: torch.Tensor,
    tokens: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What two models think of every token, in one go through the vocabulary.

    Args:
        states, weight: of the policy, as for `token_logp`; others, other_weight: of the reference.

    Returns:
        Log-probabilities under the policy, with gradient, and under the reference, and the exact
        KL of their next-token distributions; nats [tokens].
    """
    found: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    found = _Compared.apply(states, weight, others, other_weight, tokens)
    return found
